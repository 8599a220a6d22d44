"""A gallery in shards, several ranks, several settings at once: always the same digits."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from harness.base.errors import UserError
from svll.evaluation import KReciprocal, QueryExpansion, evaluate_ranking
from svll.evaluation.engine import comparison as streaming
from svll.evaluation.engine.feature_rows import Stacked
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.ranking import Options, evaluate_settings
from tests.svll.evaluation.pairs import pair_of

SETTINGS = (None, KReciprocal(6, 3), KReciprocal(6, 3, 0.7), KReciprocal(10, 1))


def world(queries: int = 40, gallery: int = 301, width: int = 24) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, width))
    q_ids, g_ids = rng.integers(0, 12, queries), rng.integers(-1, 12, gallery)
    query = centres[q_ids] + 1.5 * rng.standard_normal((queries, width))
    features = centres[g_ids] + 1.5 * rng.standard_normal((gallery, width))
    features[200:] = features[:101]  # ties across shards
    return (
        query.astype(np.float32), features.astype(np.float32), q_ids, g_ids,
        rng.integers(0, 4, queries), rng.integers(0, 4, gallery),
    )  # fmt: skip


def digits(result: Any) -> list[Any]:
    """All that a result holds, as JSON keeps it."""
    return [
        result.mAP, result.mINP, result.cmc.tolist(), result.nearest.tolist(),
        result.first_rank.tolist(), result.average_precision.tolist(), result.distances.tolist(),
    ]


def evaluated(
    share: Share | None = None, expand: QueryExpansion | None = None, protocol: str = "cross_camera"
) -> list[Any]:
    options = Options(top_k=6, share=share, expand=expand)
    results = evaluate_settings(pair_of(*world()), SETTINGS, options, protocol=protocol)
    return [digits(result) for result in results]


def test_settings_together_are_the_settings_one_by_one() -> None:
    for result, options in zip(evaluated(), SETTINGS, strict=True):
        assert digits(evaluate_ranking(*world(), rerank=options, top_k=6)) == result


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_gallery_in_hdf5_shards_ranks_like_one_array(tmp_path: Path, count: int) -> None:
    query, gallery, *labels = world()
    files = []
    for number, rows in enumerate(np.array_split(np.arange(len(gallery)), count)):
        files.append(h5py.File(tmp_path / f"{number}.h5", "w"))
        files[-1]["features"] = gallery[rows]
    stacked = Stacked([file["features"] for file in files])
    results = evaluate_settings(pair_of(query, stacked, *labels), SETTINGS, Options(top_k=6))
    assert [digits(result) for result in results] == evaluated()
    for file in files:
        file.close()


def test_shards_of_other_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"have \[3, 4\] numbers per row"):
        Stacked([np.zeros((2, 3)), np.zeros((2, 4))])


def evaluate_on_rank(block: int) -> list[Any]:
    streaming.GALLERY_BLOCK, before = block, streaming.GALLERY_BLOCK
    try:
        share = Share.of_this_rank()
        plain = evaluated(share)
        return [*plain, *evaluated(share, expand=QueryExpansion(3, 1.0), protocol="other_cameras")]
    finally:
        streaming.GALLERY_BLOCK = before


@pytest.mark.parametrize("block", [37, 2048])
def test_ranks_that_share_a_gallery_all_get_the_digits_of_one(two_ranks: Any, block: int) -> None:
    expected = [*evaluated(), *evaluated(expand=QueryExpansion(3, 1.0), protocol="other_cameras")]
    for found in two_ranks(evaluate_on_rank, block=block):
        # JSON knows no NaN equality: compare what is printed
        assert str(found) == str(expected)


def test_every_row_is_in_the_span_of_one_process() -> None:
    for total in (0, 1, 5, 301):
        spans = [Share(index, 4).span(total) for index in range(4)]
        assert [n for low, high in spans for n in range(low, high)] == list(range(total))
