"""Re-ranking against the paper's equations on dense matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from svll.evaluation import KReciprocal, evaluate_ranking, ranking, rerank, reranking
from svll.evaluation.engine import feature_rows as rows
from svll.evaluation.engine import products as machine
from svll.evaluation.engine.shared_work import Share
from tests.svll.evaluation.pairs import pair_of

SETTINGS = [(20, 6, 0.3), (7, 3, 0.3), (5, 1, 0.0), (4, 6, 0.7), (1, 2, 0.5), (200, 200, 0.3)]


def dense_distances(query, gallery, k1, k2, weight):
    """Final distances [Q, G] by eq. 2, 4, 7, 10, 11 and 12, one image at a time, in float64."""
    x = np.concatenate([query, gallery]).astype(float)
    d = ((x[:, None] - x[None]) ** 2).sum(-1)
    d = d / d.max(axis=1, keepdims=True)
    order = np.argsort(d - np.eye(len(x)), axis=1, kind="stable")  # oneself first

    def near(i, k):
        return set(order[i, : k + 1].tolist())

    def mutual(i, k):
        return {j for j in near(i, k) if i in near(j, k)}

    v = np.zeros_like(d)
    for i in range(len(x)):
        core = mutual(i, k1)
        members = set(core)
        for j in core:
            small = mutual(j, round(k1 / 2))
            if len(small & core) > 2 / 3 * len(small):
                members |= small
        members = sorted(members)
        v[i, members] = np.exp(-d[i, members])
        v[i] /= v[i].sum()
    if k2 > 1:
        v = np.stack([v[order[i, :k2]].mean(axis=0) for i in range(len(x))])
    count = len(query)
    lowest = np.minimum(v[:count, None], v[None, count:]).sum(-1)
    highest = np.maximum(v[:count, None], v[None, count:]).sum(-1)
    return (1 - weight) * (1 - lowest / highest) + weight * d[:count, count:]


def our_distances(query, gallery, options, *, unit=False):
    """The final distances that ranking works with, made dense."""
    plain = [np.zeros(len(x), np.int64) for x in (query, gallery)]
    sides = [
        rows.Rows(name, features, labels, labels, unit=unit)
        for name, features, labels in zip("qg", (query, gallery), plain, strict=True)
    ]
    found = reranking.Neighbours(*sides, [options], machine.Products(), Share())
    result = found.rerank(options)
    _, offsets, columns, values = result.extras(0, len(query))
    bonus = np.zeros((len(query), len(gallery)))
    for q in range(len(query)):
        listed = columns[offsets[q] : offsets[q + 1]]
        assert (np.diff(listed) > 0).all()  # ranking searches these lists
        bonus[q, listed] = values[offsets[q] : offsets[q + 1]]
    prepared = [side.block(0, len(side)) for side in sides]
    x, y = (block.features.astype(float) for block in prepared)
    plain = x @ y.T - prepared[1].half
    return result.offset[:, None] - result.scale[:, None] * plain - bonus


def noisy_products(width):
    """A replacement for Products.__call__ that errs as much as float32 may."""
    rng, plain = np.random.default_rng(0), machine.Products.__call__

    def noisy(self, *blocks):
        product = plain(self, *blocks)
        product += rows.rounding(width) * rng.uniform(-0.9, 0.9, product.shape).astype(np.float32)
        return product

    return noisy


def clusters(seed, queries=15, gallery=60, width=6, identities=7):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((identities, width))
    ids = rng.integers(0, identities, queries), rng.integers(0, identities, gallery)
    query, features = (
        (centres[i] + 0.8 * rng.standard_normal((len(i), width))).astype(np.float32) for i in ids
    )
    cameras = rng.integers(0, 3, queries), rng.integers(0, 3, gallery)
    return query, features, *ids, *cameras


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_distances_equal_the_dense_computation(seed, options):
    query, gallery, *_ = clusters(seed)
    expected = dense_distances(query, gallery, *options)
    np.testing.assert_allclose(
        our_distances(query, gallery, KReciprocal(*options)), expected, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_scaled_to_unit_length_first(seed):
    query, gallery, *_ = clusters(seed)
    unit = [x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (query, gallery)]
    ours = our_distances(7 * query, gallery, KReciprocal(6, 3), unit=True)
    np.testing.assert_allclose(ours, dense_distances(*unit, 6, 3, 0.3), atol=1e-6)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 6), st.integers(1, 3))
def test_copies_are_neighbours_in_the_order_of_their_index(seed, k1, k2, span):
    rng = np.random.default_rng(seed)
    points = rng.integers(-span, span + 1, (24, 2)).astype(np.float32)
    points[0] = span + 1  # so that not all are the same
    ours = our_distances(points[:8], points[8:], KReciprocal(k1, k2))
    np.testing.assert_allclose(
        ours, dense_distances(points[:8], points[8:], k1, k2, 0.3), atol=1e-6
    )


def test_more_copies_than_spare_candidates_lose_no_neighbour():
    rng = np.random.default_rng(0)
    points = np.repeat(rng.standard_normal((4, 3)), 40, axis=0).astype(np.float32)
    points = points[rng.permutation(len(points))]
    ours = our_distances(points[:10], points[10:], KReciprocal(12, 4))
    np.testing.assert_allclose(
        ours, dense_distances(points[:10], points[10:], 12, 4, 0.3), atol=1e-6
    )


def test_neighbours_are_exact_where_float32_cannot_tell_more_images_apart_than_are_kept(
    monkeypatch,
):
    rng = np.random.default_rng(0)
    points = (rng.standard_normal(16) + 1e-6 * rng.standard_normal((120, 16))).astype(np.float32)
    labels = np.zeros(120, np.int64)
    block = rows.Rows("q", points, labels, labels, unit=True).block(0, 120)
    exact = block.features.astype(float) @ block.features.T.astype(float)
    least = exact.min(axis=1)
    np.fill_diagonal(exact, 2)  # oneself first
    monkeypatch.setattr(machine.Products, "__call__", noisy_products(16))
    nearest, _, farthest = reranking._neighbours(block, 10, machine.Products(), Share(), None)
    np.testing.assert_array_equal(nearest, np.argsort(-exact, axis=1, kind="stable")[:, :10])
    np.testing.assert_allclose(farthest, least, rtol=1e-15)


def test_images_that_are_all_the_same_are_all_at_the_same_distance():
    ones = np.ones((30, 5), np.float32)
    ours = our_distances(ones[:4], ones[4:], KReciprocal(5, 2), unit=True)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_metrics_follow_the_final_distance(seed, weight):
    query, gallery, q_ids, g_ids, q_cams, g_cams = problem = clusters(seed)
    d = our_distances(query, gallery, KReciprocal(7, 3, weight), unit=True)
    precisions = []
    for q, row in enumerate(np.round(d, 12)):
        order = np.argsort(row, kind="stable")
        order = order[(g_ids[order] != q_ids[q]) | (g_cams[order] != q_cams[q])]
        ranks = np.flatnonzero(g_ids[order] == q_ids[q]) + 1
        precisions += [np.mean(np.arange(1, len(ranks) + 1) / ranks)] if len(ranks) else []
    result = evaluate_ranking(*problem, rerank=KReciprocal(7, 3, weight))
    assert result.mAP == pytest.approx(np.mean(precisions), abs=1e-12)


def test_all_weight_on_the_original_distance_is_plain_ranking():
    problem = clusters(1)
    plain = evaluate_ranking(*problem)
    again = evaluate_ranking(*problem, rerank=KReciprocal(weight=1.0))
    assert (plain.mAP, plain.cmc.tolist()) == (again.mAP, again.cmc.tolist())


def test_reranking_helps_where_neighbours_agree():
    problem = clusters(2, queries=60, gallery=400)
    plain = evaluate_ranking(*problem)
    assert evaluate_ranking(*problem, rerank=KReciprocal()).mAP > plain.mAP + 0.02


def test_each_of_many_settings_gives_what_it_gives_alone():
    problem = clusters(5, queries=40, gallery=150)
    settings = [
        None, KReciprocal(7, 3), KReciprocal(7, 1), KReciprocal(4, 3), KReciprocal(7, 3, 0.6),
        KReciprocal(7, 5),
    ]
    together = ranking.evaluate_settings(pair_of(*problem), settings)
    alone = [evaluate_ranking(*problem, rerank=setting) for setting in settings]
    assert [one.as_json() for one in together] == [one.as_json() for one in alone]
    assert len({one.mAP for one in alone}) == len(settings)


def test_block_sizes_threads_kept_products_and_their_errors_do_not_change_a_digit(monkeypatch):
    problem = clusters(3, queries=40, gallery=150)
    whole = evaluate_ranking(*problem, rerank=KReciprocal(10, 4))
    monkeypatch.setattr(machine.Products, "__call__", noisy_products(6))
    threads = torch.get_num_threads()
    try:
        for block, count, kept in ((190, 1, 0), (64, 3, 10**6), (7, 2, 0), (7, 2, 10**6)):
            monkeypatch.setattr(reranking, "BLOCK", block)
            monkeypatch.setattr(reranking, "KEPT_BYTES", kept)
            torch.set_num_threads(count)
            again = evaluate_ranking(*problem, rerank=KReciprocal(10, 4))
            assert (whole.mAP, whole.cmc.tolist()) == (again.mAP, again.cmc.tolist())
    finally:
        torch.set_num_threads(threads)


def test_junk_takes_no_part_in_neighbourhoods():
    query, gallery, q_ids, g_ids, q_cams, g_cams = clusters(4)
    junk = np.arange(60) % 3 == 0
    without = evaluate_ranking(
        query, gallery[~junk], q_ids, g_ids[~junk], q_cams, g_cams[~junk], rerank=KReciprocal(8, 3)
    )
    marked = evaluate_ranking(
        query, gallery, q_ids, np.where(junk, -1, g_ids), q_cams, g_cams, rerank=KReciprocal(8, 3)
    )
    assert (without.mAP, without.cmc.tolist()) == (marked.mAP, marked.cmc.tolist())


def test_impossible_settings_are_refused_together():
    with pytest.raises(UserError, match=r"k1 is 0; an integer.*; k2 is -1.*; weight is 1.5; it"):
        KReciprocal(0, -1, 1.5)
    with pytest.raises(UserError, match="k1 is True; an integer"):
        KReciprocal(True)
    assert str(KReciprocal(np.int64(20), 6, np.float32(0.3))) == str(KReciprocal())


def test_lists_instead_of_features_are_refused_with_what_to_give():
    with pytest.raises(UserError, match="query features are of type list; give an array or tensor"):
        rerank([[1.0, 0.0]], [[1.0, 0.0]])
