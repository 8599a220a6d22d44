"""The nearest of each query against a full sort, whatever the blocks, filters and settings."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from svll.evaluation import KReciprocal, evaluate_ranking
from svll.evaluation.engine import (
    comparison as streaming,
)
from svll.evaluation.engine import (
    feature_rows as rows,
)
from svll.evaluation.engine import (
    products as machine,
)

MANY = settings(max_examples=200, deadline=None, database=None, derandomize=True)


def problem(seed, queries=9, gallery=50, width=3, span=2, identities=5, cameras=3):
    """Whole-number features, so that distances are exact and often equal."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-span, span + 1, (queries, width)).astype(np.float32),
        rng.integers(-span, span + 1, (gallery, width)).astype(np.float32),
        rng.integers(-1, identities, queries), rng.integers(-1, identities, gallery),
        rng.integers(0, cameras, queries), rng.integers(0, cameras, gallery),
    )  # fmt: skip


def ranked(q, query, gallery, q_ids, g_ids, q_cams, g_cams, *, protocol="cross_camera"):
    """The gallery rows that query q ranks, by a full sort, and their distances."""
    if q_ids[q] == -1:
        return np.array([], int), np.array([])
    distance = np.sqrt(((query[q].astype(float) - gallery.astype(float)) ** 2).sum(1))
    kept = g_ids != -1
    near = (g_ids == q_ids[q]) & (g_cams == q_cams[q])
    if protocol == "other_cameras":
        kept &= g_cams != q_cams[q]
    elif protocol == "cross_camera":
        kept &= ~near
    elif len(own := np.flatnonzero(near & (gallery == query[q]).all(1))):
        kept[own[0]] = False
    order = [g for g in np.argsort(distance, kind="stable") if kept[g]]
    return np.array(order, int), distance[order]


def assert_nearest(result, given, count, **how):
    for q in range(len(given[0])):
        order, distance = ranked(q, *given, **how)
        wanted = np.full(count, -1)
        wanted[: min(count, len(order))] = order[:count]
        assert result.nearest[q].tolist() == wanted.tolist()
        np.testing.assert_allclose(
            result.distances[q][: len(order)], distance[:count], atol=1e-6
        )
        assert np.isinf(result.distances[q][len(order) :]).all()


@MANY
@given(
    st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 50),
    st.sampled_from(["cross_camera", "other_cameras", "all_gallery"]),
)
def test_the_nearest_are_those_of_a_full_sort_with_ties_and_junk(seed, count, gallery, protocol):
    given_ = problem(seed, gallery=gallery)
    orders = [ranked(q, *given_, protocol=protocol)[0] for q in range(len(given_[0]))]
    assume(any((given_[3][order] == given_[2][q]).any() for q, order in enumerate(orders)))
    result = evaluate_ranking(*given_, normalise=False, top_k=count, protocol=protocol)
    kept = min(count, int((given_[3] != -1).sum()))
    assert_nearest(result, given_, kept, protocol=protocol)


def test_more_copies_than_spare_candidates_are_told_by_their_index():
    query = np.ones((1, 40), np.float32)
    gallery = np.ones((300, 40), np.float32)
    gallery[100] = -1
    ids = np.zeros(300, int)
    result = evaluate_ranking(query, gallery, [0], ids, [0], np.ones(300, int), top_k=5)
    assert result.nearest.tolist() == [[0, 1, 2, 3, 4]]
    cams = np.ones(300, int)
    cams[:3] = 0
    across = evaluate_ranking(
        query, gallery, [0], ids, [0], cams, top_k=5, protocol="other_cameras"
    )
    assert across.nearest.tolist() == [[3, 4, 5, 6, 7]]


def test_a_gallery_of_other_cameras_is_one_without_the_querys_camera():
    query, gallery, q_ids, g_ids, q_cams, g_cams = problem(3, queries=30, gallery=200)
    result = evaluate_ranking(
        query, gallery, q_ids, g_ids, q_cams, g_cams, normalise=False, protocol="other_cameras"
    )
    precisions = np.full(len(query), np.nan)
    for q in range(len(query)):
        order, _ = ranked(q, query, gallery, q_ids, g_ids, q_cams, g_cams, protocol="other_cameras")
        hits = np.flatnonzero(g_ids[order] == q_ids[q])
        if len(hits):
            precisions[q] = np.mean(np.arange(1, len(hits) + 1) / (hits + 1))
    np.testing.assert_allclose(result.average_precision, precisions, atol=1e-12)
    plain = evaluate_ranking(query, gallery, q_ids, g_ids, q_cams, g_cams, normalise=False)
    assert plain.mAP != result.mAP


def test_blocks_threads_and_product_errors_do_not_change_the_nearest(monkeypatch):
    rng = np.random.default_rng(1)
    query, gallery = rng.standard_normal((20, 16)), rng.standard_normal((200, 16))
    gallery[100:] = gallery[:100] + 1e-6 * rng.standard_normal((100, 16))  # all but copies
    labels = [rng.integers(0, 4, n) for n in (20, 200, 20, 200)]
    whole = evaluate_ranking(query, gallery, *labels, top_k=7)
    plain = machine.Products.__call__

    def noisy(self, *blocks):
        product = plain(self, *blocks)
        product += rows.rounding(16) * rng.uniform(-0.9, 0.9, product.shape).astype(np.float32)
        return product

    monkeypatch.setattr(machine.Products, "__call__", noisy)
    threads = torch.get_num_threads()
    try:
        for query_block, gallery_block, count in ((3, 7, 2), (20, 200, 1), (1, 64, 3)):
            monkeypatch.setattr(streaming, "QUERY_BLOCK", query_block)
            monkeypatch.setattr(streaming, "GALLERY_BLOCK", gallery_block)
            torch.set_num_threads(count)
            again = evaluate_ranking(query, gallery, *labels, top_k=7)
            np.testing.assert_array_equal(again.nearest, whole.nearest)
            np.testing.assert_array_equal(again.distances, whole.distances)
    finally:
        torch.set_num_threads(threads)


def test_cosine_distances_are_one_minus_the_similarity():
    query, gallery, *labels = problem(5, width=6)
    result = evaluate_ranking(query, gallery, *labels, metric="cosine", top_k=3)
    for q in np.flatnonzero(labels[0] != -1):
        for g, distance in zip(result.nearest[q], result.distances[q], strict=True):
            a, b = query[q].astype(float), gallery[g].astype(float)
            norms = np.linalg.norm(a) * np.linalg.norm(b)
            similarity = a @ b / norms if norms else 0.0
            assert distance == pytest.approx(1 - similarity, abs=1e-6)


def test_re_ranked_neighbours_stand_in_the_order_of_the_final_distance():
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((5, 6))
    q_ids, g_ids = rng.integers(0, 5, 10), rng.integers(0, 5, 80)
    query = centres[q_ids] + rng.standard_normal((10, 6))
    gallery = centres[g_ids] + rng.standard_normal((80, 6))
    result = evaluate_ranking(
        query, gallery, q_ids, g_ids, np.zeros(10, int), np.ones(80, int),
        rerank=KReciprocal(8, 3), top_k=80,
    )  # fmt: skip
    assert (np.diff(result.distances, axis=1) >= 0).all()
    assert (result.distances >= -1e-9).all()
    assert (result.distances <= 1 + 1e-6).all()
    for q in range(10):  # ranks by the list are the ranks that were counted
        hits = np.flatnonzero(g_ids[result.nearest[q]] == q_ids[q]) + 1
        precision = np.mean(np.arange(1, len(hits) + 1) / hits)
        assert result.average_precision[q] == pytest.approx(precision, abs=1e-12)


def test_a_negative_number_of_nearest_is_refused():
    with pytest.raises(UserError, match="top_k is -1"):
        evaluate_ranking(*problem(0), top_k=-1)
