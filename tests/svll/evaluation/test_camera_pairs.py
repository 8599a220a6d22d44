"""Results per camera pair against galleries cut by hand."""

import numpy as np
import pytest

from svll.evaluation import evaluate_camera_pairs, evaluate_ranking


def world():
    rng = np.random.default_rng(0)
    q_ids, g_ids = rng.integers(-1, 6, 40), rng.integers(-1, 6, 200)
    centres = rng.standard_normal((7, 8))
    query = centres[q_ids] + rng.standard_normal((40, 8))
    gallery = centres[g_ids] + rng.standard_normal((200, 8))
    return query, gallery, q_ids, g_ids, rng.integers(0, 3, 40), rng.integers(0, 4, 200)


@pytest.mark.parametrize("filtered", [True, False])
def test_each_pair_is_scored_like_a_query_and_gallery_of_these_cameras_alone(filtered):
    query, gallery, q_ids, g_ids, q_cams, g_cams = world()
    pairs = evaluate_camera_pairs(
        query, gallery, q_ids, g_ids, q_cams, g_cams, camera_filter=filtered
    )
    wanted = [(a, b) for a in range(3) for b in range(4) if a != b or not filtered]
    assert [(pair.query_camera, pair.gallery_camera) for pair in pairs] == wanted
    for pair in pairs:
        q, g = q_cams == pair.query_camera, g_cams == pair.gallery_camera
        alone = evaluate_ranking(
            query[q], gallery[g], q_ids[q], g_ids[g], q_cams[q], g_cams[g], camera_filter=filtered
        )
        assert (pair.mAP, pair.rank1) == pytest.approx((alone.mAP, alone.cmc[0]), abs=1e-12)
        assert pair.queries == alone.queries


def test_a_pair_without_a_common_identity_is_left_out():
    features = np.eye(4)
    labels = [1, 2], [1, 2, 3, 2], [0, 0], [1, 1, 2, 2]
    pairs = evaluate_camera_pairs(features[:2], features, *labels)
    assert [(pair.query_camera, pair.gallery_camera, pair.queries) for pair in pairs] == [
        (0, 1, 2), (0, 2, 1),
    ]  # fmt: skip
