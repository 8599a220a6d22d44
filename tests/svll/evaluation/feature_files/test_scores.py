"""Scores of a source against plain computations, and their text and CSV."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup
from svll.evaluation import KReciprocal, QueryExpansion, own_images
from svll.evaluation.bootstrap import interval
from svll.evaluation.feature_files.score_text import (
    more_lines,
    per_query_csv,
    protocol_lines,
    score_lines,
    to_csv,
    verification_lines,
)
from svll.evaluation.feature_files.scores import (
    Score,
    score,
    verification_score,
)
from svll.evaluation.feature_files.sources import Source
from svll.evaluation.protocols import evaluate_draws
from svll.evaluation.ranking import Options
from svll.search.threshold import calibrated_threshold
from tests.svll.reports.worlds import world


def everything_in_force() -> Score:
    source = replace(world("other_cameras"), first_camera=1).multi_query()
    [found] = score(
        source, [KReciprocal(k1=5)],
        Options(metric="cosine", expand=QueryExpansion(4, 3.0), top_k=2), camera_pairs=True,
    )
    return found


def test_lines_say_every_setting_that_is_in_force() -> None:
    item = everything_in_force()
    said = (
        "other_cameras, cosine distance of L2-normalised features, multi-query (mean of an "
        "identity's queries under a camera), query expansion (count=4, alpha=3), re-ranked (k1=5, "
        "k2=6, weight=0.3)"
    )
    assert list(score_lines(item))[-1].endswith(f" queries; {said}")
    assert list(protocol_lines([item.source])) == [
        "other_cameras: all gallery images of the query's own camera are left out"
    ]
    more = list(more_lines([item]))
    assert more[0] == f"\nworld.h5, camera pairs: {said}"
    [raw] = score(world(), options=Options(normalise=False))
    assert list(score_lines(raw))[-1].endswith(
        "cross_camera, euclidean distance of features as stored, not re-ranked"
    )


def test_both_kinds_of_csv_have_a_column_for_every_setting() -> None:
    item = everything_in_force()
    expected = {
        "protocol": "other_cameras", "metric": "cosine", "normalise": "true",
        "multi_query": "true", "expand": "4", "alpha": "3.0", "k1": "5", "k2": "6",
        "weight": "0.3",
    }
    for made in (to_csv, per_query_csv):
        line = next(csv.DictReader("".join(made([item])).splitlines()))
        assert {name: line[name] for name in expected} == expected
    [plain] = score(world())
    line = next(csv.DictReader("".join(to_csv([plain])).splitlines()))
    assert {line[name] for name in ("expand", "alpha", "k1", "k2", "weight")} == {""}


def test_cameras_are_shown_as_the_dataset_numbers_them() -> None:
    item = everything_in_force()
    pairs = item.as_json()["camera_pairs"]
    assert {pair["query_camera"] for pair in pairs} == {1, 2, 3}
    assert {pair["gallery_camera"] for pair in pairs} == {1, 2, 3}
    lines = list(csv.DictReader("".join(per_query_csv([item])).splitlines()))
    cameras = item.source.query.cameras + 1
    assert [int(line["camera"]) for line in lines] == cameras.tolist()


def test_the_camera_pairs_of_a_setting_are_re_ranked_by_it() -> None:
    source = world()
    settings = [None, KReciprocal(5, 2)]
    both = score(source, settings, camera_pairs=True)
    for setting, item in zip(settings, both, strict=True):
        [alone] = score(source, [setting], camera_pairs=True)
        assert item.camera_pairs == alone.camera_pairs
    assert both[0].camera_pairs != both[1].camera_pairs
    headings = [line for line in more_lines(both) if "camera pairs" in line]
    assert [line.rpartition(", ")[2] for line in headings[:1]] == ["not re-ranked"]
    assert headings[1].endswith("re-ranked (k1=5, k2=2, weight=0.3)")


def test_own_images_are_looked_for_once_for_all_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[None] = []
    found = own_images._by_name
    monkeypatch.setattr(own_images, "_by_name", lambda *all: looked.append(None) or found(*all))
    score(world("all_gallery"), [None], camera_pairs=True, verification=True)
    assert len(looked) == 1


def test_the_interval_under_random_gallery_is_of_the_mean_over_all_draws() -> None:
    source = world("random_gallery")
    [found] = score(source, [None], bootstrap=True)
    gallery = source.gallery
    draws = evaluate_draws(gallery.features, gallery.identities)[0].draws
    assert draws is not None
    # an identity is drawn with its queries of every draw
    together = interval(draws.ravel(), np.tile(gallery.identities, len(draws)))
    assert found.interval == together != interval(draws[0], gallery.identities)
    per_query = found.result.mean_precision
    for row, mean in enumerate(per_query.tolist()):
        assert mean == pytest.approx(np.nanmean(draws[:, row]) if gallery.identities[row] >= 0
                                     else np.nan, nan_ok=True)


def test_averaged_queries_do_not_find_the_images_that_they_are_the_mean_of() -> None:
    rng = np.random.default_rng(0)
    ids, cameras = np.arange(120) // 6, np.arange(120) // 3 % 2
    side = FeatureGroup(rng.normal(size=(120, 8)).astype(np.float32), ids, cameras)
    for paths in (None, tuple(f"{n}.jpg" for n in range(120))):
        one = replace(side, paths=paths)
        source = Source("f.h5", "made", "all_gallery", one, one).multi_query()
        [found] = score(source, [None], verification=True)
        assert found.result.queries == 40
        assert found.settings["own_image"] == ("path" if paths else "features")
        assert found.result.cmc[0] < 0.3
        assert found.verification is not None
        assert found.verification.genuine_pairs == 40 * 3  # those under the other camera


# ---- verification ----


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
    found = verification_score(world(protocol), threshold=0.4).as_json()
    numbers, applied = found["verification"], found["verification"]["applied"]
    assert found["settings"] == {"protocol": protocol, "own_image": None, "multi_query": False}
    counts = numbers["genuine_pairs"], numbers["impostor_pairs"]
    assert counts == (len(genuine), len(impostor))
    # thresholds are 1/2048 apart
    at = applied["threshold"]
    assert at == pytest.approx(0.4, abs=1 / 2048)
    assert applied["tpr"] == pytest.approx(np.mean(genuine >= at), abs=0.01)
    assert applied["fpr"] == pytest.approx(np.mean(impostor >= at), abs=0.01)


def test_lines_of_a_verification_say_which_pairs_were_compared() -> None:
    averaged = verification_score(world("other_cameras").multi_query())
    assert averaged.as_json()["settings"]["multi_query"]
    heading = next(verification_lines(averaged))
    assert "impostor pairs: other_cameras, multi-query, cosine" in heading
    drawn = verification_score(world("random_gallery"), threshold=0.5)
    lines = list(verification_lines(drawn))
    assert "impostor pairs of the first draw: random_gallery, cosine similarity" in lines[0]
    assert lines[-1].startswith("threshold given: TPR ")


def test_what_cannot_be_verified_names_its_file(tmp_path: Path) -> None:
    source = world()
    apart = replace(source, query=replace(source.query, identities=source.query.identities + 1000))
    with pytest.raises(UserError, match=rf"^{source.where}: there are no genuine pairs"):
        verification_score(apart)
    apart.save(tmp_path / "apart.h5")
    with pytest.raises(UserError, match=r"apart\.h5: no threshold .*: there are no genuine pairs"):
        calibrated_threshold(tmp_path / "apart.h5")
    source.save(tmp_path / "world.h5")
    with pytest.raises(UserError, match=r"world\.h5: no threshold .*: FPR 1e-09 needs at least"):
        calibrated_threshold(tmp_path / "world.h5", 1e-9)
    assert calibrated_threshold(tmp_path / "world.h5", protocol="other_cameras").similarity == (
        verification_score(world("other_cameras")).verification.eer_threshold
    )
