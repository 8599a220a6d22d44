"""Verification of sources against plain counts of their pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.evaluation.feature_files.verified import found_threshold, verified
from tests.svll.reports.worlds import world


def pairs(protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarities of the genuine and of the impostor pairs of `world`, by loops."""
    source = world(protocol)
    query, gallery = (side.features / np.linalg.norm(side.features, axis=1, keepdims=True)
                      for side in (source.query, source.gallery))
    alike: dict[bool, list[float]] = {True: [], False: []}
    for q, (i, c) in enumerate(zip(source.query.identities, source.query.cameras, strict=True)):
        for g, (j, d) in enumerate(
            zip(source.gallery.identities, source.gallery.cameras, strict=True)
        ):
            left_out = c == d and (i == j or protocol == "other_cameras")
            if -1 not in (i, j) and not left_out:
                alike[bool(i == j)].append(float(query[q] @ gallery[g]))
    return np.array(alike[True]), np.array(alike[False])


@pytest.mark.parametrize("protocol", ["cross_camera", "other_cameras"])
def test_rates_are_those_of_the_pairs_that_the_protocol_compares(protocol: str) -> None:
    genuine, impostor = pairs(protocol)
    found = verified(world(protocol), threshold=0.4).as_json()
    numbers, applied = found["verification"], found["verification"]["applied"]
    assert found["settings"] == {"protocol": protocol, "own_image": None, "multi_query": False}
    counts = numbers["genuine_pairs"], numbers["impostor_pairs"]
    assert counts == (len(genuine), len(impostor))
    # thresholds are 1/2048 apart
    at = applied["threshold"]
    assert at == pytest.approx(0.4, abs=1 / 2048)
    assert applied["tpr"] == pytest.approx(np.mean(genuine >= at), abs=0.01)
    assert applied["fpr"] == pytest.approx(np.mean(impostor >= at), abs=0.01)


def test_lines_say_what_the_pairs_are_of() -> None:
    averaged = verified(world("other_cameras").pooled())
    assert averaged.as_json()["settings"]["multi_query"]
    assert "impostor pairs: other_cameras, multi-query, cosine" in next(averaged.lines())
    drawn = verified(world("random_gallery"), threshold=0.5)
    lines = list(drawn.lines())
    assert "impostor pairs of the first draw: random_gallery, cosine similarity" in lines[0]
    assert lines[-1].startswith("threshold given: TPR ")


def test_what_cannot_be_verified_names_its_file(tmp_path: Path) -> None:
    source = world()
    apart = replace(source, query=replace(source.query, identities=source.query.identities + 1000))
    with pytest.raises(UserError, match=rf"^{source.where}: there are no genuine pairs"):
        verified(apart)
    apart.save(tmp_path / "apart.h5")
    with pytest.raises(UserError, match=r"apart\.h5: there are no genuine pairs"):
        found_threshold(tmp_path / "apart.h5")
    source.save(tmp_path / "world.h5")
    with pytest.raises(UserError, match=r"world\.h5: FPR 1e-09 needs at least"):
        found_threshold(tmp_path / "world.h5", 1e-9)
    assert found_threshold(tmp_path / "world.h5", protocol="other_cameras") == (
        verified(world("other_cameras")).verification.eer_threshold
    )
