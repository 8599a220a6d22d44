"""The fault table: real training on a real SLURM, disturbed, ends as if nothing had happened.

The disturbed trials run side by side, each in a sweep of its own; some are disturbed again when
they have gone on. Then each is compared, to the last digit, with one of as many ranks that nothing
disturbed. The table is printed at the end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402
from faulty_experiment import Strike, encoded, steps  # noqa: E402

from harness.base.files import read_json  # noqa: E402
from harness.cluster.known_places import all_places  # noqa: E402
from harness.cluster.launch import cancel, launch  # noqa: E402
from harness.cluster.records import read_records  # noqa: E402
from harness.cluster.slurm import commands  # noqa: E402
from harness.cluster.states import ALIVE, TrialState, survey  # noqa: E402
from harness.reporting.follow import follow  # noqa: E402
from harness.runs.run import Run  # noqa: E402
from harness.sweeps.reading import Sweep, read_sweep  # noqa: E402
from harness.training.loop import MEASURED  # noqa: E402
from svll.config import RECIPES, Config  # noqa: E402
from svll.reuse.fingerprints import pin  # noqa: E402
from svll.world.world import World, write_world  # noqa: E402

SETTINGS = (
    # 54 images of 6 identities: 4 and 3 steps an epoch
    "stage1.batch=16", "stage1.epochs=2", "stage2.batch=16", "stage2.epochs=3",
    "evaluation.batch=16", "data.check=false", "run.tensorboard=false", "run.log_every=1",
    "run.keep_checkpoints=true", "run.experiment=faulty_experiment.run",
)
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Disturbance:
    """What happens to a trial, and what it says of itself before it goes on."""

    ranks: int
    strike: Strike | None = None
    act: Callable[[Any, Sweep], None] | None = None
    """Done from outside, once stage 2 is being trained."""
    is_early: bool = False
    """`act` begins with the trial."""
    note: str = ""
    """What --status says in the end; empty when the trial goes on by itself."""
    before: Callable[[Any, Sweep], None] | None = None
    repair: Callable[[Any, Sweep], None] | None = None
    """Done before the sweep is launched again."""
    time: str = "15m"
    pace_s: float = 0.15
    encode_s: float = 0.0
    nodes: int = 1
    """Over which the ranks are spread."""


def requeue(slurm: Any, sweep: Sweep) -> None:
    slurm.run("scontrol", "requeue", job_of(sweep))


def user_signal(slurm: Any, sweep: Sweep) -> None:
    slurm.run("scancel", "--signal=USR2", job_of(sweep))


def signals_while_encoding(slurm: Any, sweep: Sweep) -> None:
    """Stop the trial while it encodes its training images, and again while it encodes its tests."""
    run = sweep.trials[0].run
    for attempt, file in enumerate([run.config_file, run.weights_file], start=1):
        toy.until(file.exists, seconds=PATIENCE_S)
        before = encoded(run)
        toy.until(lambda before=before: encoded(run) > before, seconds=PATIENCE_S)
        sent = time.time()
        user_signal(slurm, sweep)
        toy.until(lambda attempt=attempt: run.status()["attempts"] == attempt
                  and run.status()["state"] == "stopped", every=0.05)
        status = run.status()
        assert status["reason"].startswith("on request while encoding images; of ")
        assert status["time"] - sent < 15.0
    assert list(run.folder.parents[1].glob("cache/stage1/*.h5"))
    assert list(run.folder.glob("features.parts/*/part-*"))


def damage(slurm: Any, sweep: Sweep) -> None:
    """Stop the trial, and cut its newest checkpoint short."""
    cancel(sweep)
    run = sweep.trials[0].run
    newest = run.checkpoints / read_json(run.checkpoints / "latest.json")["name"]
    os.truncate(newest / "weights.safetensors", 1000)


def small_disk(slurm: Any, sweep: Sweep) -> None:
    """Give the checkpoints a disk that holds stage 1's but none of stage 2's."""
    checkpoints = sweep.trials[0].run.checkpoints
    checkpoints.mkdir(parents=True)
    on_node1(slurm, "mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(checkpoints))


def larger_disk(slurm: Any, sweep: Sweep) -> None:
    checkpoints = sweep.trials[0].run.checkpoints
    on_node1(slurm, "mount", "-o", "remount,size=100m", str(checkpoints))


DISTURBANCES = {
    "undisturbed": Disturbance(ranks=1),
    "undisturbed, two ranks": Disturbance(ranks=2),
    "kill -9 of one rank in stage 1": Disturbance(
        ranks=2, strike=Strike("stage1", 6, rank=1), note="another rank was lost"
    ),
    "kill -9 of one rank in stage 2": Disturbance(
        ranks=2, strike=Strike("stage2", 5, rank=0), note="another rank was lost"
    ),
    "kill -9 during a checkpoint write": Disturbance(
        ranks=1, strike=Strike("checkpoint", 8), note="FAILED"
    ),
    "kill -9 during the cache write": Disturbance(
        ranks=2, strike=Strike("features", 1, rank=1), note="another rank was lost"
    ),
    # most of it is sleep, or starting would take all of so short a limit
    "time limit of 2 minutes": Disturbance(ranks=1, time="2m", pace_s=7.0),
    "scancel --signal=USR2": Disturbance(ranks=1, act=user_signal),
    "USR2 in frozen, then in test features": Disturbance(
        ranks=1, act=signals_while_encoding, is_early=True, encode_s=1.0
    ),
    "scontrol requeue": Disturbance(ranks=1, act=requeue),
    "last checkpoint damaged": Disturbance(ranks=1, act=damage, note="on request"),
    "disk full": Disturbance(
        ranks=1, before=small_disk, repair=larger_disk, note="No space left on device"
    ),
}


COURSES = [
    ["undisturbed"],
    ["undisturbed, two ranks"],
    ["kill -9 of one rank in stage 1", "kill -9 of one rank in stage 2",
     "kill -9 during the cache write"],
    ["kill -9 during a checkpoint write", "last checkpoint damaged"],
    ["disk full", "scancel --signal=USR2"],
    ["time limit of 2 minutes"],
    ["scontrol requeue"],
    ["USR2 in frozen, then in test features"],
]
"""What happens to each trial, one after the other; it is launched again in between."""


@dataclass(frozen=True)
class Outcome:
    """How a trial went on after a disturbance."""

    run: Run
    view: TrialState
    """Before it was launched again, if it was."""
    twice: int
    """Steps that were trained once more because of it."""


def trained_again(run: Run) -> int:
    done = steps(run)
    return len(done) - len(set(done))


@pytest.fixture(scope="module")
def place(slurm: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the dataset `world`; jobs find the experiment by PYTHONPATH."""
    folder = tmp_path_factory.mktemp("faults")
    write_world(World(train_identities=8, test_identities=8, shots=2), folder / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TOYS))
        yield folder


@pytest.fixture(scope="module")
def outcomes(slurm: Any, place: Path) -> dict[str, Outcome]:
    with ThreadPoolExecutor(len(COURSES)) as threads:
        courses = ({name: DISTURBANCES[name] for name in names} for names in COURSES)
        going = [
            threads.submit(carry_out, slurm, place / str(number), course)
            for number, course in enumerate(courses)
        ]
    return {name: outcome for one in going for name, outcome in one.result().items()}


def carry_out(slurm: Any, folder: Path, course: dict[str, Disturbance]) -> dict[str, Outcome]:
    """Train one trial to its end through all that happens to it; returns how it went on."""
    sweep = make_sweep(folder, next(iter(course.values())))
    run = sweep.trials[0].run
    views, counts = [], []
    for how in course.values():
        if how.strike:
            how.strike.plan(run)
        if how.before:
            how.before(slurm, sweep)
        before, attempts = stage2_steps(run), run.status().get("attempts", 0)
        assert len(launch(sweep, "slurm")) == 1
        if how.act and not how.is_early:
            toy.until(lambda before=before: stage2_steps(run) >= before + 4, seconds=PATIENCE_S)
        counts.append(trained_again(run))
        if how.act:
            how.act(slurm, sweep)
        views += over(sweep)
        if views[-1].is_due:
            counts[-1] = trained_again(run)
        elif how.act:
            assert run.status()["attempts"] >= attempts + 2, "it had ended before"
        if how.repair:
            how.repair(slurm, sweep)
    if views[-1].is_due:
        assert len(launch(sweep, "slurm")) == 1
        over(sweep)
    # what a disturbance costs is trained after it, and before the next
    costs = [after - at for at, after in pairwise([*counts, trained_again(run)])]
    return {
        name: Outcome(run, view, cost)
        for name, view, cost in zip(course, views, costs, strict=True)
    }


def make_sweep(folder: Path, how: Disturbance) -> Sweep:
    folder.mkdir()
    file = folder / "sweep.yaml"
    file.write_text(json.dumps({
        "name": "faults", "recipe": "synthetic_tiny", "search": {}, "seeds": [1], "metric": "mAP",
        "resources": {
            "nodes": how.nodes, "tasks": how.ranks // how.nodes, "time": how.time,
        },
        "slurm": {
            "env": {"PACE_S": how.pace_s, "ENCODE_S": how.encode_s},
            **({"nodelist": "node1"} if how.ranks == 1 else {}),
        },
    }))
    overrides = [*SETTINGS, f"data.root={folder.parent / 'world'}", f"run.runs={folder / 'runs'}"]
    return read_sweep(
        file, schema=Config, recipes=RECIPES, overrides=overrides, metrics=["mAP"], complete=pin
    )


def stage2_steps(run: Run) -> int:
    return sum(step.startswith("stage2") for step in steps(run))


def over(sweep: Sweep) -> list[TrialState]:
    places = all_places(max_age_s=4.0)
    views: list[TrialState] = []

    def ended() -> bool:
        views[:] = survey(sweep, places)
        return not any(view.state in ALIVE for view in views)

    toy.until(ended, seconds=PATIENCE_S, every=0.5)
    return views


def job_of(sweep: Sweep) -> str:
    return next(iter(read_records(sweep.folder)[-1].jobs.values()))


def on_node1(slurm: Any, *command: str) -> None:
    """Run a command in the first node's mount name space."""
    enter = ["nsenter", f"--target={slurm.pid_of('node1')}", "--mount"]
    subprocess.run([*enter, *command], check=True)


DISTURBED = [name for name in DISTURBANCES if not name.startswith("undisturbed")]


@pytest.mark.parametrize("name", DISTURBED)
def test_a_disturbed_trial_ends_as_if_nothing_had_happened(
    name: str, outcomes: dict[str, Outcome], fault_table: Callable[..., None]
) -> None:
    how, outcome = DISTURBANCES[name], outcomes[name]
    calm = outcomes["undisturbed" if how.ranks == 1 else "undisturbed, two ranks"]
    assert_equal(outcome.run, calm.run)
    by_itself = outcome.view.state == "complete"
    assert by_itself == (not how.note)
    assert how.note in outcome.view.note
    fault_table(*row(name, outcome, calm))


def test_nothing_is_trained_twice_without_a_fault(outcomes: dict[str, Outcome]) -> None:
    for name in ("undisturbed", "undisturbed, two ranks"):
        assert outcomes[name].twice == 0
        assert outcomes[name].run.status()["attempts"] == 1


def test_a_damaged_checkpoint_is_reported(outcomes: dict[str, Outcome]) -> None:
    log = outcomes["last checkpoint damaged"].run.log_file.read_text()
    assert "weights.safetensors does not match its checksum" in log


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("preemption, user signal off", "SlurmctldParameters=preempt_send_user_signal", ""),
        ("preemption, GraceTime 0", "GraceTime=15", "GraceTime=0"),
    ],
)
def test_a_preempted_trial_ends_as_if_nothing_had_happened(
    name: str, before: str, after: str, slurm: Any, place: Path, outcomes: dict[str, Outcome],
    fault_table: Callable[..., None],
) -> None:
    def preempt(slurm: Any, sweep: Sweep) -> None:
        slurm.run("srun", "-p", "urgent", "-N2", "--exclusive", "true", timeout=90)

    with slurm.configured(before, after):
        course = {name: Disturbance(ranks=1, act=preempt)}
        outcome = carry_out(slurm, place / name, course)[name]
    assert_equal(outcome.run, outcomes["undisturbed"].run)
    assert outcome.view.state == "complete"
    fault_table(*row(name, outcome, outcomes["undisturbed"]))


def test_a_trial_whose_node_is_lost_ends_as_if_nothing_had_happened(
    slurm: Any, place: Path, outcomes: dict[str, Outcome], fault_table: Callable[..., None]
) -> None:
    def cut_power(slurm: Any, sweep: Sweep) -> None:
        slurm.kill_node("node2")
        slurm.run("scontrol", "update", "nodename=node2", "state=down", "reason=power cut")
        slurm.start_node("node2")

    calm = outcomes["undisturbed, two ranks"]
    name = "one of two nodes killed"
    course = {name: Disturbance(ranks=2, nodes=2, act=cut_power)}
    outcome = carry_out(slurm, place / name, course)[name]
    assert_equal(outcome.run, calm.run)
    fault_table(*row(name, outcome, calm))


def assert_equal(run: Run, calm: Run) -> None:
    """A disturbed run has the numbers, weights and metric log of an undisturbed one."""
    assert run.is_complete(), run.status()
    assert run.status()["attempts"] >= 2
    assert numbers(run) == numbers(calm)
    assert result(run) == result(calm)
    weights, expected = load_file(run.weights_file), load_file(calm.weights_file)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert list(dict.fromkeys(steps(run))) == steps(calm)


def row(name: str, outcome: Outcome, calm: Outcome) -> tuple[str, ...]:
    assert outcome.twice <= 4, "more than an epoch was trained twice"
    how_on = "by itself" if outcome.view.state == "complete" else "at the next launch"
    return name, how_on, f"{outcome.twice} of {len(steps(calm.run))}", "equal"


def numbers(run: Run) -> list[dict[str, Any]]:
    """The metric log without what the clock says."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in run.metrics()]


def result(run: Run) -> dict[str, Any]:
    return {k: v for k, v in (run.result() or {}).items() if k != "seconds"}


# --- what is around a trial fails; a toy is trained ---


@pytest.fixture
def toys(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TOYS))


def epochs_of(sweep: Sweep) -> list[int]:
    return [entry["epoch"] for entry in sweep.trials[0].run.metrics()]


def test_a_follower_sees_the_end_through_a_restart_of_the_controller(
    slurm: Any, toys: None, tmp_path: Path, fault_table: Callable[..., None]
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, recipe={"work": {"epochs": 12, "epoch_s": 1.0}})
    launch(sweep, "slurm")
    console = Console(file=(tmp_path / "told").open("w"))
    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(follow, sweep, console)
        toy.until(lambda: len(epochs_of(sweep)) >= 2)
        slurm.restart_controller()
        assert [view.state for view in following.result(timeout=120)] == ["complete"]
    assert epochs_of(sweep) == list(range(1, 13))
    assert sweep.trials[0].run.status()["attempts"] == 1
    fault_table("slurmctld restarted while following", "goes on", "0 of 12", "equal")


def test_without_accounting_trials_run_fail_with_their_cause_and_resume(
    slurm: Any, toys: None, tmp_path: Path, fault_table: Callable[..., None]
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, recipe={"work": {"epochs": 4, "epoch_s": 1.0}},
        slurm={"requeue": False, "no_requeue": True},
    )
    run = sweep.trials[0].run
    with slurm.without_accounting():
        launch(sweep, "slurm")
        toy.until(lambda: len(epochs_of(sweep)) >= 2)
        os.kill(read_json(run.folder / "seen-0.json")["pid"], signal.SIGKILL)
        toy.until(lambda: job_of(sweep) not in commands.my_jobs())
        run.lock_file.unlink()  # of another machine it looks alive for a minute
        [view] = over(sweep)
        assert view.state == "died"
        assert "task 0: Killed" in view.note
        assert len(launch(sweep, "slurm")) == 1
        assert over(sweep)[0].state == "complete"
    assert epochs_of(sweep) == [1, 2, 3, 4]
    fault_table("accounting down, kill -9", "at the next launch", "1 of 4", "equal")


def test_a_read_only_run_folder_is_reported_before_any_training(
    slurm: Any, toys: None, tmp_path: Path, fault_table: Callable[..., None]
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, slurm={"nodelist": "node1"})
    run = sweep.trials[0].run
    run.folder.mkdir(parents=True)
    on_node1(slurm, "mount", "--bind", str(run.folder), str(run.folder))
    on_node1(slurm, "mount", "-o", "remount,bind,ro", str(run.folder))
    launch(sweep, "slurm")
    [view] = over(sweep)
    assert f"{run.folder}: cannot be written: Read-only file system" in view.note
    assert run.metrics() == []
    on_node1(slurm, "umount", str(run.folder))
    launch(sweep, "slurm")
    assert over(sweep)[0].state == "complete"
    assert epochs_of(sweep) == [1, 2]
    fault_table("run folder read-only", "at the next launch", "0 of 2", "equal")
