"""Verification against all pairs written out, and what its users may rely on."""

import json

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from svll.evaluation import verification
from svll.evaluation.engine import (
    feature_rows as rows,
)
from svll.evaluation.engine import (
    pair_histogram as histograms,
)
from svll.evaluation.engine import (
    products as machine,
)
from svll.evaluation.engine.pair_histogram import BINS, EDGES, SCALE
from svll.evaluation.verification import Verification
from tests.svll.evaluation.pairs import pair_of

MANY = settings(max_examples=120, deadline=None, database=None, derandomize=True)
RATES = (1e-1, 1e-2, 1e-3, 1e-4)


def all_pairs(query, gallery, q_ids, g_ids, q_cams, g_cams, protocol="cross_camera"):
    """Similarities of genuine and of impostor pairs, the obvious way, in float64."""
    unit = []
    for x in (query, gallery):
        norms = np.linalg.norm(x.astype(float), axis=1, keepdims=True)
        unit.append(x / np.where(norms > 0, norms, 1))
    genuine, impostor = [], []
    for q, a in enumerate(unit[0]):
        own = protocol == "all_gallery"  # whether its own image may still come
        for g, b in enumerate(unit[1]):
            if q_ids[q] == -1 or g_ids[g] == -1:
                continue
            same_camera = q_cams[q] == g_cams[g]
            if protocol == "other_cameras" and same_camera:
                continue
            if q_ids[q] != g_ids[g]:
                impostor.append((a * b).sum())
            elif own and same_camera and (query[q] == gallery[g]).all():
                own = False
            elif protocol == "all_gallery" or not same_camera:
                genuine.append((a * b).sum())
    return np.array(genuine), np.array(impostor)


def histogram(similarities):
    """[BINS]; np.histogram counts what lies on an edge to the right of it."""
    return np.histogram(similarities, EDGES)[0]


def world(seed, queries=12, gallery=60, width=8, identities=6, cameras=3, noise=1.0):
    """Clustered features with junk (-1) and distractors (0)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((identities, width))
    q_ids, g_ids = rng.integers(1, identities, queries), rng.integers(-1, identities, gallery)
    query = centres[q_ids] + noise * rng.standard_normal((queries, width))
    features = centres[g_ids] + noise * rng.standard_normal((gallery, width))
    q_cams, g_cams = rng.integers(0, cameras, queries), rng.integers(0, cameras, gallery)
    return query.astype(np.float32), features.astype(np.float32), q_ids, g_ids, q_cams, g_cams


def verify(*arrays, protocol="cross_camera"):
    return verification.verify(pair_of(*arrays), protocol=protocol)


def assert_same_counts(a, b):
    np.testing.assert_array_equal(a.genuine, b.genuine)
    np.testing.assert_array_equal(a.impostor, b.impostor)


@st.composite
def signs(draw):
    """Rows of 1 and -1, 16 wide: every similarity is n / 8, the centre of a bin, and exact."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries, gallery = draw(st.integers(1, 8)), draw(st.integers(1, 30))
    identities, cameras = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    return (
        rng.choice(np.float32([-1, 1]), (queries, 16)),
        rng.choice(np.float32([-1, 1]), (gallery, 16)),
        rng.integers(-1, identities, queries),
        rng.integers(-1, identities, gallery),
        rng.integers(0, cameras, queries),
        rng.integers(0, cameras, gallery),
    )


@MANY
@given(signs(), st.sampled_from(["cross_camera", "other_cameras", "all_gallery"]))
def test_rates_equal_those_of_all_pairs_on_small_cases_full_of_ties(problem, protocol):
    genuine, impostor = all_pairs(*problem, protocol)
    if not len(genuine) or not len(impostor):
        with pytest.raises(UserError, match="there are no"):
            verify(*problem, protocol=protocol)
        return
    found = verify(*problem, protocol=protocol)
    assert (found.genuine_pairs, found.impostor_pairs) == (len(genuine), len(impostor))
    for threshold in np.arange(-17, 18) / 16:  # between the values
        rates = found.at(np.clip(threshold, -1, 1))
        tp, fp = (genuine >= threshold).sum(), (impostor >= threshold).sum()
        assert (rates.tpr, rates.fpr) == (tp / len(genuine), fp / len(impostor))
        assert rates.precision == (tp / (tp + fp) if tp + fp else None)
        right = tp + len(impostor) - fp
        assert rates.accuracy == right / (len(genuine) + len(impostor))
    better = (genuine[:, None] > impostor) + 0.5 * (genuine[:, None] == impostor)
    assert found.auc == pytest.approx(better.mean(), abs=1e-12)
    for rate in RATES:
        possible = [t for t in np.arange(-17, 18) / 16 if (impostor >= t).mean() <= rate]
        expected = max((genuine >= t).mean() for t in [*possible, 2])
        if len(impostor) * rate < 1:
            assert found.tpr_at(rate) is None
        else:
            assert found.tpr_at(rate) == expected


@pytest.mark.parametrize("protocol", ["cross_camera", "other_cameras", "all_gallery"])
@pytest.mark.parametrize("seed", range(7))
def test_every_pair_is_in_the_bin_of_its_similarity(seed, protocol):
    problem = world(seed, queries=40, gallery=150, width=67)
    genuine, impostor = all_pairs(*problem, protocol)
    found = verify(*problem, protocol=protocol)
    # rows are rounded to float32 when scaled, so pairs within 1e-7 of an edge may cross it
    for counts, similarities in ((found.genuine, genuine), (found.impostor, impostor)):
        assert counts.sum() == len(similarities)
        below = np.cumsum(counts)
        low, high = (np.cumsum(histogram(similarities + d)) for d in (2e-7, -2e-7))
        assert (low <= below).all()
        assert (below <= high).all()


@pytest.mark.parametrize("seed", range(5))
def test_curve_and_rates_equal_those_of_sorted_scores_up_to_the_resolution(seed):
    problem = world(seed, queries=60, gallery=300, width=32, noise=0.9)
    genuine, impostor = all_pairs(*problem)
    found = verify(*problem)
    bin_width = 1 / SCALE + 1e-6
    for rate in RATES[:3]:
        threshold = found.threshold_at(rate)
        assert (impostor >= threshold + 1e-6).mean() <= rate
        assert (impostor >= threshold - bin_width).mean() > rate  # one step lower is too low
        assert (genuine >= threshold + 1e-6).mean() <= found.tpr_at(rate)
        assert found.tpr_at(rate) <= (genuine >= threshold - 1e-6).mean()
    better = (genuine[:, None] > impostor).mean()
    assert found.auc == pytest.approx(better, abs=1e-3)
    steps = np.linspace(-1, 1, 20001)
    fpr, fnr = ([(x >= t).mean() for t in steps] for x in (impostor, genuine))
    nearest = np.argmin(np.abs(np.array(fpr) - (1 - np.array(fnr))))
    assert found.eer == pytest.approx(fpr[nearest], abs=2 / len(genuine) + 1e-3)
    assert found.eer_threshold == pytest.approx(steps[nearest], abs=0.01)


def test_the_curve_has_every_turn_and_the_thresholds_of_its_points():
    found = verify(*world(3, queries=30, gallery=100))
    roc = found.roc
    assert (roc.fpr[0], roc.tpr[0]) == (0, 0)
    assert (roc.fpr[-1], roc.tpr[-1]) == (1, 1)
    assert (np.diff(roc.thresholds) < 0).all()
    assert len(roc.fpr) < BINS / 2
    for fpr, tpr, threshold in zip(roc.fpr, roc.tpr, roc.thresholds, strict=True):
        rates = found.at(threshold)
        assert (rates.fpr, rates.tpr, rates.threshold) == (fpr, tpr, threshold)
    # all thresholds lie on the curve's lines: the area below it is the same
    assert np.trapezoid(roc.tpr, roc.fpr) == pytest.approx(found.auc, abs=1e-12)
    for threshold in EDGES:
        rates = found.at(np.clip(threshold, -1, 1))
        low = np.interp(rates.fpr - 1e-12, roc.fpr, roc.tpr)
        high = np.interp(rates.fpr + 1e-12, roc.fpr, roc.tpr)
        assert low - 1e-9 <= rates.tpr <= high + 1e-9


def counted(genuine, impostor):
    """Verification of pairs at the centres given, as whole numbers -SCALE to SCALE."""
    return Verification(
        *(np.bincount(np.array(x) + SCALE, minlength=BINS) for x in (genuine, impostor))
    )


def test_a_case_worked_by_hand():
    found = counted([100, 300, 500, 700], [0, 0, 0, 200, 400])
    assert found.auc == pytest.approx((3 + 4 + 5 + 5) / 20)
    assert found.tpr_at(0.2) == 0.75  # one of five impostors is accepted: those at 300 or more
    assert found.threshold_at(0.2) == (200 + 0.5) / SCALE
    # accepting from 300: FPR 1/5, FNR 1/4; from 200: FPR 2/5, FNR 1/4; they meet in between
    assert found.eer == pytest.approx(0.25)
    assert found.eer_threshold == pytest.approx((200.5 - 0.25) / SCALE)
    rates = found.at(0.2)  # 409.6 bins: the last impostor is below
    assert (rates.tpr, rates.fpr, rates.precision) == (0.5, 0, 1)
    assert rates.accuracy == 7 / 9
    assert rates.balanced_accuracy == 0.75
    assert rates.distance == pytest.approx(np.sqrt(2 - 2 * rates.threshold))
    assert found.at(1).precision is None


def test_two_sides_apart_have_no_error_and_a_threshold_midway():
    found = counted([1000, 1100], [0, 200])
    assert (found.auc, found.eer) == (1, 0)
    assert found.eer_threshold == 600 / SCALE
    assert (found.roc.fpr.tolist(), found.roc.tpr.tolist()) == ([0, 0, 1], [0, 1, 1])


def test_a_threshold_found_on_one_file_is_applied_to_another():
    first, second = verify(*world(0, noise=0.5)), verify(*world(1, noise=0.7))
    threshold = first.threshold_at(0.1)
    assert first.at(threshold).fpr <= 0.1
    genuine, impostor = all_pairs(*world(1, noise=0.7))
    assert second.at(threshold).tpr == pytest.approx((genuine >= threshold).mean(), abs=1e-12)
    assert second.at(threshold).fpr == pytest.approx((impostor >= threshold).mean(), abs=1e-12)


# ---- the same counts, whatever the way ----


def test_blocks_threads_and_errors_of_the_product_do_not_change_a_count(monkeypatch):
    problem = world(1, queries=70, gallery=400, width=96)
    whole = verify(*problem)
    plain, threads = machine.Products.__call__, torch.get_num_threads()
    rng = np.random.default_rng(0)

    def noisy(self, *blocks):
        product = plain(self, *blocks)
        product += rows.rounding(96) * rng.uniform(-0.95, 0.95, product.shape).astype(np.float32)
        return product

    monkeypatch.setattr(machine.Products, "__call__", noisy)
    try:
        for queries, held, gallery in ((1, 96, 1), (13, 96 * 20, 64), (70, 96 * 100, 400)):
            monkeypatch.setattr(histograms, "QUERY_BLOCK", queries)
            monkeypatch.setattr(histograms, "QUERY_NUMBERS", held)
            monkeypatch.setattr(histograms, "GALLERY_BLOCK", gallery)
            torch.set_num_threads(1 if queries == 1 else 3)
            assert_same_counts(verify(*problem), whole)
    finally:
        torch.set_num_threads(threads)


def test_errors_that_turn_up_late_do_not_change_a_count(monkeypatch):
    problem = world(8, queries=64, gallery=4000, width=24)
    whole, plain, made = verify(*problem), machine.Products.__call__, []
    margins, tried = [], histograms.Margin.holds

    def noisy_later(self, *blocks):
        product = plain(self, *blocks)
        made.append(len(product))
        if len(made) > 20:
            product += rows.rounding(24) * np.where(np.arange(product.shape[1]) % 2, 0.95, -0.95)
        return product.astype(np.float32)

    def watched(self, used, seen, largest):
        margins.append((used / self.most, tried(self, used, seen, largest)))
        return margins[-1][1]

    monkeypatch.setattr(machine.Products, "__call__", noisy_later)
    monkeypatch.setattr(histograms.Margin, "holds", watched)
    monkeypatch.setattr(histograms, "SAMPLE", 100)
    monkeypatch.setattr(histograms, "GALLERY_BLOCK", 100)
    assert_same_counts(verify(*problem), whole)
    used = [share for share, _ in margins]
    assert used[0] == used[-1] == 1
    assert min(used) < 0.5  # it was small for a while
    assert not all(kept for _, kept in margins)  # and what it was too small for was done again


def test_pairs_on_an_edge_are_decided_alike_by_blocks_of_any_shape(monkeypatch):
    query = np.float32([[0.8, 0.6, 0, 0]] * 5)
    steps = np.arange(-300, 300)
    gallery = np.stack([EDGES[steps + 2048], np.sqrt(1 - EDGES[steps + 2048] ** 2)], axis=1)
    turned = np.stack([gallery @ [0.8, -0.6], gallery @ [0.6, 0.8]], axis=1)
    gallery = np.concatenate([turned, np.zeros((600, 2))], axis=1).astype(np.float32)
    labels = np.arange(5), np.arange(600), np.zeros(5, int), np.ones(600, int)
    whole = verify(query, gallery, *labels)
    for size in (1, 7, 599):
        monkeypatch.setattr(histograms, "GALLERY_BLOCK", size)
        monkeypatch.setattr(histograms, "QUERY_BLOCK", size)
        assert_same_counts(verify(query, gallery, *labels), whole)


def test_shards_of_either_side_add_to_the_whole():
    query, gallery, q_ids, g_ids, q_cams, g_cams = world(2, queries=30, gallery=90)
    whole = verify(query, gallery, q_ids, g_ids, q_cams, g_cams)
    total = Verification(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64))
    for q in np.array_split(np.arange(30), 3):
        for g in np.array_split(np.arange(90), 40):  # most have no genuine pair
            part = pair_of(query[q], gallery[g], q_ids[q], g_ids[g], q_cams[q], g_cams[g])
            total = total + verification.count_pairs(part)
    assert_same_counts(total, whole)
    assert total.as_json() == whole.as_json()


def test_tensors_arrays_halves_and_hdf5_datasets_count_alike(tmp_path):
    query, gallery, *labels = world(4)
    query, gallery = query.astype(np.float16), gallery.astype(np.float16)
    expected = verify(query.astype(np.float32), gallery.astype(np.float32), *labels)
    assert_same_counts(verify(query, gallery, *labels), expected)
    tensors = [torch.tensor(x) for x in (query, gallery, *labels)]
    assert_same_counts(verify(*tensors), expected)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["query"], file["gallery"] = query, gallery
        assert_same_counts(verify(file["query"], file["gallery"], *labels), expected)


def test_no_more_than_a_block_is_read_or_multiplied_at_a_time(monkeypatch):
    problem = world(5, queries=300, gallery=2000, width=16)
    read, made = [], []

    class Watched:
        def __init__(self, array):
            self.array, self.shape = array, array.shape

        def __getitem__(self, part):
            read.append(len(self.array[part]))
            return self.array[part]

    def measured(self, *blocks):
        made.append(plain(self, *blocks).shape)
        return plain(self, *blocks)

    plain = machine.Products.__call__
    monkeypatch.setattr(machine.Products, "__call__", measured)
    monkeypatch.setattr(histograms, "QUERY_BLOCK", 50)
    monkeypatch.setattr(histograms, "QUERY_NUMBERS", 16 * 100)
    monkeypatch.setattr(histograms, "GALLERY_NUMBERS", 16 * 128)
    found = verify(Watched(problem[0]), Watched(problem[1]), *problem[2:])
    assert max(read) <= 200  # 128 and the junk among them
    assert made
    assert all(a <= 50 and b <= 128 for a, b in made)
    monkeypatch.undo()
    assert_same_counts(found, verify(*problem))


def test_rows_of_zeros_are_alike_to_nothing():
    found = verify(np.zeros((1, 3)), np.eye(3), [1], [1, 2, 3], [0], [1, 1, 1])
    assert found.genuine[SCALE] == 1
    assert found.impostor[SCALE] == 2


# ---- what cannot be told ----


def test_too_few_impostor_pairs_give_none_and_the_reason():
    found = counted([5] * 4, [0] * 1000)
    assert found.tpr_at(1e-3) == 1
    assert found.tpr_at(1e-4) is None
    assert found.threshold_at(1e-4) is None
    reason = "FPR 0.0001 needs at least 10,000 impostor pairs, there are 1,000"
    assert found.shortage(1e-4) == reason
    assert found.as_json()["notes"] == [reason]
    assert found.as_json()["tpr_at_fpr"]["0.0001"] is None
    assert found.shortage(1e-3) is None


def test_json_is_plain_and_holds_both_kinds_of_threshold():
    values = json.loads(json.dumps(verify(*world(6)).as_json()))
    assert set(values) == {
        "auc", "eer", "eer_threshold", "tpr_at_fpr", "genuine_pairs", "impostor_pairs", "notes",
    }  # fmt: skip
    at = values["tpr_at_fpr"]["0.1"]
    assert at["fpr"] <= 0.1
    assert at["distance"] == pytest.approx(np.sqrt(2 - 2 * at["threshold"]))
    assert set(values["eer_threshold"]) == {"similarity", "distance"}


def test_without_genuine_or_impostor_pairs_the_reason_is_told():
    features = np.eye(4, dtype=np.float32)
    with pytest.raises(UserError, match=r"1 of 3 query .*, 2 .*own camera only; .*all_gallery"):
        verify(features, features, [1, 2, 2, 3], [1, 2, 5, -1], [0] * 4, [0] * 4)
    with pytest.raises(UserError, match=r"2 of 2 query identities are absent .*same list"):
        verify(features[:2], features, [1, 2], [3, 4, 5, -1], [0] * 2, [0] * 4)
    with pytest.raises(UserError, match=r"every gallery image has identity -1 \(junk\)"):
        verify(features[:2], features, [1, 2], [-1] * 4, [0] * 2, [0] * 4)
    with pytest.raises(UserError, match=r"no impostor pairs: .* one and the same identity \(7\)"):
        verify(features[:2], features, [7, 7], [7] * 4, [0] * 2, [1] * 4)
    apart = pair_of(features[:2], features, [1, 2], [3, 4, 5, -1], [0] * 2, [0] * 4)
    empty = verification.count_pairs(apart)
    with pytest.raises(UserError, match="there are no genuine pairs"):
        _ = empty.eer


def test_every_fault_of_the_arguments_is_named_at_once():
    with pytest.raises(UserError) as error:
        verify(
            np.zeros((3, 5)), np.zeros((4, 6)), [1, 2], [1, 2, 3, 4], [0, 0, 0], [0.5] * 4,
        )  # fmt: skip
    assert str(error.value).splitlines() == [
        "query features have 5 numbers per row, gallery features 6; both must come from one model",
        "query identities have shape [2]; expected [3]",
        "gallery cameras are float64; expected integers",
    ]
    with pytest.raises(UserError, match=r"gallery features have shape \[0, 5\]"):
        verify(np.zeros((3, 5)), np.zeros((0, 5)), [1] * 3, [], [0] * 3, [])
    query, gallery, *labels = world(9)
    query[2, 0] = np.nan
    with pytest.raises(UserError, match=r"query features: row 2 hold"):
        verify(query, gallery, *labels)


def test_thresholds_and_rates_that_cannot_be_are_refused():
    found = verify(*world(7))
    for threshold in (1.5, -1.01, float("nan")):
        with pytest.raises(UserError, match=r"is the similarity 1 - d \* d / 2"):
            found.at(threshold)
    for rate in (0.0, -1, 1.5, float("nan")):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            found.tpr_at(rate)


def test_distances_are_those_of_unit_rows():
    for similarity in (-1.0, 0.0, 0.25, 1.0, 1.0002):
        angle = np.arccos(min(similarity, 1.0))
        expected = np.hypot(np.cos(angle) - 1, np.sin(angle))
        assert verification.distance(similarity) == pytest.approx(expected, abs=1e-12)
