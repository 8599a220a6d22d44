"""Distances within and between identities, against all pairs, and silhouettes against sklearn."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from harness.base.errors import UserError
from svll.evaluation.engine.feature_rows import JUNK, Rows
from svll.reports.figures import separation as module
from svll.reports.figures.separation import separation

COUNTS = [9, 1, 4, 2, 12]
"""Images of each identity: one of them has a single image."""


def labelled(spread: float = 0.7) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of any length around centres that lie apart, in no order, and two junk images."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([3, 5, 8, 900, 41, JUNK], [*COUNTS, 2]))
    centres = {label: rng.normal(size=6) for label in set(labels.tolist())}
    rows = np.stack([centres[label] for label in labels.tolist()])
    rows = (rows + spread * rng.normal(size=rows.shape)) * rng.uniform(0.2, 5, (len(rows), 1))
    return rows.astype(np.float32), labels


def rows_of(features: NDArray[np.float32], labels: NDArray[np.int64]) -> Rows:
    return Rows("test.h5", features, labels, np.zeros_like(labels), unit=True)


def cosine_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1 - a @ b / np.sqrt((a @ a) * (b @ b)))


def test_distances_are_the_means_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 5)
    features, labels = labelled()
    pairs: dict[bool, list[float]] = {True: [], False: []}
    for i, j in combinations(np.flatnonzero(labels != JUNK), 2):
        pairs[bool(labels[i] == labels[j])].append(cosine_distance(features[i], features[j]))
    found = separation(rows_of(features, labels))
    assert found.within == pytest.approx(np.mean(pairs[True]), abs=1e-6)
    assert found.between == pytest.approx(np.mean(pairs[False]), abs=1e-6)
    assert found.ratio == pytest.approx(np.mean(pairs[False]) / np.mean(pairs[True]), rel=1e-5)


@pytest.mark.parametrize("spread", [0.1, 0.7, 3.0])
def test_the_silhouette_is_sklearns(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 5)
    features, labels = labelled(spread)
    kept = labels != JUNK
    expected = silhouette_score(features[kept], labels[kept], metric="cosine")
    assert separation(rows_of(features, labels)).silhouette == pytest.approx(expected, abs=1e-6)


def test_images_that_are_all_alike_have_silhouette_0() -> None:
    found = separation(rows_of(np.ones((6, 4), np.float32), np.array([0, 0, 0, 1, 1, 1])))
    assert found.silhouette == pytest.approx(0, abs=1e-3)


def test_without_two_images_of_any_identity_there_is_no_distance_within() -> None:
    found = separation(rows_of(np.eye(3, dtype=np.float32), np.arange(3)))
    assert np.isnan(found.within)
    assert np.isnan(found.ratio)
    assert (found.between, found.silhouette) == (pytest.approx(1), 0)


def test_a_single_identity_is_an_error() -> None:
    with pytest.raises(UserError, match=r"test\.h5: 1 identities with images; .* at least 2"):
        separation(rows_of(np.eye(3, dtype=np.float32), np.array([4, 4, JUNK])))


def test_features_that_are_not_finite_are_an_error() -> None:
    features, labels = labelled()
    features[7, 2] = np.nan
    labels[7] = 3
    with pytest.raises(UserError, match=r"test\.h5 features: row 7 holds NaN"):
        separation(rows_of(features, labels))
