"""Every layout of datasets, all the way: from looking at the files to a page of results.

What the commands print and write is compared with the files on disk and with scores computed by
plain loops (`plain.py`). `python -m pytest -s tests/end_to_end` prints the steps by layout.
"""

import csv
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import svll
from harness.runs.run import Run
from tests.commands import called, called_and_stopped, started_and_stopped
from tests.end_to_end import plain
from tests.end_to_end.walks import LAYOUTS, Walk, numbers, run_in
from tests.svll.data.trees import Tree
from tests.toy.toy_experiment import ODD_HERE

DIGITS = 1e-6
"""How far a score may lie from the plain one: near ties that single precision orders otherwise."""
Test = Callable[..., None]


def step(name: str, *layouts: str) -> Callable[[Test], Test]:
    """Make a function a step of the way through some layouts, or all of them."""

    def declare(function: Test) -> Test:
        function.step = name  # type: ignore[attr-defined]
        return pytest.mark.parametrize("layout", layouts or list(LAYOUTS))(function)

    return declare


@pytest.fixture(scope="session")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Walk]:
    """Return the walk through a layout, by name."""

    @functools.cache
    def walk(name: str) -> Walk:
        odd = ODD_HERE if name in ("market1501", "msmt17_v1", "list") else "plain"
        return Walk(LAYOUTS[name], tmp_path_factory.mktemp(name) / odd)

    return walk


@pytest.fixture
def walk(layout: str, walks: Callable[[str], Walk]) -> Walk:
    return walks(layout)


# --- the files ---


@step("check", *(name for name in LAYOUTS if name != "synthetic"))  # which its run draws
def test_checking_counts_the_identities_images_and_cameras_on_disk(walk: Walk) -> None:
    for name, tree in walk.trees.items():
        place = walk.root / walk.layout.file if walk.layout.file else tree.folder
        checked = "folder" if name == "synthetic" else name
        ended = walk.command("data", "check", checked, "--root", place)
        assert ended.status == 0, ended.err
        parts = tree.images
        if walk.layout.protocol == "random_gallery":
            parts = {"train": parts["train"], "test": parts["query"]}
        told = {line.split()[0]: line.split()[1:4] for line in ended.out.splitlines()[2:]}
        assert {part: told[part] for part in parts} == {
            part: [str(len({labels[0] for labels in found.values()})), str(len(found)),
                   str(len({labels[1] for labels in found.values()}))]
            for part, found in parts.items()
        }  # fmt: skip
        files = {name for found in parts.values() for name in found}
        assert f"all {len(files)} images decode" in ended.out
        assert walk.layout.protocol in ended.out.splitlines()[0]


@step("dry run", "msmt17_v1", "vehicleid_800", "list", "synthetic", "joined")
def test_a_dry_run_tells_the_size_of_the_training_part(walk: Walk) -> None:
    ended = called("train", *walk.words("--dry-run"))
    assert ended.status == 0, ended.err
    images = [tree.images["train"] for tree in training_trees(walk)]
    identities = sum(len({one for one, _ in found.values()}) for found in images)
    cameras = sum(len({camera for _, camera in found.values()}) for found in images)
    if walk.layout.name == "synthetic":  # a quarter of the identities is held back
        identities -= 2
        assert f" {identities} identities, 6 cameras" in ended.out
    else:
        assert (
            f": {sum(map(len, images))} images, {identities} identities, {cameras} cameras"
        ) in ended.out
    assert not list(walk.runs.glob("*/*/config.yaml"))


# --- training ---


@step("train")
def test_training_ends_in_the_scores_of_its_feature_files(walk: Walk) -> None:
    run = walk.trained
    result = run.result() or {}
    tests = result.get("tests") or {result["dataset"]: result}
    assert len(tests) == len(walk.layout.datasets)
    for found, (name, file) in zip(tests.values(), walk.features().items(), strict=True):
        assert found["protocol"] == walk.layout.protocol
        check_labels(walk, walk.trees[name], file)
        check_scores(found, plain.scores(file, walk.layout.protocol))
        label = name if len(tests) > 1 else "test"
        told = f"mAP {found['mAP']:.4f}  Rank-1 {found['cmc']['1']:.4f}  {walk.layout.protocol}"
        assert re.search(f"^{label} +{told}$", walk.training.out, re.MULTILINE)
    check_shared_images(list(walk.features().values()))
    check_scores(result, plain.scores(run.features_file, walk.layout.protocol))


@step("again")
def test_the_same_command_again_does_nothing_and_tells_the_same(walk: Walk) -> None:
    run = walk.trained
    before = times(run)
    ended = called("train", *walk.words())
    assert (ended.status, ended.out) == (0, walk.training.out)
    assert times(run) == before


@step("stop, resume", "market1501", "msmt17_v1", "veri776", "vehicleid_800", "joined")
def test_a_run_that_was_stopped_resumes_and_ends_in_the_same_numbers(walk: Walk) -> None:
    runs = walk.top / "stopped"
    words: list[Any] = [*walk.words(runs=runs)]
    if walk.layout.name == "msmt17_v1":
        stops = [started_and_stopped(words, runs)]
    else:  # within stage 1, then within stage 2
        stops = [called_and_stopped(words, step=2), called_and_stopped(words, step=3)]
    for ended in stops:
        assert (ended.status, ended.out) == (1, "")
        assert "stopped; log: " in ended.err
        assert run_in(runs).status()["state"] == "stopped"
    ended = called("train", *words)
    assert ended.status == 0, ended.err
    assert numbers(run_in(runs)) == numbers(walk.trained)


# --- scoring ---


@step("evaluate")
def test_evaluating_the_run_and_its_feature_file_prints_the_plain_scores(walk: Walk) -> None:
    files = walk.features()
    for words in ([walk.trained.folder], ["--features", *files.values()]):
        ended = walk.command("evaluate", *words, "--json")
        assert ended.status == 0, ended.err
        for one, (name, file) in zip(json.loads(ended.out), files.items(), strict=True):
            assert (one["file"], one["dataset"]) == (str(file), name)
            assert one["settings"]["protocol"] == walk.layout.protocol
            direct = plain.scores(file, walk.layout.protocol)
            check_scores(one, direct)
            if walk.layout.protocol != "random_gallery":
                assert one["queries"] == direct.queries


@step("other recipe")
def test_weights_on_another_dataset_know_none_of_its_cameras(
    walk: Walk, walks: Callable[[str], Walk]
) -> None:
    other = walks(walk.layout.other)
    tree = next(tree for name, tree in other.trees.items() if name in other.layout.datasets)
    name, saved = next(iter(other.layout.datasets)), walk.top / "other.h5"
    ended = called(
        "evaluate", "--weights", walk.trained.folder, "--recipe", other.layout.recipe,
        *other.data_words, f"data.test=[{name}]", "engine.precision=fp32", "--save", saved,
        "--json",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    check_labels(other, tree, saved)
    [found] = json.loads(ended.out)
    check_scores(found, plain.scores(saved, other.layout.protocol))
    query, gallery = plain.read(saved)
    model = svll.load(walk.trained.folder)
    for side in (query, gallery):
        check_near(model.encode(side.paths), side.features)


@step("own recipe", "market1501", "msmt17_v2", "veri776", "vehicleid_800", "list", "joined")
def test_weights_under_their_own_recipe_give_the_features_of_the_run(walk: Walk) -> None:
    saved = walk.top / "own.h5"
    ended = called(
        "evaluate", "--weights", walk.trained.weights_file, "--recipe", walk.layout.recipe,
        *walk.data_words, "engine.precision=fp32", "--save", saved, "--json",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    for place, (name, file) in enumerate(walk.features().items()):
        again = saved.with_name(f"own.{name}.h5") if place else saved
        for one, two in zip(plain.read(file), plain.read(again), strict=True):
            assert one.paths == two.paths
            np.testing.assert_allclose(one.features, two.features, atol=1e-6)


# --- pages ---


@step("report", "msmt17_v1", "veri776", "vehicleid_1600", "joined")
def test_a_report_shows_the_scores_the_figures_and_the_worst_queries(walk: Walk) -> None:
    run = walk.trained
    ended = called("report", run.folder, "--figures", "--ranked")
    assert ended.status == 0, ended.err
    page = (run.folder / "report.html").read_text()
    result = run.result() or {}
    assert f"{result['mAP']:.4f}" in page
    assert "was written without" not in ended.err
    for figure in ("tsne-images", "tsne-texts", "attention"):
        assert (run.folder / "figures" / f"{figure}.svg").stat().st_size > 1000
    ranked = (run.folder / "ranked.html").read_text()
    query, gallery = plain.read(run.features_file)
    if walk.layout.protocol == "random_gallery":
        assert f"{result['mAP']:.4f}" in ranked
        return
    precisions = [
        plain.average_precision(query, gallery, row, walk.layout.protocol)
        for row in range(len(query.identities))
    ]
    row = int(np.argsort(precisions, kind="stable")[0])
    lists = ranked.partition('class="list wide"')[2]
    assert f"query {row}<" in lists.partition('class="list wide"')[0]
    assert f"AP {precisions[row]:.4f}" in lists.partition('class="list wide"')[0]


@step("search", "list_plain", "folder")
def test_a_search_finds_the_nearest_of_the_features(walk: Walk) -> None:
    """Without cameras, which images that are searched do not have."""
    run, tree, out = walk.trained, walk.trees[next(iter(walk.layout.datasets))], walk.top / "found"
    folders = [{Path(name).parts[0] for name in tree.images[p]}.pop() for p in ("query", "gallery")]
    query, gallery = (tree.folder / folder for folder in folders)
    ended = walk.command("search", "--weights", run.folder, "--query", query, "--gallery", gallery,
                         "--out", out, "--top-k", 3)
    assert ended.status == 0, ended.err
    model = svll.load(run.folder)
    paths = sorted(path for path in gallery.rglob("*.*") if path.suffix.lower() in SUFFIXES
                   and not path.name.startswith("."))
    known = model.encode(paths)
    with (out / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    asked = sorted({row["query"] for row in rows})
    assert asked == sorted(str(tree.folder / name) for name in tree.images["query"])
    asking = model.encode(asked)
    for path, features in zip(asked, asking, strict=True):
        alike = known @ features
        nearest = [str(paths[n]) for n in np.argsort(-alike)[:3]]
        assert [row["gallery"] for row in rows if row["query"] == path] == nearest
    if walk.layout.name == "list_plain":  # a model without cameras: the run's own features
        query, _ = plain.read(run.features_file)
        check_near(model.encode(query.paths), query.features)


SUFFIXES = (".jpg", ".jpeg", ".png")


@step("export", "list_plain")
def test_an_exported_model_gives_the_features_of_the_run(walk: Walk) -> None:
    import onnxruntime

    from svll.models.extractor import preprocess

    run, out = walk.trained, walk.top / "model.onnx"
    ended = walk.command("export", "--weights", run.folder, "--out", out,
                         "--images", walk.root / "query")
    assert ended.status == 0, ended.err
    query, _ = plain.read(run.features_file)
    model = svll.load(run.folder).model
    images = preprocess(query.paths, model).numpy()
    [features] = onnxruntime.InferenceSession(out).run(["features"], {"images": images})
    check_near(features / np.linalg.norm(features, axis=1, keepdims=True), query.features)


@step("sweep", "market1501")
def test_a_sweep_of_two_trials_ends_in_the_run_and_another_and_ranks_them(walk: Walk) -> None:
    file, runs = walk.top / "two.yaml", walk.top / "swept"
    file.write_text(yaml.safe_dump({
        "name": "two", "recipe": walk.layout.recipe, "metric": "mAP",
        "search": {"stage2.triplet_weight": {"grid": [1.0, 0.0]}}, "seeds": [1234],
    }))  # fmt: skip
    words = [word for word in walk.words(runs=runs) if word not in ("--recipe", walk.layout.recipe)]
    ended = walk.command("slurm", "--sweep", file, "--cluster", "local", "--follow", *words)
    assert ended.status == 0, ended.out + ended.err
    trials = json.loads((runs / "two" / "sweep.json").read_text())["trials"]
    found = {
        trial["point"]["stage2.triplet_weight"]: Run(runs / "two" / trial["signature"])
        for trial in trials
    }
    assert numbers(found[1.0]) == numbers(walk.trained)
    maps = {}
    for weight, run in found.items():
        maps[weight] = plain.scores(run.features_file, walk.layout.protocol).mAP
        check_scores(run.result() or {}, plain.scores(run.features_file, walk.layout.protocol))
    ended = walk.command("report", runs / "two")
    assert ended.status == 0, ended.err
    best = yaml.safe_load((runs / "two" / "best.yaml").read_text())
    assert best["stage2"]["triplet_weight"] == max(maps, key=lambda weight: maps[weight])


# --- what is compared ---


def training_trees(walk: Walk) -> list[Tree]:
    return [walk.trees[name] for name in walk.layout.training]


def times(run: Run) -> dict[str, int]:
    """When each file of a run was written."""
    return {str(path): path.stat().st_mtime_ns for path in run.folder.rglob("*")}


def check_scores(found: dict[str, Any], direct: plain.Scores) -> None:
    assert found["mAP"] == pytest.approx(direct.mAP, abs=DIGITS)
    assert found["mINP"] == pytest.approx(direct.mINP, abs=DIGITS)
    assert {rank: found["cmc"][rank] for rank in direct.cmc} == pytest.approx(direct.cmc)


def check_shared_images(files: list[Path]) -> None:
    """An image has the same features in each test set that it is in, as in VehicleID's three."""
    known: dict[str, np.ndarray] = {}
    for file in files:
        for side in plain.read(file):
            for path, features in zip(side.paths, side.features, strict=True):
                np.testing.assert_allclose(features, known.setdefault(path, features), atol=1e-6)


def check_labels(walk: Walk, tree: Tree, file: Path) -> None:
    """A feature file holds the query and gallery on disk, with their identities and cameras."""
    for name, side in zip(("query", "gallery"), plain.read(file), strict=True):
        if walk.layout.name == "synthetic":  # it lies where the run has drawn it
            [world] = (walk.runs / "cache" / "data").iterdir()
            tree = Tree(world, tree.images)
        labels = {str(path): found for path, found in tree.labels(name).items()}
        assert set(side.paths) == set(labels)
        assert len(side.paths) == len(labels)
        found = zip(side.identities.tolist(), side.cameras.tolist(), strict=True)
        assert list(found) == [labels[path] for path in side.paths]


def check_near(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding; another camera's vector would change a feature twenty times more."""
    np.testing.assert_allclose(found, expected, atol=1e-3)
