"""A run that goes on from another's state is the other from there on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from harness.runs import takeovers
from harness.runs.run import Run
from harness.training import checkpoints, loop
from svll.config import Config
from svll.experiment import run as experiment
from tests.svll.test_experiment import make_run

__all__ = ["make_run"]

CARRIED = Config.experiment.carried_files
MORE = ("stage2.epochs=3", "run.keep_checkpoints=true")


def numbers(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in loop.MEASURED} for line in run.metrics()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("takeovers")


@pytest.fixture(scope="module")
def source(place: Path) -> Run:
    """A run that kept the state at the end of its first epoch of stage 2."""
    run = make_run(place, *MORE)

    def keep(line: dict[str, Any]) -> None:
        if (line["stage"], line["epoch"]) == ("stage2", 1):
            takeovers.export(run, stage="stage2", epoch=1, score=0.5, carried_files=CARRIED)

    experiment(run, keep)
    return run


def test_with_the_others_settings_it_ends_as_the_other_to_the_digit(
    place: Path, source: Run
) -> None:
    run = make_run(place / "same", "stage2.vss_weight=0.2", "stage1.lr=1e-2", *MORE)
    experiment(run)  # it has trained on its own for a while
    for file in (run.result_file, run.weights_file, run.features_file):
        file.unlink()
    before = numbers(run)
    settings = {"stage2.vss_weight": 0.8, "stage1.lr": 3.5e-4}
    takeovers.plan(run, of=source, epoch=1, settings=settings)
    assert takeovers.is_planned(run)
    takeovers.carry_out(run)
    assert not takeovers.is_planned(run)
    found = checkpoints.latest(run.checkpoints, signature=run.signature)
    assert found is not None
    assert (found[1].stage, found[1].epoch, found[1].step) == ("stage2", 2, 0)
    experiment(run)
    assert numbers(run) == numbers(source) != before
    mine, theirs = load_file(run.weights_file), load_file(source.weights_file)
    assert all(mine[name].equal(value) for name, value in theirs.items())
    assert takeovers.changes(run) == [
        {"of": source.signature, "epoch": 1, "settings": settings}
    ]


def test_with_other_settings_it_goes_on_with_those(place: Path, source: Run) -> None:
    run = make_run(place / "other", "stage2.vss_weight=0.2", "stage1.lr=1e-2", *MORE)
    takeovers.plan(
        run, of=source, epoch=1, settings={"stage2.vss_weight": 0.1, "stage1.lr": 3.5e-4}
    )
    # killed in between, it is carried out again
    planned = (run.folder / "takeover.json").read_text()
    incoming = shutil.copytree(run.folder / "incoming", place / "kept")
    takeovers.carry_out(run)
    (run.folder / "takeover.json").write_text(planned)
    shutil.copytree(incoming, run.folder / "incoming")
    takeovers.carry_out(run)
    assert len(takeovers.changes(run)) == 1
    experiment(run)
    count = next(n for n, line in enumerate(numbers(source)) if line["stage"] == "stage2"
                 and line["kind"] == "epoch") + 1
    assert numbers(run)[:count] == numbers(source)[:count]
    line = numbers(run)[-1]
    weights = {"id": 0.25, "triplet": 1.0, "i2t": 1.0, "vss": 0.1}
    total = sum(weights[name] * value for name, value in line["losses"].items())
    assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert line != numbers(source)[-1]


def test_a_run_that_became_complete_stays_as_it_is(place: Path, source: Run) -> None:
    run = make_run(place / "done", *MORE)
    run.create("")
    run.result_file.write_text("{}")
    takeovers.plan(run, of=source, epoch=1, settings={})
    takeovers.carry_out(run)
    assert not takeovers.is_planned(run)
    assert not run.checkpoints.exists()
    takeovers.forget_exports(source)
    assert not (source.folder / "exports").exists()
