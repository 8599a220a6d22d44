"""Thresholds of a search: those of verification, and honest about what they were found on."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from harness.runs.run import Run
from svll.base.feature_file import FeatureGroup, read_features, write_features
from svll.evaluation.pair import Pair
from svll.evaluation.verification import verify
from svll.search.threshold import calibrated_threshold, given_threshold, own_features

WIDTH = 256
"""Of the shipped model's features."""


def labelled(path: Path, width: int = WIDTH) -> Path:
    """Write a feature cache of ten identities under three cameras."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, width))
    groups = {}
    for name, count in (("query", 40), ("gallery", 200)):
        ids = rng.integers(0, 10, count)
        rows = centres[ids] + rng.standard_normal((count, width))
        groups[name] = FeatureGroup(rows.astype(np.float32), ids, rng.integers(0, 3, count))
    write_features(path, groups, dataset="toy", model="m")
    return path


@pytest.mark.parametrize("at_fpr", [None, 0.01])
def test_a_calibrated_threshold_is_that_of_verification(
    tmp_path: Path, at_fpr: float | None
) -> None:
    path = labelled(tmp_path / "f.h5")
    found = calibrated_threshold(path, at_fpr)
    groups = read_features(path).groups
    query, gallery = groups["query"], groups["gallery"]
    q, g, q_ids, g_ids = query.features, gallery.features, query.identities, gallery.identities
    known = verify(Pair(query, gallery))
    expected = known.eer_threshold if at_fpr is None else known.threshold_at(at_fpr)
    assert found.similarity == expected
    q, g = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (q, g))
    same = q_ids[:, None] == g_ids
    counted = ~(same & (query.cameras[:, None] == gallery.cameras))
    accepted = q @ g.T >= found.similarity
    rates = found.calibration.rates if found.calibration else None
    assert rates is not None
    assert rates.tpr == pytest.approx(accepted[same & counted].mean(), abs=0.005)
    assert rates.fpr == pytest.approx(accepted[~same & counted].mean(), abs=0.005)
    rule = "both error rates are equal" if at_fpr is None else "FPR is at most 0.01"
    assert str(found) == (
        f"Similarities of at least {expected:.4f} are accepted; at this threshold {rule} on {path}:"
        f" TPR {rates.tpr:.4f}, FPR {rates.fpr:.4g}. These rates hold only for similar images."
    )


def test_only_the_folder_of_a_run_with_features_has_its_own(tmp_path: Path) -> None:
    path = labelled(tmp_path / "features.h5")
    assert own_features(tmp_path) == path
    bare = Run(tmp_path / "bare")
    bare.create("")
    bare.weights_file.touch()
    assert own_features(bare.folder) is None
    assert own_features(bare.weights_file) is None


def test_thresholds_that_cannot_be_are_told(tmp_path: Path) -> None:
    for value in (1.5, -2.0, math.nan):
        with pytest.raises(UserError, match="is no threshold: give a cosine similarity from"):
            given_threshold(value)
    path = labelled(tmp_path / "f.h5")
    start = re.escape(f"{path}: no threshold can be found on it: ")
    with pytest.raises(UserError, match=start + "FPR 1e-06 needs at least 1,000,000 impostor"):
        calibrated_threshold(path, 1e-6)
    with pytest.raises(UserError, match=start + "the FPR is 2.0"):
        calibrated_threshold(path, 2.0)
    with pytest.raises(UserError, match=r"no\.h5: no such file"):
        calibrated_threshold(tmp_path / "no.h5")
