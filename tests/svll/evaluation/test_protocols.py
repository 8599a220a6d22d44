"""Each protocol against its rule written plainly."""

import numpy as np
import pytest

from harness.errors import UserError
from harness.rng import generator
from svll.evaluation import KReciprocal, evaluate_ranking
from svll.evaluation.protocols import DRAWS, evaluate_draws, evaluate_protocol


def made(count: int = 60, identities: int = 12, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre per identity, so that ranking is neither perfect nor random."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, identities, count)
    centres = rng.normal(size=(identities, width))
    return (centres[labels] + rng.normal(size=(count, width))).astype(np.float32), labels


def plain_draw(features: np.ndarray, labels: np.ndarray, gallery: list[int]) -> tuple[float, float]:
    """mAP and rank-1 when the given rows are the gallery and all others queries."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    places = []
    for row in range(len(labels)):
        if row in gallery:
            continue
        order = sorted(gallery, key=lambda g: float(np.linalg.norm(unit[row] - unit[g])))
        places.append([labels[g] for g in order].index(labels[row]) + 1)
    return float(np.mean([1 / p for p in places])), float(np.mean([p == 1 for p in places]))


def test_the_gallery_has_one_image_of_each_identity_and_the_draws_are_averaged() -> None:
    features, labels = made()
    expected = []
    for draw in range(DRAWS):
        order = generator(0, draw, 5).permutation(len(labels))
        first: dict[int, int] = {}
        for row in order.tolist():
            first.setdefault(int(labels[row]), row)
        expected.append(plain_draw(features, labels, sorted(first.values())))
    result = evaluate_draws(features, labels)[0]
    assert result.mAP == pytest.approx(np.mean([m for m, _ in expected]), abs=1e-6)
    assert result.cmc[0] == pytest.approx(np.mean([r for _, r in expected]), abs=1e-6)
    assert result.mINP == pytest.approx(result.mAP)
    assert result.queries == len(labels) - len(set(labels.tolist()))
    assert np.isnan(result.average_precision).sum() == len(set(labels.tolist()))
    assert np.array_equal(np.isnan(result.average_precision), result.first_rank == 0)


def test_draws_are_seeded_and_differ() -> None:
    features, labels = made()
    assert evaluate_draws(features, labels)[0].mAP == evaluate_draws(features, labels)[0].mAP
    first = evaluate_draws(features, labels)[0]
    assert evaluate_draws(features, labels, seed=1)[0].mAP != first.mAP
    alone = [evaluate_draws(features, labels, draws=n)[0].mAP for n in (1, 2, 10)]
    assert len(set(alone)) == 3


def test_junk_is_no_query_and_not_in_the_gallery() -> None:
    features, labels = made()
    junk = np.concatenate([labels, np.full(5, -1)])
    more = np.concatenate([features, features[:5]])
    assert evaluate_draws(more, junk)[0].queries == evaluate_draws(features, labels)[0].queries


def test_identities_of_single_images_alone_are_refused() -> None:
    with pytest.raises(UserError, match="no identity has two images"):
        evaluate_draws(np.eye(4, dtype=np.float32), np.arange(4))


def parts() -> tuple:
    features, labels = made()
    cameras = np.random.default_rng(1).integers(0, 3, len(labels))
    q, g = slice(0, 15), slice(15, None)
    return features[q], features[g], labels[q], labels[g], cameras[q], cameras[g]


def test_cross_camera_leaves_out_the_querys_own_camera_and_all_gallery_does_not() -> None:
    filtered = evaluate_ranking(*parts())
    unfiltered = evaluate_ranking(*parts(), camera_filter=False)
    assert filtered.mAP != unfiltered.mAP
    assert evaluate_protocol("cross_camera", *parts()).mAP == filtered.mAP
    assert evaluate_protocol("all_gallery", *parts()).mAP == unfiltered.mAP
    assert evaluate_protocol("cross_camera", *parts(), camera_filter=False).mAP == unfiltered.mAP


def test_re_ranking_goes_with_every_protocol() -> None:
    rerank = KReciprocal(k1=5, k2=2)
    for protocol in ("cross_camera", "all_gallery", "random_gallery"):
        plain = evaluate_protocol(protocol, *parts())
        assert evaluate_protocol(protocol, *parts(), rerank=rerank).mAP != plain.mAP


def test_an_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="no protocol 'best'; known are cross_camera, all_gallery"):
        evaluate_protocol("best", *parts())
