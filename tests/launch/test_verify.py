"""The verify command on feature files."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

from svll.base.feature_file import write_features
from svll.evaluation.pair import Pair
from svll.evaluation.verification import verify
from tests.commands import ROOT, called
from tests.launch.made_features import group, write_shards


@pytest.fixture
def run():
    """Call the command in this process; returns exit status, stdout and stderr."""
    return partial(called, "verify")


def plain(parts, **options):
    """The verification of a query and a gallery without a file around them."""
    return verify(Pair(parts["query"], parts["gallery"]), **options)


def test_json_and_lines_hold_the_rates_of_each_file(run, file, parts, tmp_path):
    other = {"query": group(15, 3), "gallery": group(60, 4)}
    write_features(tmp_path / "other.h5", other, dataset="more", model="m")
    status, out, err = run(file, tmp_path / "other.h5", "--json")
    assert (status, err) == (0, "")
    _, text, _ = run(file, tmp_path / "other.h5")
    for found, given, name in zip(json.loads(out), (parts, other), ("toy", "more"), strict=True):
        expected = plain(given)
        curve = found["verification"].pop("roc")
        assert found["verification"] == expected.as_json()
        assert found["dataset"] == name
        assert found["settings"] == {
            "protocol": "cross_camera", "own_image": None, "multi_query": False
        }
        assert (curve["fpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0.0, 1.0, 1.0)
        for fpr, tpr, threshold in zip(*curve.values(), strict=True):
            at = expected.at(threshold)
            assert (at.fpr, at.tpr) == (fpr, tpr)
        assert f"{found['file']}: verification of " in text
        assert f"\nEER {expected.eer:.4f} at" in text
    assert text.endswith(
        "\ncross_camera: gallery images of the query's own identity and camera are left out\n"
    )


def test_a_threshold_found_on_another_file_is_applied(run, file, parts, tmp_path):
    other = {"query": group(15, 3), "gallery": group(60, 4)}
    write_features(tmp_path / "other.h5", other, dataset="more", model="m")
    calibration = plain(other)
    words = [file, "--threshold-from", tmp_path / "other.h5"]
    for more, threshold in (
        ([], calibration.eer_threshold), (["--at-fpr", 0.1], calibration.threshold_at(0.1)),
    ):
        applied = plain(parts).at(threshold)
        [found] = json.loads(run(*words, *more, "--json").out)
        assert found["verification"]["applied"] == asdict(applied)
        assert f"\nthreshold given: TPR {applied.tpr:.4f} " in run(*words, *more).out
    status, _, err = run(*words, "--at-fpr", 1e-9)
    assert status == 1
    start = f"error: {tmp_path / 'other.h5'}: no threshold can be found on it: "
    assert err.startswith(f"{start}FPR 1e-09 needs at least")


def test_a_protocol_that_is_asked_for_decides_which_pairs_count(run, file, parts):
    for protocol in ("other_cameras", "all_gallery"):
        [found] = json.loads(run(file, "--protocol", protocol, "--json").out)
        assert found["settings"]["protocol"] == protocol
        del found["verification"]["roc"]
        assert found["verification"] == plain(parts, protocol=protocol).as_json()


def test_multi_query_counts_each_identity_and_camera_once(run, file, parts):
    [found] = json.loads(run(file, "--multi-query", "--json").out)
    query, gallery = parts["query"], parts["gallery"]
    asking = set(zip(query.identities.tolist(), query.cameras.tolist(), strict=True))
    pairs = sum(
        int(((gallery.identities != i) | (gallery.cameras != c)).sum()) for i, c in asking
    )
    counts = found["verification"]
    assert counts["genuine_pairs"] + counts["impostor_pairs"] == pairs
    assert ", multi-query, cosine similarity" in run(file, "--multi-query").out


def test_under_random_gallery_pairs_are_of_one_draw(run, tmp_path, parts):
    path = tmp_path / "f.h5"
    write_features(path, parts, dataset="toy", model="m", protocol="random_gallery")
    status, out, _ = run(path, "--json")
    pairs = json.loads(out)[0]["verification"]
    identities = parts["gallery"].identities
    known = len(np.unique(identities))
    assert status == 0
    assert pairs["genuine_pairs"] == len(identities) - known
    assert pairs["impostor_pairs"] == (len(identities) - known) * (known - 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["f.h5", "--at-fpr", 0.1], "--at-fpr without --threshold-from has no effect"),
        (["f.h5", "g.h5", "--gallery", "h.h5"], "--gallery goes with one feature file"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(run, words, told):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert told in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gone.h5"], "error: gone.h5: no such file\n"),
        (["w.safetensors"], "w.safetensors: no such file"),
    ],
)
def test_mistakes_are_told(run, words, told):
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert told in err


def test_a_file_without_genuine_pairs_is_named(run, tmp_path, parts):
    parts["query"].identities[:] += 100
    write_features(tmp_path / "apart.h5", parts, dataset="toy", model="m")
    status, _, err = run(tmp_path / "apart.h5")
    assert status == 1
    assert err.startswith(f"error: {tmp_path / 'apart.h5'}: there are no genuine pairs")


@pytest.mark.slow
def test_a_gallery_in_shards_gives_the_same_numbers_alone_and_on_ranks(
    run, file, parts, tmp_path
):
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", parts["gallery"], 4)
    words = [file, "--gallery", tmp_path / "shards" / "*.h5", "--json"]
    alone, shards = run(file, "--json"), run(*words)
    ranks = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "launch/verify.py", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    assert alone.status == 0, alone.err
    assert alone.out == shards.out == ranks.stdout


def test_a_threshold_of_features_of_another_width_or_model_is_told(run, file, parts, tmp_path):
    other = tmp_path / "other.h5"
    write_features(other, parts, dataset="more", model="another")
    status, _, err = run(file, "--threshold-from", other)
    assert status == 0
    assert f"{file}: compared features name several models: another, m; only features of" in err
    narrow = {side: replace(one, features=one.features[:, :6]) for side, one in parts.items()}
    write_features(other, narrow, dataset="more", model="m")
    status, _, err = run(file, "--threshold-from", other)
    said = f"error: {other}: its features have 6 numbers, this model's 8; find the threshold on "
    assert (status, err) == (1, f"{said}features of this model\n")
