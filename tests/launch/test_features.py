"""The features command: what it keeps, of which source."""

import shutil
from functools import partial

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from svll.base.feature_file import read_features, write_features
from svll.features.from_weights import EncodedTest
from tests.commands import called
from tests.launch.made_features import dumped, write_shards


@pytest.fixture
def run():
    """Call the command in this process; returns exit status, stdout and stderr."""
    return partial(called, "features")


def check_same(file, parts):
    for name, group in read_features(file).groups.items():
        for field in ("features", "identities", "cameras"):
            assert np.array_equal(getattr(group, field), getattr(parts[name], field))


def test_another_toolbox_file_becomes_a_feature_file(run, parts, tmp_path):
    savemat(tmp_path / "result.mat", dumped(parts))
    shutil.copy(tmp_path / "result.mat", tmp_path / "result.dat")
    kept = tmp_path / "kept.h5"
    for words in (["result.mat"], ["result.dat", "--format", "mat"]):
        status, out, err = run(tmp_path / words[0], *words[1:], "--save", kept)
        assert (status, err) == (0, "")
        assert out == (
            f"{kept}: result, 20 query and 80 gallery images, 8 numbers each; cross_camera\n"
        )
        check_same(kept, parts)
        kept.unlink()


def test_shards_and_float64_features_become_one_feature_file(run, file, parts, tmp_path):
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", parts["gallery"], 2)
    with h5py.File(file, "r+") as content:
        del content["query/features"]
        content["query/features"] = parts["query"].features.astype(np.float64)
        content.attrs["complete"] = True  # changed on purpose
    words = file, "--gallery", tmp_path / "shards" / "*.h5", "--save", tmp_path / "kept.h5"
    assert run(*words).status == 0
    check_same(tmp_path / "kept.h5", parts)


def test_the_protocol_that_is_asked_for_is_kept(run, file, tmp_path):
    kept = tmp_path / "kept.h5"
    assert run(file, "--protocol", "other_cameras", "--save", kept).status == 0
    assert read_features(kept).protocol == "other_cameras"


def test_weights_are_tested_on_a_recipe_with_its_words_and_every_file_is_told(
    run, monkeypatch, tmp_path, parts
):
    seen = []

    def encode_tests(weights, config, save, *, side_information):
        seen.append((weights.name, config.evaluation.protocol, config.seed, side_information))
        files = [save, save.with_name("kept.more.h5")]
        for file in files:
            write_features(file, parts, dataset=file.stem, model="m")
        return [EncodedTest("toy", "cross_camera", parts, 0, file) for file in files]

    monkeypatch.setattr("svll.features.from_weights.encode_tests", encode_tests)
    words = ["--weights", "w.pth", "--recipe", "synthetic_tiny", "seed=3",
             "--protocol", "all_gallery", "--save", tmp_path / "kept.h5"]
    for more, side_information in (([], True), (["model.sie=none"], False)):
        status, out, _ = run(*words, *more)
        assert status == 0
        assert seen.pop() == ("w.pth", "all_gallery", 3, side_information)
        assert [line.partition(": ")[0] for line in out.splitlines()] == [
            str(tmp_path / "kept.h5"), str(tmp_path / "kept.more.h5")
        ]


def test_a_runs_missing_features_are_made_in_its_folder(run, monkeypatch, file, tmp_path):
    asked = []

    def run_features(folder, overrides):
        asked.append((folder, overrides))
        return [file]

    monkeypatch.setattr("svll.runs.make_features.run_features", run_features)
    status, out, _ = run(tmp_path, "data.root=elsewhere")
    assert status == 0
    assert asked == [(tmp_path, ["data.root=elsewhere"])]
    assert out.startswith(f"{file}: toy, 20 query and 80 gallery images")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give folders of RUNS, one FILE, or --weights FILE --recipe NAME"),
        (["a.npz", "b.npz", "--save", "c.h5"], "give folders of RUNS, one FILE, or"),
        (["a.npz", "--weights", "w", "--save", "c.h5"], "give folders of RUNS, one FILE, or"),
        (["a.npz"], "give --save FILE, the feature file to write"),
        (["--weights", "w.pth", "--recipe", "synthetic"], "give --save FILE"),
        (["--weights", "w.pth", "--save", "f.h5"], "--weights also needs --recipe NAME"),
        (["a.npz", "--recipe", "synthetic"], "--recipe without --weights has no effect"),
        (["a.npz", "seed=1", "--save", "f.h5"], "seed=1 without a RUN or --weights has no effect"),
        ([".", "--save", "f.h5"], "--save and --protocol go with a FILE or --weights"),
        ([".", "--format", "mat"], "--format without a FILE has no effect"),
    ],
)
def test_missing_options_and_such_as_do_not_go_together_are_wrong_usage(
    run, words, told, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert told in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--weights", "w.pth", "--recipe", "synthtic", "--save", "f.h5"], "did you mean synth"),
        (["."], "not a run's folder: there is no config.yaml in it"),
        (["gone.npz", "--save", "f.h5"], "gone.npz: no such file"),
    ],
)
def test_files_and_names_that_are_wrong_are_reported(run, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert (status, out) == (1, "")
    assert told in err
    assert list(tmp_path.iterdir()) == []
