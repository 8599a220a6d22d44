"""The evaluate command: numbers of a feature file, and what it says when there are none."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
from scipy.io import savemat

from harness.base.machine import has_gpu
from svll.base.feature_file import FeatureGroup, write_features
from svll.evaluation import KReciprocal, QueryExpansion
from svll.evaluation.camera_pairs import evaluate_camera_pairs
from svll.evaluation.pair import Pair
from svll.features.from_weights import EncodedTest
from tests.commands import ROOT, called, started
from tests.launch.made_features import dumped, group, ranking, write_shards

HEAVY = {"open_clip", "nvidia.dali", "deepspeed", "ray", "submitit"}


@pytest.fixture
def run():
    """Call the command in this process; returns exit status, stdout and stderr."""
    return partial(called, "evaluate")


PLAIN = {
    "protocol": "cross_camera", "own_image": None, "metric": "euclidean", "normalise": True,
    "multi_query": False, "expand": None, "rerank": None,
}
"""The settings that are in force when nothing is asked for."""


def numbers(out):
    """The numbers of the one object in the JSON that was printed."""
    [found] = json.loads(out)
    return {key: found[key] for key in ("mAP", "mINP", "cmc", "queries", "skipped")}


def settings(out):
    [found] = json.loads(out)
    return found["settings"]


def test_json_is_an_array_of_objects_with_file_settings_and_metrics_as_fractions(run, file, parts):
    status, out, err = run("--features", file, "--json")
    expected = ranking(parts)
    assert (status, err) == (0, "")
    assert json.loads(out) == [{
        "file": str(file),
        "dataset": "toy",
        "settings": PLAIN,
        "mAP": expected.mAP,
        "mINP": expected.mINP,
        "cmc": {str(rank): expected.cmc[rank - 1] for rank in range(1, 51)},
        "queries": 20,
        "skipped": 0,
    }]


def test_re_ranking_options_reach_the_ranking(run, file, parts):
    for given, options in (
        ([], KReciprocal()),
        (["--k1", 4, "--k2", 2, "--weight", 0.1], KReciprocal(4, 2, 0.1)),
    ):
        status, out, _ = run("--features", file, "--json", "--rerank", *given)
        assert status == 0
        assert numbers(out) == ranking(parts, rerank=options).as_json()
        assert settings(out) == {**PLAIN, "rerank": asdict(options)}
        assert numbers(out)["mAP"] != ranking(parts).mAP


def test_without_json_the_metrics_are_lines(run, file, parts):
    status, out, _ = run("--features", file)
    expected = ranking(parts)
    assert status == 0
    assert out.splitlines() == [
        f"mAP     {expected.mAP:.4f}",
        f"mINP    {expected.mINP:.4f}",
        *(f"Rank-{r:<3}{expected.cmc[r - 1]:.4f}" for r in (1, 5, 10)),
        "20 queries; cross_camera, euclidean distance of L2-normalised features, not re-ranked",
        "cross_camera: gallery images of the query's own identity and camera are left out",
    ]


def test_a_file_is_ranked_by_the_protocol_that_it_names(run, tmp_path, parts):
    for protocol in ("all_gallery", "random_gallery", "other_cameras"):
        path = tmp_path / f"{protocol}.h5"
        write_features(path, parts, dataset="toy", model="m", protocol=protocol)
        status, out, _ = run("--features", path, "--json")
        assert status == 0
        assert numbers(out) == ranking(parts, protocol=protocol).as_json()
        own = "features" if protocol == "all_gallery" else None  # the file has no paths
        assert settings(out) == {**PLAIN, "protocol": protocol, "own_image": own}
        _, out, _ = run("--features", path, "--protocol", "cross_camera", "--json")
        assert (numbers(out), settings(out)) == (ranking(parts).as_json(), PLAIN)


def test_a_query_in_its_own_gallery_is_left_out_under_all_gallery_also_when_averaged(
    run, tmp_path
):
    rng = np.random.default_rng(0)
    side = FeatureGroup(
        rng.normal(size=(120, 8)).astype(np.float32), np.arange(120) // 4, np.zeros(120, int)
    )
    for paths in (None, tuple(f"{n}.jpg" for n in range(120))):
        one = replace(side, paths=paths)
        both = {"query": one, "gallery": one}
        write_features(tmp_path / "f.h5", both, dataset="t", model="m", protocol="all_gallery")
        _, out, _ = run("--features", tmp_path / "f.h5", "--json")
        assert numbers(out)["cmc"]["1"] < 0.2
        _, out, _ = called("verify", tmp_path / "f.h5", "--json")
        assert json.loads(out)[0]["verification"]["genuine_pairs"] == 120 * 3
    status, _, err = run("--features", tmp_path / "f.h5", "--multi-query")
    assert status == 1
    assert "30 are there as the query's own image only" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give feature FILES or folders of runs, or --weights FILE --recipe NAME"),
        (["--features", "f.h5", "--weights", "w"], "give feature FILES or folders of runs, or"),
        (["--weights", "w", "--gallery", "g.h5"], "--gallery without a feature file has no effect"),
        (["--features", "f.h5", "--recipe", "x"], "--recipe without --weights has no effect"),
        (["--features", "f.h5", "a=1"], "a=1 without --weights has no effect"),
        (["--features", "f.h5", "--k1", 5, "--weight", 0.2],
         "error: --k1, --weight without --rerank has no effect; add --rerank\n"),
        (["--features", "f.h5", "--alpha", 3], "--alpha without --expand has no effect"),
        (["--features", "f.h5", "--top-k", 3], "--top-k without --per-query has no effect"),
        (["f.h5", "--save", "g.h5"], "--save goes with --weights; to save the features of a file: "
         "python launch/features.py f.h5 --save g.h5"),
        (["--features", "f.h5", "--json", "--csv"], "--json and --csv: choose one"),
        (["--features", "f.h5", "--no-camera-filter", "--cross-camera-only"],
         "--no-camera-filter and --cross-camera-only: choose one"),
        (["--features", "f.h5", "--csv", "--camera-pairs"], "no room for --camera-pairs"),
        (["--features", "f.h5", "--rerank", "--k1", "ten"], "--k1 ten: expected integers"),
        (["--features", "f.h5", "--rerank", "--k1", "10,,20"], "--k1 10,,20: expected integers"),
        (["--features", "f.h5", "--rerank", "--weight", ","], "--weight ,: expected numbers"),
        (["--features", "f.h5", "--alpha", 0], "--alpha without --expand has no effect"),
        (["--features", "f.h5", "g.h5", "--gallery", "h.h5"], "--gallery goes with one"),
        (["--weights", "w.pth"], "--weights also needs --recipe NAME"),
    ],
)
def test_missing_options_and_such_as_do_not_go_together_are_wrong_usage(run, words, told):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert told in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--features", "gone.h5"], "error: gone.h5: no such file\n"),
        (["--features", "f.h5", "--rerank", "--weight", "nan"], "weight is nan; it must lie"),
        (["--features", "f.h5", "--gallery", "h*.h5"], "h*.h5: no such file"),
        (["--weights", "w.pth", "--recipe", "synthtic"], "did you mean synthetic?"),
        (["--weights", "w.pth", "--recipe", "synthetic"], "w.pth: no such file"),
    ],
)
def test_files_values_and_names_that_are_wrong_are_reported(run, words, told):
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert told in err


def test_no_nearest_images_are_not_ten(run):
    status, out, err = run("f.h5", "--per-query", "q.csv", "--top-k", 0)
    assert (status, out) == (2, "")
    assert "--top-k" in err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["f.h5", "--verification"], "verify.py FILE"),
        (["f.h5", "--threshold-from=g.h5"], "verify.py FILE --threshold-from FILE"),
        (["f.h5", "--at-fpr", "0.1"], "verify.py FILE --threshold-from FILE --at-fpr RATE"),
        (["--features", "f.x", "--features-from", "mat"], "features.py FILE --format KIND"),
        (["--run", "runs/x/y"], "evaluate.py RUN (python launch/features.py RUN makes"),
    ],
)
def test_options_that_other_commands_have_are_told_with_the_command(run, words, command):
    status, out, err = run(*words)
    option = next(word for word in words if word.startswith("--") and word != "--features")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {option.partition('=')[0]} is not an option of this command; "
                          f"use python launch/{command}")


def test_files_and_folders_of_runs_are_given_with_or_without_the_option(run, file, tmp_path):
    expected = run("--features", file, "--json")
    assert expected.status == 0
    assert run(file, "--json") == expected
    status, _, err = run(tmp_path)
    assert (status, err) == (
        1, f"error: {tmp_path}: not a run's folder: there is no config.yaml in it\n"
    )
    (tmp_path / "config.yaml").write_text("{}\n")
    assert run(tmp_path, "--json") == expected
    file.unlink()
    status, _, err = run(tmp_path)
    assert (status, err) == (
        1, f"error: {file}: is missing; python launch/features.py {tmp_path} makes it\n"
    )


def test_a_word_turns_off_the_side_information_of_weights_and_a_recipe_does_not(
    run, monkeypatch, tmp_path, parts
):
    (tmp_path / "r.yaml").write_text("extends: synthetic_tiny\nmodel: {sie: none}\n")
    used = []

    def encode_tests(weights, config, save, *, side_information):
        used.append(side_information)
        return [EncodedTest("toy", "cross_camera", parts, 0)]

    monkeypatch.setattr("svll.features.from_weights.encode_tests", encode_tests)
    for words in ([], ["model.sie=none"]):
        assert run("--weights", "w.pth", "--recipe", tmp_path / "r.yaml", *words)[0] == 0
    assert used == [True, False]


def test_help_names_the_defaults_that_hold(run):
    _, out, _ = run("--help")
    defaults = KReciprocal()
    for name in ("k1", "k2", "weight"):
        said = re.search(rf"--{name} <.*?\[default: ([\d.]+)\]", out, re.DOTALL)
        assert float(said[1]) == getattr(defaults, name)
    assert out.index("python launch/evaluate.py features.h5 --rerank") < out.index("Options:")


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
    assert "set protocol to all_gallery" in err
    for words in (["--protocol", "all_gallery"], ["--no-camera-filter"]):
        status, out, _ = run("--features", tmp_path / "f.h5", *words, "--json", "--camera-pairs")
        assert status == 0
        assert numbers(out)["queries"] == 20
        [found] = json.loads(out)
        assert found["camera_pairs"] == []
        assert "no camera pairs: all images are of camera 0" in found["notes"][0]
    _, out, _ = run("--features", tmp_path / "f.h5", *words, "--camera-pairs")
    assert "f.h5: no camera pairs: all images are of camera 0" in out


def test_the_script_runs_from_elsewhere(file, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert numbers(started("evaluate", "--features", file, "--json").out) == (
        ranking(parts).as_json()
    )


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
    assert "numba" in imported
    assert not HEAVY & imported
    assert has_gpu() == ("torch" in imported)


@pytest.mark.slow
def test_one_process_computes_on_the_gpu_where_there_is_one_with_the_same_digits(
    run, file, tmp_path
):
    _, on_cpu, _ = run("--features", file, "--json", "--rerank")
    (tmp_path / "nvidia0").touch()
    code = (
        "import sys; from pathlib import Path\n"
        "from harness.base import machine; machine.DEVICES = Path(sys.argv.pop())\n"
        "sys.argv[1:] = ['--features', sys.argv[1], '--json', '--rerank']\n"
        "from svll.evaluation.engine import products as machine\n"
        "assert 'torch' not in sys.modules\n"
        # the way over torch and its device, with memory that is there
        "machine._usable_gpu = lambda torch: torch.device('cpu')\n"
        "way, sizes = machine.Products._on_gpu, []\n"
        "machine.Products._on_gpu = lambda *all: sizes.append(all[-1]) or way(*all)\n"
        "import launch.evaluate\n"
        "try: launch.evaluate.main()\n"
        "finally: print(len(sizes), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file, str(tmp_path)], capture_output=True, text=True,
        check=True, env={k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"},
    )
    assert int(done.stderr.splitlines()[-1]) > 0
    assert done.stdout == on_cpu


# ---- several files and settings ----


def test_several_files_give_one_table_list_or_csv(run, tmp_path, file, parts):
    other = {"query": group(15, 3), "gallery": group(60, 4)}
    write_features(tmp_path / "other.h5", other, dataset="more", model="m")
    expected = [ranking(parts), ranking(other)]
    status, out, _ = run("--features", file, tmp_path / "other.h5", "--json")
    assert status == 0
    found = json.loads(out)
    assert [item["dataset"] for item in found] == ["toy", "more"]
    assert [item["file"] for item in found] == [str(file), str(tmp_path / "other.h5")]
    assert [item["mAP"] for item in found] == [result.mAP for result in expected]
    status, out, _ = run("--features", file, "--features", tmp_path / "other.h5", "--csv")
    lines = list(csv.DictReader(out.splitlines()))
    assert [float(line["mAP"]) for line in lines] == [result.mAP for result in expected]
    assert [float(line["rank5"]) for line in lines] == [result.cmc[4] for result in expected]
    status, out, _ = run("--features", file, tmp_path / "other.h5")
    for name, result in zip(("features.h5", "other.h5"), expected, strict=True):
        [line] = [line for line in out.splitlines() if name in line]
        assert f"{result.mAP:.4f}" in line


def test_settings_of_a_table_are_said_for_the_files_that_have_them(run, tmp_path, parts):
    named = {k: replace(g, paths=[*map(str, range(len(g.cameras)))]) for k, g in parts.items()}
    files = {tmp_path / "a.h5": parts, tmp_path / "b.h5": named, tmp_path / "c.h5": named}
    for path, groups in files.items():
        write_features(path, groups, dataset=f"set {path.stem}", model="m")
    _, out, _ = run("--features", *files, "--no-camera-filter")
    told = "euclidean distance of L2-normalised features, own images recognised by"
    assert f"\na.h5: {told} features" in out
    assert f"\nb.h5, c.h5: {told} path" in out
    assert all(f"set {name}" in out for name in "abc")


def test_a_grid_scores_every_combination_beside_plain_ranking(run, file, parts):
    grid = ["--rerank", "--k1", "4,8", "--k2", "2", "--weight", "0.1,0.5"]
    status, out, _ = run("--features", file, *grid, "--json")
    found = json.loads(out)
    tried = [KReciprocal(k1, 2, weight) for k1 in (4, 8) for weight in (0.1, 0.5)]
    assert [item["settings"]["rerank"] for item in found] == [None, *map(asdict, tried)]
    assert [item["mAP"] for item in found] == [
        ranking(parts, rerank=setting).mAP for setting in (None, *tried)
    ]
    assert status == 0


def test_per_query_lines_hold_what_the_mean_is_made_of(run, file, parts, tmp_path):
    status, _, _ = run("--features", file, "--per-query", tmp_path / "q.csv", "--top-k", 3)
    expected = ranking(parts, top_k=3)
    lines = list(csv.DictReader((tmp_path / "q.csv").read_text().splitlines()))
    assert status == 0
    assert [float(line["average_precision"]) for line in lines] == (
        expected.average_precision.tolist()
    )
    assert [int(line["first_rank"]) for line in lines] == expected.first_rank.tolist()
    assert [int(line["identity"]) for line in lines] == parts["query"].identities.tolist()
    for line, near, far in zip(lines, expected.nearest, expected.distances, strict=True):
        assert [int(line[f"row{n}"]) for n in (1, 2, 3)] == near.tolist()
        assert [float(line[f"distance{n}"]) for n in (1, 2, 3)] == far.tolist()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--cross-camera-only"], {"protocol": "other_cameras"}),
        (["--no-camera-filter"], {"protocol": "all_gallery"}),
        (["--raw"], {"normalise": False}),
        (["--metric", "cosine"], {"metric": "cosine"}),
        (["--expand", 4], {"expand": QueryExpansion(4)}),
        (["--expand", 4, "--alpha", 3], {"expand": QueryExpansion(4, 3.0)}),
    ],
)
def test_options_of_the_ranking_reach_it(run, file, parts, words, options):
    status, out, _ = run("--features", file, *words, "--json")
    assert status == 0
    assert numbers(out) == ranking(parts, **options).as_json()


def test_multi_query_asks_once_for_each_identity_and_camera(run, file, parts):
    status, out, _ = run("--features", file, "--multi-query", "--json")
    query = parts["query"]
    asking = set(zip(query.identities.tolist(), query.cameras.tolist(), strict=True))
    assert status == 0
    assert numbers(out)["queries"] == len(asking) < len(query.identities)


def test_intervals_and_camera_pairs_are_added_on_request(run, file, parts):
    status, out, _ = run("--features", file, "--json", "--bootstrap", "--camera-pairs")
    [found] = json.loads(out)
    assert status == 0
    low, high = found["mAP_interval"]
    assert low < found["mAP"] < high
    [pairs] = evaluate_camera_pairs(Pair(parts["query"], parts["gallery"]))
    assert found["camera_pairs"] == [asdict(pair) for pair in pairs]
    status, out, _ = run("--features", file, "--bootstrap", "--camera-pairs")
    assert f"(95 %: {low:.4f} to {high:.4f})" in out


@pytest.mark.slow
def test_a_gallery_in_shards_gives_the_same_numbers_alone_and_on_ranks(
    run, file, parts, tmp_path
):
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", parts["gallery"], 4)
    settings = ["--json", "--rerank", "--k1", "5,8"]
    words = ["--features", file, "--gallery", tmp_path / "shards" / "*.h5", *settings]
    alone, shards = run("--features", file, *settings), run(*words)
    ranks = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "launch/evaluate.py", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    assert alone.status == 0, alone.err
    assert alone.out == shards.out == ranks.stdout


def test_another_toolbox_file_is_scored(run, parts, tmp_path):
    savemat(tmp_path / "result.mat", dumped(parts))
    status, out, _ = run(tmp_path / "result.mat", "--json")
    assert (status, numbers(out)) == (0, ranking(parts).as_json())


def test_under_random_gallery_cameras_play_no_part(run, tmp_path, parts):
    path = tmp_path / "f.h5"
    write_features(path, parts, dataset="toy", model="m", protocol="random_gallery")
    status, out, _ = run("--features", path, "--camera-pairs")
    assert (status, "no camera pairs: the protocol random_gallery has no cameras" in out) == (0, 1)
    status, _, err = run("--features", path, "--multi-query")
    assert (status, "they cannot be averaged (multi-query)" in err) == (1, True)


def test_names_that_are_not_utf_8_keep_their_bytes_in_the_table_of_queries(run, tmp_path, parts):
    names = tuple(os.fsdecode(b"\xb2\xe2%d.jpg" % n) for n in range(len(parts["query"].identities)))
    named = parts | {"query": replace(parts["query"], paths=names)}
    write_features(tmp_path / "named.h5", named, dataset="toy", model="m")
    assert run("--features", tmp_path / "named.h5", "--per-query", tmp_path / "q.csv")[0] == 0
    assert b",\xb2\xe27.jpg," in (tmp_path / "q.csv").read_bytes()


def test_no_nearest_image_and_an_empty_list_of_settings_are_refused(run, file, tmp_path):
    status, _, err = run(file, "--per-query", tmp_path / "q.csv", "--top-k", 0)
    assert status == 2
    assert "--top-k" in err
    status, _, err = run(file, "--rerank", "--k1", ",")
    assert (status, err) == (2, "error: --k1 ,: expected integers, as in 20 or 10,20,30\n")
