"""The evaluate command: numbers of a feature file, and what it says when there are none."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.features import FeatureGroup, write_features
from launch import evaluate
from svll.evaluation import KReciprocal, evaluate_protocol, evaluate_ranking

ROOT = Path(__file__).parents[2]
HEAVY = {"open_clip", "nvidia.dali", "deepspeed", "ray", "submitit"}


def group(rows, seed, identities=5):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, identities, rows)
    features = np.eye(identities, 8)[ids] + 0.5 * rng.standard_normal((rows, 8))
    return FeatureGroup(features.astype(np.float32), ids, rng.integers(0, 3, rows))


@pytest.fixture
def parts():
    return {"query": group(20, 1), "gallery": group(80, 2)}


@pytest.fixture
def file(tmp_path, parts):
    write_features(tmp_path / "features.h5", parts, dataset="toy", model="m")
    return tmp_path / "features.h5"


def ranking(parts, **options):
    query, gallery = parts["query"], parts["gallery"]
    return evaluate_ranking(
        query.features, gallery.features, query.identities, gallery.identities,
        query.cameras, gallery.cameras, **options,
    )  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process; returns exit status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["launch/evaluate.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            evaluate.main()
        return ended.value.code, *capsys.readouterr()

    return call


def scored(result, protocol="cross_camera"):
    return {**result.as_json(), "protocol": protocol}


def test_json_has_the_metrics_as_fractions(run, file, parts):
    status, out, err = run("--features", file, "--json")
    expected = ranking(parts)
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "mAP": expected.mAP,
        "mINP": expected.mINP,
        "cmc": {"1": expected.cmc[0], "5": expected.cmc[4], "10": expected.cmc[9]},
        "queries": 20,
        "skipped": 0,
        "protocol": "cross_camera",
    }


def test_re_ranking_options_reach_the_ranking(run, file, parts):
    for given, options in (
        ([], KReciprocal()),
        (["--k1", 4, "--k2", 2, "--weight", 0.1], KReciprocal(4, 2, 0.1)),
    ):
        status, out, _ = run("--features", file, "--json", "--rerank", *given)
        assert status == 0
        assert json.loads(out) == scored(ranking(parts, rerank=options))
        assert json.loads(out)["mAP"] != ranking(parts).mAP


def test_without_json_the_metrics_are_lines(run, file, parts):
    status, out, _ = run("--features", file)
    expected = ranking(parts)
    assert status == 0
    assert out.splitlines() == [
        f"mAP     {expected.mAP:.4f}",
        f"mINP    {expected.mINP:.4f}",
        *(f"Rank-{r:<3}{expected.cmc[r - 1]:.4f}" for r in (1, 5, 10)),
        "20 queries; cross_camera, not re-ranked",
    ]


def test_a_file_is_ranked_by_the_protocol_that_it_names(run, tmp_path, parts):
    for protocol in ("all_gallery", "random_gallery"):
        path = tmp_path / f"{protocol}.h5"
        write_features(path, parts, dataset="toy", model="m", protocol=protocol)
        status, out, _ = run("--features", path, "--json")
        query, gallery = parts["query"], parts["gallery"]
        expected = evaluate_protocol(
            protocol, query.features, gallery.features, query.identities, gallery.identities,
            query.cameras, gallery.cameras,
        )
        assert status == 0
        assert json.loads(out) == scored(expected, protocol)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give either --features FILE or --weights FILE --recipe NAME"),
        (["--features", "f.h5", "--weights", "w"], "give either --features FILE or --weights"),
        (["--features", "f.h5", "--recipe", "x", "a=1"], "--recipe, key=value without --weights"),
        (["--weights", "w.pth"], "--weights needs --recipe NAME"),
        (["--weights", "w.pth", "--recipe", "synthtic"], "did you mean synthetic?"),
        (["--weights", "w.pth", "--recipe", "synthetic"], "w.pth: no such file"),
    ],
)
def test_options_that_do_not_go_together_are_told(run, words, told):
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert told in err


def test_help_names_the_defaults_that_hold(run):
    _, out, _ = run("--help")
    defaults = KReciprocal()
    for name in ("k1", "k2", "weight"):
        said = re.search(rf"--{name} <.*?\[default: ([\d.]+)\]", out, re.DOTALL)
        assert float(said[1]) == getattr(defaults, name)
    assert out.index("python launch/evaluate.py --features") < out.index("Options:")


def test_re_ranking_settings_without_re_ranking_are_refused(run, file):
    status, out, err = run("--features", file, "--k1", 5, "--weight", 0.2)
    assert (status, out) == (1, "")
    assert err == "error: --k1, --weight without --rerank has no effect; add --rerank\n"


def test_a_file_that_cannot_be_read_is_one_message(run, tmp_path):
    status, out, err = run("--features", tmp_path / "gone.h5")
    assert (status, out, err) == (1, "", f"error: {tmp_path / 'gone.h5'}: no such file\n")


def test_what_is_wrong_with_the_features_names_the_file(run, tmp_path, parts):
    parts["gallery"].features[7, 2] = np.nan
    write_features(tmp_path / "f.h5", parts, dataset="toy", model="m")
    status, _, err = run("--features", tmp_path / "f.h5")
    assert status == 1
    assert err.startswith(f"error: {tmp_path / 'f.h5'}: gallery features: row 7 hold")


def test_one_camera_only_names_the_option_and_the_option_helps(run, tmp_path, parts):
    for part in parts.values():
        part.cameras[:] = 0
    write_features(tmp_path / "f.h5", parts, dataset="toy", model="m")
    status, _, err = run("--features", tmp_path / "f.h5")
    assert status == 1
    assert "0 of 5 query identities are absent from the gallery, 5 are there under" in err
    assert "--no-camera-filter" in err
    status, out, _ = run("--features", tmp_path / "f.h5", "--no-camera-filter", "--json")
    assert status == 0
    assert json.loads(out)["queries"] == 20


def test_the_script_runs_from_the_root_and_from_elsewhere(file, parts, tmp_path):
    for script, folder in (("launch/evaluate.py", ROOT), (ROOT / "launch/evaluate.py", tmp_path)):
        done = subprocess.run(
            [sys.executable, script, "--features", file, "--json"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout) == scored(ranking(parts))


def test_evaluating_imports_no_package_that_it_does_not_need(file):
    code = (
        "import sys; sys.argv[1:] = ['--features', sys.argv[1]]\n"
        "import launch.evaluate\n"
        "assert not {'torch', 'numba'} & set(sys.modules)\n"
        "try: launch.evaluate.main()\n"
        "finally: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.split())
    assert "torch" in imported
    assert not HEAVY & imported
