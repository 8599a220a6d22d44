"""Ranking against ten lines of brute force, and what its users may rely on."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup, open_features, write_features
from svll.evaluation import evaluate_ranking
from svll.evaluation.engine import (
    comparison as streaming,
)
from svll.evaluation.engine import (
    feature_rows as rows,
)
from svll.evaluation.engine import matches as matches_module
from svll.evaluation.engine import (
    products as machine,
)

MANY = settings(max_examples=1000, deadline=None, database=None, derandomize=True)


def brute_force(distances, q_ids, g_ids, q_cams, g_cams, max_rank):
    """mAP, mINP and CMC the obvious way: sort every row, walk along it."""
    precisions, penalties, cmc, skipped = [], [], np.zeros(max_rank), 0
    for q, row in enumerate(distances):
        order = [g for g in np.argsort(row, kind="stable") if g_ids[g] != -1]
        order = [g for g in order if g_ids[g] != q_ids[q] or g_cams[g] != q_cams[q]]
        ranks = [r for r, g in enumerate(order, 1) if g_ids[g] == q_ids[q]]
        if not ranks or q_ids[q] == -1:
            skipped += 1
            continue
        precisions.append(np.mean([i / r for i, r in enumerate(ranks, 1)]))
        penalties.append(len(ranks) / ranks[-1])
        cmc += np.arange(1, max_rank + 1) >= ranks[0]
    return precisions, penalties, cmc, skipped


def squared_distances(query, gallery):
    """Pair by pair in float64, so that equal rows have equal distances."""
    return ((query[:, None].astype(float) - gallery[None].astype(float)) ** 2).sum(-1)


def world(seed, queries=12, gallery=60, width=8, identities=6, cameras=3, noise=1.0):
    """Clustered features with copies among them, junk (-1) and distractors (0)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((identities, width))
    q_ids, g_ids = rng.integers(1, identities, queries), rng.integers(-1, identities, gallery)
    query = centres[q_ids] + noise * rng.standard_normal((queries, width))
    features = centres[g_ids] + noise * rng.standard_normal((gallery, width))
    copies = rng.integers(0, gallery, (2, gallery // 3))
    features[copies[0]] = features[copies[1]]
    q_cams, g_cams = rng.integers(0, cameras, queries), rng.integers(0, cameras, gallery)
    return query.astype(np.float32), features.astype(np.float32), q_ids, g_ids, q_cams, g_cams


def assert_same_metrics(result, expected):
    precisions, penalties, cmc, skipped = expected
    assert result.mAP == pytest.approx(np.mean(precisions), abs=1e-12)
    assert result.mINP == pytest.approx(np.mean(penalties), abs=1e-12)
    np.testing.assert_allclose(result.cmc, cmc / len(precisions), atol=1e-12)
    assert (result.queries, result.skipped) == (len(precisions), skipped)
    used = result.average_precision[~np.isnan(result.average_precision)]
    np.testing.assert_allclose(used, precisions, atol=1e-12)


@st.composite
def small_problems(draw):
    """Integer features, so that ties abound and every distance is exact."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries, gallery = draw(st.integers(1, 8)), draw(st.integers(1, 30))
    width, span = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    identities, cameras = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return (
        rng.integers(-span, span + 1, (queries, width)).astype(np.float32),
        rng.integers(-span, span + 1, (gallery, width)).astype(np.float32),
        rng.integers(-1, identities, queries),
        rng.integers(-1, identities, gallery),
        rng.integers(0, cameras, queries),
        rng.integers(0, cameras, gallery),
    )


@MANY
@given(small_problems(), st.integers(1, 12))
def test_metrics_equal_brute_force_on_small_cases_full_of_ties(problem, max_rank):
    expected = brute_force(squared_distances(*problem[:2]), *problem[2:], max_rank)
    if not expected[0]:
        with pytest.raises(UserError, match="no query has a match"):
            evaluate_ranking(*problem, max_rank=max_rank, normalise=False)
    else:
        result = evaluate_ranking(*problem, max_rank=max_rank, normalise=False)
        assert_same_metrics(result, expected)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("seed", range(20))
def test_metrics_of_unit_rows_equal_brute_force_with_copies_in_the_gallery(seed, metric):
    query, gallery, *labels = world(seed)
    unit = [x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (query, gallery)]
    expected = brute_force(squared_distances(*unit), *labels, 50)
    assert_same_metrics(evaluate_ranking(query, gallery, *labels, metric=metric), expected)


def test_a_case_worked_by_hand():
    gallery = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [0.5]])
    result = evaluate_ranking(
        np.array([[0.0], [9.0]]), gallery, [7, 8], [1, 7, 7, -1, 2, 7], [0, 0], [1, 1, 1, 1, 1, 0],
        normalise=False, max_rank=4,
    )  # fmt: skip
    # The last image is of the query's own camera, the fourth is junk; 1, *2*, *3*, 5 remain.
    assert result.mAP == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.mINP == pytest.approx(2 / 3)
    assert result.cmc.tolist() == [0, 1, 1, 1]
    assert (result.queries, result.skipped) == (1, 1)
    assert result.first_rank.tolist() == [2, 0]


def test_equal_distances_rank_by_gallery_index():
    query, gallery = np.ones((1, 300), np.float32), np.ones((500, 300), np.float32)
    for place in (0, 1, 250, 499):
        identities = np.zeros(500, int)
        identities[place] = 3
        result = evaluate_ranking(query, gallery, [3], identities, [0], np.ones(500, int))
        assert result.first_rank.tolist() == [place + 1]


def same_result(a, b):
    return (a.mAP, a.mINP, a.cmc.tolist()) == (b.mAP, b.mINP, b.cmc.tolist())


@pytest.mark.parametrize("normalise", [True, False])
def test_block_sizes_and_threads_do_not_change_a_digit(monkeypatch, normalise):
    problem = world(1, queries=70, gallery=400, width=96)
    whole = evaluate_ranking(*problem, normalise=normalise)
    threads = torch.get_num_threads()
    try:
        for query_block, gallery_block, matches in ((1, 7, 1), (13, 64, 500), (70, 1, 10**6)):
            monkeypatch.setattr(streaming, "QUERY_BLOCK", query_block)
            monkeypatch.setattr(streaming, "GALLERY_BLOCK", gallery_block)
            monkeypatch.setattr(matches_module, "CHUNK_MATCHES", matches)
            torch.set_num_threads(1 if matches == 1 else 3)
            assert same_result(evaluate_ranking(*problem, normalise=normalise), whole)
    finally:
        torch.set_num_threads(threads)


def test_errors_of_the_float32_product_do_not_change_a_digit(monkeypatch):
    query, gallery, *labels = world(2, queries=40, gallery=300, width=16, noise=0.001)
    exact = evaluate_ranking(query, gallery, *labels)
    rng = np.random.default_rng(0)
    plain = machine.Products.__call__

    def noisy(self, *blocks):
        product = plain(self, *blocks)
        product += rows.rounding(16) * rng.uniform(-0.9, 0.9, product.shape).astype(np.float32)
        return product

    monkeypatch.setattr(machine.Products, "__call__", noisy)
    assert same_result(evaluate_ranking(query, gallery, *labels), exact)


def test_reduced_precision_set_by_the_caller_is_ignored(monkeypatch):
    seen = []

    def watched(*operands, out):
        backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
        seen.extend(backend.fp32_precision for backend in backends)
        return plain(*operands, out=out)

    plain = torch.mm
    monkeypatch.setattr(torch, "mm", watched)
    monkeypatch.setattr(machine, "WORTH_TIMING", 0)
    monkeypatch.setattr(machine.Products, "_rates", {"torch": [0.0] * 2, "numpy": [9.0] * 2})
    query, gallery, *labels = world(3, width=64)
    exact = evaluate_ranking(query, gallery, *labels)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reduced = evaluate_ranking(torch.tensor(query), torch.tensor(gallery), *labels)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert same_result(reduced, exact)
    assert set(seen) == {"ieee"}


def test_either_library_multiplies_with_the_same_result(monkeypatch):
    problem = world(8, queries=60, gallery=500, width=200)
    monkeypatch.setattr(machine, "WORTH_TIMING", 0)
    results = []
    for chosen in ("torch", "numpy"):
        rates = {way: [1.0 - (way == chosen)] * 2 for way in ("torch", "numpy")}
        monkeypatch.setattr(machine.Products, "_rates", rates)
        results.append(evaluate_ranking(*problem))
        other = {"torch": "numpy", "numpy": "torch"}[chosen]
        assert (len(rates[chosen]), len(rates[other])) == (3, 2)
    assert same_result(*results)


def test_tensors_arrays_hdf5_datasets_and_caches_rank_alike(tmp_path):
    query, gallery, *labels = world(4)
    expected = evaluate_ranking(query, gallery, *labels)
    tensors = [torch.tensor(x) for x in (query, gallery, *labels)]
    tensors[0].requires_grad_()
    assert same_result(evaluate_ranking(*tensors), expected)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["query"], file["gallery"] = query, gallery
        assert same_result(evaluate_ranking(file["query"], file["gallery"], *labels), expected)
    sides = ("query", query, *labels[::2]), ("gallery", gallery, *labels[1::2])
    groups = {name: FeatureGroup(*content) for name, *content in sides}
    write_features(tmp_path / "cache.h5", groups, dataset="d", model="m")
    with open_features(tmp_path / "cache.h5") as file:
        stored = [file.groups[name].features for name in ("query", "gallery")]
        assert same_result(evaluate_ranking(*stored, *labels), expected)


def test_float16_features_rank_as_their_float32_values():
    query, gallery, *labels = world(5)
    query, gallery = query.astype(np.float16), gallery.astype(np.float16)
    expected = evaluate_ranking(query.astype(np.float32), gallery.astype(np.float32), *labels)
    assert same_result(evaluate_ranking(query, gallery, *labels), expected)
    assert same_result(
        evaluate_ranking(torch.tensor(query), torch.tensor(gallery), *labels), expected
    )


def test_the_length_of_rows_does_not_matter_however_short_or_long():
    query, gallery, *labels = world(9, width=40)
    expected = evaluate_ranking(query, gallery, *labels)
    for exponent in (-100, -60, 40):
        scaled = query * np.float32(2.0**exponent), gallery.copy()
        scaled[1][::3] *= np.float32(2.0**exponent)
        assert same_result(evaluate_ranking(*scaled, *labels), expected)


def test_features_are_left_as_they_were():
    query, gallery, *labels = world(6)
    copies = query.copy(), gallery.copy()
    evaluate_ranking(query, gallery, *labels)
    assert (query == copies[0]).all()
    assert (gallery == copies[1]).all()


def test_products_are_never_larger_than_one_block(monkeypatch):
    sizes = []
    plain = machine.Products.__call__

    def measured(self, *blocks):
        product = plain(self, *blocks)
        sizes.append(product.shape)
        return product

    monkeypatch.setattr(machine.Products, "__call__", measured)
    evaluate_ranking(*world(7, queries=1500, gallery=9000, width=2, identities=400))
    assert len(sizes) == 5
    assert max(a * b for a, b in sizes) <= streaming.QUERY_BLOCK * streaming.GALLERY_BLOCK


def test_rows_that_are_not_finite_are_refused_by_number():
    query, gallery, *labels = world(9)
    labels[1][:] = 1
    labels[1][0] = -1  # rows keep their own numbers although junk is left out
    gallery[[5, 40], 3] = np.nan, np.inf
    with pytest.raises(UserError, match=r"gallery features: rows 5, 40 hold NaN, infinity"):
        evaluate_ranking(query, gallery, *labels)
    query[2, 0] = -np.inf
    with pytest.raises(UserError, match=r"query features: row 2 hold"):
        evaluate_ranking(query, gallery, *labels)


def test_no_match_at_all_says_who_is_absent_and_who_is_under_one_camera():
    features = np.eye(4, dtype=np.float32)
    message = (
        "no query has a match: 1 of 3 query identities are absent from the gallery, 2 are there "
        r"under the query's own camera only; .*set protocol to all_gallery"
    )
    with pytest.raises(UserError, match=message):
        evaluate_ranking(features, features, [1, 2, 2, 3], [1, 2, 5, -1], [0] * 4, [0] * 4)
    with pytest.raises(UserError, match=r"2 of 2 query identities are absent .*same list"):
        evaluate_ranking(features[:2], features, [1, 2], [3, 4, 5, -1], [0] * 2, [0] * 4)
    with pytest.raises(UserError, match=r"every query image has identity -1 \(junk\)"):
        evaluate_ranking(features[:1], features, [-1], [3, 4, 5, -1], [0], [0] * 4)


def test_every_fault_of_the_arguments_is_named_at_once():
    with pytest.raises(UserError) as error:
        evaluate_ranking(
            np.zeros((3, 5)), np.zeros((4, 6)), [1, 2], [1, 2, 3, 4], [0, 0, 0], [0.5] * 4,
            metric="manhattan", max_rank=0,
        )  # fmt: skip
    assert str(error.value).splitlines() == [
        "query features have 5 numbers per row, gallery features 6; both must come from one model",
        "query identities have shape [2]; expected [3]",
        "gallery cameras are float64; expected integers",
        "metric 'manhattan' is unknown; choose euclidean or cosine",
        "max_rank is 0; an integer of at least 1 is needed",
    ]
    with pytest.raises(UserError, match=r"gallery features have shape \[0, 5\]"):
        evaluate_ranking(np.zeros((3, 5)), np.zeros((0, 5)), [1] * 3, [], [0] * 3, [])


def test_json_holds_fractions_and_the_ranks_that_exist():
    result = evaluate_ranking(*world(10), max_rank=5)
    values = result.as_json()
    assert values["mAP"] == result.mAP
    assert values["cmc"] == {str(rank): result.cmc[rank - 1] for rank in range(1, 6)}
    assert result.as_json((1, 5, 10))["cmc"] == {"1": result.cmc[0], "5": result.cmc[4]}
    assert values["queries"] + values["skipped"] == 12
