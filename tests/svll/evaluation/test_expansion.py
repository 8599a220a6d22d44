"""Query expansion against its definition written plainly."""

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.evaluation import QueryExpansion, evaluate_ranking


def world(seed=0, queries=15, gallery=90, width=8):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, width))
    q_ids, g_ids = rng.integers(0, 6, queries), rng.integers(-1, 6, gallery)
    query = centres[q_ids] + 1.2 * rng.standard_normal((queries, width))
    features = centres[g_ids] + 1.2 * rng.standard_normal((gallery, width))
    cameras = rng.integers(0, 3, queries), rng.integers(0, 3, gallery)
    return query.astype(np.float32), features.astype(np.float32), q_ids, g_ids, *cameras


def plainly(query, gallery, g_ids, count, alpha):
    """Each query's feature and its nearest, summed by hand; junk is no neighbour."""
    unit = [x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (query, gallery)]
    found = []
    for row in unit[0]:
        similarity = unit[1] @ row
        similarity[g_ids == -1] = -np.inf
        total = row.copy()
        for g in np.argsort(-similarity)[:count]:
            total += max(similarity[g], 0.0) ** alpha * unit[1][g]
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize(("count", "alpha"), [(1, 0.0), (5, 0.0), (5, 1.0), (8, 3.0)])
def test_queries_are_ranked_by_the_weighted_mean_of_their_neighbours(count, alpha):
    query, gallery, q_ids, g_ids, *cameras = world()
    result = evaluate_ranking(
        query, gallery, q_ids, g_ids, *cameras, expand=QueryExpansion(count, alpha), top_k=5
    )
    moved = plainly(query, gallery, g_ids, count, alpha)
    expected = evaluate_ranking(moved, gallery, q_ids, g_ids, *cameras, top_k=5)
    assert result.mAP == pytest.approx(expected.mAP, abs=1e-9)
    np.testing.assert_allclose(result.distances, expected.distances, atol=1e-5)
    assert result.mAP != evaluate_ranking(query, gallery, q_ids, g_ids, *cameras).mAP


def test_expansion_does_not_see_labels():
    query, gallery, q_ids, g_ids, *cameras = world(1)
    other = (g_ids + 1) % 6
    other[g_ids == -1] = -1
    nearest = [
        evaluate_ranking(
            query, gallery, q_ids, ids, *cameras, expand=QueryExpansion(), top_k=9,
            protocol="all_gallery",
        ).nearest.tolist()
        for ids in (g_ids, other)
    ]  # fmt: skip
    assert nearest[0] == nearest[1]


def test_impossible_settings_and_raw_lengths_are_refused():
    with pytest.raises(UserError, match=r"count is 0; .*; alpha is -1; at least 0"):
        QueryExpansion(0, -1)
    for alpha in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=rf"^query expansion: alpha is {alpha}; at least 0"):
            QueryExpansion(3, alpha)
    with pytest.raises(UserError, match="needs features of unit length"):
        evaluate_ranking(*world(), normalise=False, expand=QueryExpansion())


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_a_power_that_is_no_number_is_refused(alpha):
    with pytest.raises(UserError, match=f"alpha is {alpha}; at least 0 is needed"):
        QueryExpansion(5, alpha)
