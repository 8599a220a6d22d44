"""Results per camera pair against galleries cut by hand."""

from typing import Any

import numpy as np
import pytest

from svll.evaluation import KReciprocal, evaluate_ranking
from svll.evaluation.camera_pairs import evaluate_camera_pairs
from tests.svll.evaluation.pairs import pair_of


def world() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    q_ids, g_ids = rng.integers(-1, 6, 40), rng.integers(-1, 6, 200)
    centres = rng.standard_normal((7, 8))
    query = centres[q_ids] + rng.standard_normal((40, 8))
    gallery = centres[g_ids] + rng.standard_normal((200, 8))
    return query, gallery, [q_ids, g_ids, rng.integers(0, 3, 40), rng.integers(0, 4, 200)]


@pytest.mark.parametrize("protocol", ["cross_camera", "other_cameras", "all_gallery"])
def test_each_pair_is_scored_like_a_query_and_gallery_of_these_cameras_alone(protocol: str) -> None:
    query, gallery, labels = world()
    q_ids, g_ids, q_cams, g_cams = labels
    settings = [None, KReciprocal(5, 2)]
    both = evaluate_camera_pairs(pair_of(query, gallery, *labels), settings, protocol=protocol)
    wanted = [(a, b) for a in range(3) for b in range(4) if a != b or protocol == "all_gallery"]
    for pairs, setting in zip(both, settings, strict=True):
        assert [(pair.query_camera, pair.gallery_camera) for pair in pairs] == wanted
        for pair in pairs:
            q, g = q_cams == pair.query_camera, g_cams == pair.gallery_camera
            alone = evaluate_ranking(
                query[q], gallery[g], q_ids[q], g_ids[g], q_cams[q], g_cams[g], protocol=protocol,
                rerank=setting,
            )
            assert (pair.mAP, pair.rank1) == pytest.approx((alone.mAP, alone.cmc[0]), abs=1e-12)
            assert pair.queries == alone.queries
    assert [pair.mAP for pair in both[0]] != [pair.mAP for pair in both[1]]


def pairs_of(features: np.ndarray, labels: Any, protocol: str) -> list[tuple[int, int, int]]:
    [pairs] = evaluate_camera_pairs(pair_of(features[:2], features, *labels), protocol=protocol)
    return [(pair.query_camera, pair.gallery_camera, pair.queries) for pair in pairs]


def test_a_pair_without_a_common_identity_is_left_out() -> None:
    labels = [1, 2], [1, 2, 3, 2], [0, 0], [1, 1, 2, 2]
    assert pairs_of(np.eye(4), labels, "cross_camera") == [(0, 1, 2), (0, 2, 1)]


def test_a_query_whose_own_image_alone_is_there_is_in_no_pair() -> None:
    labels = [1, 2], [1, 2, 3, 2], [0, 0], [0, 0, 1, 1]
    assert pairs_of(np.eye(4), labels, "all_gallery") == [(0, 1, 1)]
