"""Runs of other kinds than the demo's, each whole, on drawn images."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import svll
from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.config.values import to_yaml
from harness.runs.run import Run
from svll.base.feature_file import read_features
from svll.base.run_files import prompts_file
from svll.config import RECIPES, Config
from svll.data.own_split import Options, write_split
from svll.evaluation import evaluate_ranking
from svll.experiment import run as experiment
from svll.models import load_model
from svll.reuse.fingerprints import pin
from svll.world.world import World, write_world
from tests.commands import called

FEW = "data.world.test_identities=4"
SHORT = (
    "data.height=32", "data.width=16", FEW, "run.tensorboard=false", "stage1.epochs=1",
    "stage2.epochs=1", "stage1.warmup_epochs=0", "stage2.warmup_epochs=0",
)


def config_of(runs: Path, *overrides: str) -> Config:
    settings = read_recipe(RECIPES / "synthetic_tiny.yaml", Config)
    words = parse_overrides([*SHORT, f"run.runs={runs}", *overrides])
    return build(Config, [*settings, *words])


def carry_out(runs: Path, *overrides: str) -> Run:
    """Pin, sign and run, as the commands do."""
    config = pin(config_of(runs, *overrides))
    run = Run(runs / "variants" / signature(config))
    run.create(to_yaml(config))
    run.result_file.write_text(json.dumps(experiment(run)))
    return run


def losses(run: Run) -> set[str]:
    return {name for line in run.metrics() for name in line["losses"]}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three drawn benchmarks in Market-1501's layout; the last one as a list without cameras."""
    root = tmp_path_factory.mktemp("worlds")
    found = [write_world(World(8, 4, shots=2, seed=seed), root / f"w{seed}") for seed in (1, 2, 3)]
    flat = root / "flat"
    for path in found[2].glob("*/*.jpg"):
        identity = path.name.partition("_")[0]
        if identity not in ("-1", "0000"):
            target = flat / identity / f"{path.parent.name}-{path.name[-12:]}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    write_split(flat, root / "own.csv", Options(test=0.5, validation=0.0))
    return [*found[:2], root / "own.csv"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


# --- losses and stages ---


def test_the_baseline_trains_the_encoder_alone(runs: Path) -> None:
    run = carry_out(runs, "stage1.epochs=0", "stage2.i2t_weight=0", "stage2.vss_weight=0")
    assert losses(run) == {"id", "triplet"}
    assert not prompts_file(run).exists()
    model = load_model(run.folder)
    assert model.identities == 6
    with pytest.raises(UserError, match="trained without texts"):
        model.encode_text(torch.tensor([0]))


def test_simsiam_stands_in_for_ntxent_in_both_stages(runs: Path) -> None:
    run = carry_out(runs, "stage1.lss_loss=simsiam", "stage2.vss_loss=simsiam")
    values = {k: v for line in run.metrics() for k, v in line["losses"].items()}
    assert losses(run) == {"i2t", "t2i", "lss", "id", "triplet", "vss"}
    assert -1 <= values["lss"] <= 1
    assert -1 <= values["vss"] <= 1


def test_blocks_computed_again_give_the_same_run(runs: Path, tmp_path: Path) -> None:
    kept = carry_out(runs)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/data").symlink_to(runs / "cache/data")
    again = carry_out(tmp_path, "engine.recompute=true")
    assert again.signature == kept.signature
    assert [line["losses"] for line in again.metrics()] == [
        line["losses"] for line in kept.metrics()
    ]
    one, other = ({k: v for k, v in run.result().items() if k != "seconds"}  # type: ignore[union-attr]
                  for run in (again, kept))
    assert one == other


def test_other_means_of_colours_give_other_features(runs: Path) -> None:
    mean = "data.mean=[0.485, 0.456, 0.406]"
    plain, other = carry_out(runs), carry_out(runs, mean, "data.std=[0.229, 0.224, 0.225]")
    assert plain.result()["initial"]["mAP"] != other.result()["initial"]["mAP"]  # type: ignore[index]


def test_the_weights_of_a_run_encode_as_the_run_did(runs: Path) -> None:
    run = carry_out(runs)
    file = read_features(run.features_file)
    query = file.groups["query"]
    cameras = query.cameras[:5] + (file.first_camera or 0)
    found = svll.load(run.folder).encode(list(query.paths or [])[:5], camera=cameras)
    stored = query.features[:5] / np.linalg.norm(query.features[:5], axis=1, keepdims=True)
    # decoders and resizers differ by a few grey levels
    assert (found * stored).sum(axis=1) == pytest.approx(np.ones(5), abs=1e-3)


def test_the_weights_of_a_run_score_what_the_run_scored(runs: Path, tmp_path: Path) -> None:
    run = carry_out(runs)
    saved = tmp_path / "again.h5"
    done = called("evaluate", "--weights", run.folder, "--recipe", "synthetic_tiny", "--save",
                  saved, "--json", f"run.runs={runs}", FEW)
    assert done.status == 0, done.err
    [found], expected = json.loads(done.out), run.result() or {}
    assert {k: found[k] for k in ("mAP", "mINP", "cmc")} == {
        k: expected[k] for k in ("mAP", "mINP", "cmc")
    }
    assert found["settings"]["protocol"] == expected["protocol"]
    one, two = (read_features(path).groups["query"] for path in (run.features_file, saved))
    assert np.array_equal(one.features, two.features)


# --- datasets ---


def test_sets_are_trained_on_together_and_tested_on_apart(
    runs: Path, worlds: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    roots = f"data.roots={{market1501: {worlds[0]}, folder: {worlds[1]}, list: {worlds[2]}}}"
    with caplog.at_level(logging.WARNING):
        run = carry_out(
            runs, "data.train=[market1501, folder]", "data.test=[folder, list]", roots,
            "data.validation=0", "stage2.batch=24",
        )
    result = run.result() or {}
    assert result["trained_on"] == ["market1501", "folder"]
    assert list(result["tests"]) == ["folder", "list"]
    assert {k: v["protocol"] for k, v in result["tests"].items()} == {
        "folder": "cross_camera", "list": "all_gallery",
    }
    assert result["mAP"] == result["tests"]["folder"]["mAP"]
    assert load_model(run.folder).identities == 16
    # both sets have six cameras, of which the second set's are counted behind the first's
    labels = load_model(run.folder).side_labels
    six = [1, 2, 3, 4, 5, 6]
    assert labels.cameras == {"market1501": six, "folder": six}
    assert labels.places("folder", six)[0].tolist() == [6, 7, 8, 9, 10, 11]
    lines = [line for line in caplog.messages if "side information" in line]
    assert [line.partition(" images ")[2].partition(":")[0] for line in lines] == [
        "have no known camera"
    ] * 2  # the list's query and gallery
    for name in ("features.h5", "features.list.h5"):
        file = read_features(run.folder / name)
        q, g = file.groups["query"], file.groups["gallery"]
        found = evaluate_ranking(
            q.features, g.features, q.identities, g.identities, q.cameras, g.cameras,
            protocol=file.protocol,
        )
        assert found.mAP == result["tests"][file.dataset]["mAP"]


def test_a_set_is_known_by_its_files_and_not_by_where_they_lie(
    tmp_path: Path, worlds: list[Path]
) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(worlds[0], copy)
    runs = tmp_path / "runs"

    def signed(root: Path) -> str:
        return signature(pin(config_of(runs, "data.name=folder", f"data.root={root}")))

    assert signed(worlds[0]) == signed(copy) != signed(worlds[1])
    before = signed(copy)
    next((copy / "query").glob("0*.jpg")).unlink()
    assert signed(copy) != before


def test_files_that_changed_after_the_run_was_made_are_noticed(
    tmp_path: Path, worlds: list[Path]
) -> None:
    copy = tmp_path / "w"
    shutil.copytree(worlds[0], copy)
    config = pin(config_of(tmp_path, "data.name=folder", f"data.root={copy}"))
    run = Run(tmp_path / "variants" / signature(config))
    run.create(to_yaml(config))
    victim = next((copy / "query").glob("0*.jpg"))
    victim.write_bytes(victim.read_bytes() + b"\0")  # the folder's time stays
    with pytest.raises(UserError, match="the files of folder have changed since this run was made"):
        experiment(run)
    assert run.metrics() == []
