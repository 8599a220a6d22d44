"""The search command: a page and a table, the nearest of each query, or one message."""

import csv
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import svll
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from harness.runs.run import Run
from svll.base.feature_file import FeatureGroup, write_features
from svll.config import RECIPES, Config
from svll.data.side_labels import SideLabels
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel
from svll.models.weights.run_weights import save_model
from tests.commands import ROOT, Command, called


@pytest.fixture
def run() -> Command:
    """Call the command in this process; returns exit status, stdout and stderr."""
    return partial(called, "search")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run, queries q and gallery g: images of persons that are bare patterns."""
    folder = tmp_path_factory.mktemp("search")
    recipe = read_recipe(RECIPES / "synthetic_tiny.yaml", Config)
    config = build(Config, [*recipe, *parse_overrides(["model.sie=none"])])
    clip = load_clip("svll-tiny", "shipped", height=64, width=32, stride=8)
    finished = Run(folder / "run")
    save_model(
        finished.weights_file, ReIDModel(clip.image, None).state_dict(), config,
        text=torch.zeros(2, 128), identities=2,
        side_labels=SideLabels({"synthetic": [1]}, {"synthetic": [0]}),
    )
    for side, seed in (("q", 0), ("g", 1)):
        for person in range(4):
            coarse = np.random.default_rng(person).integers(0, 256, (6, 3, 3))
            noise = np.random.default_rng([seed, person]).integers(-20, 20, coarse.shape)
            image = Image.fromarray((coarse + noise).clip(0, 255).astype(np.uint8))
            path = folder / side / f"no <b>{person}.jpg"
            path.parent.mkdir(exist_ok=True)
            image.resize((40, 80)).save(path)
    write_own_features(finished, folder)
    return folder


def write_own_features(finished: Run, folder: Path) -> None:
    """Those of the images, as a run has them of its test set."""
    model = svll.load(finished.folder)
    groups = {
        name: FeatureGroup(
            model.encode(sorted((folder / side).iterdir())), np.arange(4), np.full(4, camera)
        )
        for name, side, camera in (("query", "q", 0), ("gallery", "g", 1))
    }
    write_features(finished.features_file, groups, dataset="toy", model="m")


def asked(place: Path, out: Path, weights: str = "run") -> list[object]:
    return [
        "--weights", place / weights, "--query", place / "q", "--gallery", place / "g",
        "--out", out,
    ]


def column(out: Path, name: str) -> list[str]:
    with (out / "search.csv").open(encoding="utf-8", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_a_run_searches_with_the_threshold_of_its_own_features(
    run: Command, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "results"
    status, printed, _ = run(*asked(place, out))
    assert status == 0
    lines = printed.splitlines()
    for person, line in enumerate(lines[:4]):
        assert line.startswith(f"no <b>{person}.jpg -> no <b>{person}.jpg  0.")
        assert line.endswith("  accepted")
    criterion, *files = lines[4:]
    assert f"equal on {place / 'run' / 'features.h5'}: TPR 1.0000, FPR 0. " in criterion
    assert files == [str(out / "search.html"), str(out / "search.csv")]
    assert len(list((out.parent / ".svll-search").iterdir())) == 1  # the gallery's features
    assert column(out, "accepted") == ["true", "false", "false", "false"] * 4
    assert column(out, "rank") == ["1", "2", "3", "4"] * 4
    assert criterion.split(":")[0] in (out / "search.html").read_text(encoding="utf-8")


def test_options_reach_the_search(run: Command, place: Path, tmp_path: Path) -> None:
    features = place / "run" / "features.h5"
    more = ["--top-k", 2, "--threshold-from", features, "--at-fpr", 0.5]
    status, printed, _ = run(*asked(place, tmp_path, "run/model.safetensors"), *more)
    assert status == 0
    assert f"at this threshold FPR is at most 0.5 on {features}" in printed
    assert column(tmp_path, "rank") == ["1", "2"] * 4
    status, printed, _ = run(*asked(place, tmp_path), "--threshold", -1)
    assert status == 0
    assert "at least -1.0000 are accepted, as given" in printed
    assert set(column(tmp_path, "accepted")) == {"true"}


def test_without_a_threshold_nothing_is_accepted_or_rejected(
    run: Command, place: Path, tmp_path: Path
) -> None:
    status, printed, _ = run(*asked(place, tmp_path, "run/model.safetensors"))
    assert status == 0
    assert "\nNo threshold, so no image is accepted or rejected: none was given, and " in printed
    assert set(column(tmp_path, "accepted")) == {""}
    page = (tmp_path / "search.html").read_text(encoding="utf-8")
    assert "No threshold, so no image is accepted" in page
    assert ">accepted<" not in page


def test_many_queries_are_printed_in_part(
    run: Command, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.search.PRINTED", 1)
    _, printed, _ = run(*asked(place, tmp_path))
    assert printed.count(" -> ") == 1
    assert "\n... and 3 more queries\n" in printed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--query": "nowhere"}, "nowhere: no such folder or image"),
        ({"--gallery": "run"}, "run: no images there (.jpg, "),
        ({"--weights": "a.pth"}, "a.pth: no such file; give a weights file or a finished run"),
        ({"--weights": "a.pth", "--at-fpr": 0.1}, "a.pth: no such file; give a weights file or"),
        ({"--weights": "q/no <b>0.jpg"}, "no <b>0.jpg: "),
        ({"--weights": "run/model.safetensors", "--at-fpr": 0.1},
         "--at-fpr 0.1 has no effect without features to find the threshold on; add "
         "--threshold-from FEATURES.h5"),
        ({"--threshold": 0.5, "--at-fpr": 0.1},
         "--threshold gives the threshold; leave out --threshold-from and --at-fpr"),
        ({"--threshold": 1.5}, "1.5 is no threshold: give a cosine similarity from -1 to 1"),
        ({"--threshold-from": "no.h5"}, "no.h5: no such file"),
        ({"--out": "q/no <b>0.jpg"}, "cannot be written: File exists"),
    ],
)
def test_a_mistake_is_one_message(
    run: Command, place: Path, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    given = asked(place, tmp_path / "found")
    for name, value in changes.items():
        given += [name, place / value if isinstance(value, str) else value]
    status, printed, error = run(*given)
    assert (status, printed) == (2 if "gives the threshold" in told else 1, "")
    assert error.startswith("error: ")
    assert told in error
    assert not list(tmp_path.iterdir())


def test_help_begins_with_an_example_without_loading_torch() -> None:
    program = (
        "import sys; sys.argv = ['launch/search.py', '--help']; from launch import search\n"
        "try: search.main()\n"
        "finally: print('torch' in sys.modules, 'numba' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert "    python launch/search.py --weights" in done.stdout
    assert done.stdout.rstrip().endswith("False False")


def test_other_files_are_not_replaced_and_an_earlier_search_is_with_a_word(
    run: Command, place: Path, tmp_path: Path
) -> None:
    for name in ("search.csv", "search.html"):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine\n")
        status, printed, error = run(*asked(place, out))
        said = f"error: {out / name}: exists and is not the result of a search; name another folder"
        assert (status, printed, error.startswith(said)) == (1, "", True)
        assert [(file.name, file.read_text()) for file in out.iterdir()] == [(name, "mine\n")]
    out = tmp_path / "new"
    again = f"{out}: replaces the results of an earlier search there"
    for is_there in (False, True):
        status, _, error = run(*asked(place, out), "--top-k", 1)
        assert (status, again in error) == (0, is_there)


def test_one_query_image_is_one(run: Command, place: Path, tmp_path: Path) -> None:
    assert run(*asked(place, tmp_path), "--query", place / "q" / "no <b>0.jpg").status == 0
    page = (tmp_path / "search.html").read_text(encoding="utf-8")
    assert ">1 query image of " in page
    assert " against 4 gallery images of " in page
