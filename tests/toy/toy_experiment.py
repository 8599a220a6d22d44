"""A stand-in for a real experiment, quick and without torch, that can be told to misbehave.

Child processes import it by PYTHONPATH. It saves after every epoch, as a real one does, so that a
test can see whether a resumed run repeats or loses any.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import yaml

from harness.base.caches import CACHES
from harness.base.files import read_json, write_json
from harness.config.fields import changeable, runtime
from harness.runs.experiment import Experiment
from harness.runs.run import Run
from harness.runs.stopping import Stopped, check_stop, stop_requested
from harness.runs.takeovers import changed_settings
from harness.sweeps.reading import Sweep, read_sweep

ODD = "-a 'b\" # x, $HOME[*]?{}&;|~=+\N{GRINNING FACE}\t. "
"""A folder's name with every character that no place, not even SLURM, reads otherwise."""
ODD_HERE = f"{ODD}%j\\\n"
"""And with those that only SLURM does."""


@dataclass
class Work:
    quality: float = changeable(0.5)
    """Becomes the result."""
    epochs: int = 2
    epoch_s: float = 0.0
    fail: Literal["no", "raise", "kill", "exit"] = "no"
    fail_rank: int = 0

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.epochs < 1:
            yield "epochs", "must be at least 1"


@dataclass
class Place:
    runs: str = runtime("runs")
    name: str = runtime("")
    photos: str = runtime("")
    experiment: str = runtime("toy_experiment.run")
    prepare: str = runtime("toy_experiment.prepare")
    report: str = runtime("toy_experiment.report")


@dataclass
class Config:
    seed: int = 1
    work: Work = field(default_factory=Work)
    run: Place = field(default_factory=Place)

    experiment: ClassVar[Experiment] = Experiment(
        metric="validation.mAP", columns={"test mAP": "mAP"}, carried_files=("notes.txt",),
        stages={"work": "work.epochs"}, advice={"the toy broke": "wind it up"},
    )


def report(folder: Path) -> None:
    write_json(folder / "reported.json", sorted(run.name for run in folder.iterdir()))


def broken_report(folder: Path) -> None:
    raise RuntimeError("no ink")


def slow_report(folder: Path) -> None:
    time.sleep(60.0)


def prepare(runs: list[Run]) -> None:
    """Make a file that all runs share, not too fast."""
    beginning = runs[0].folder.parent / "preparing.json"
    again = beginning.exists()
    write_json(beginning, {"time": time.time()})
    rest(2.0 if again or "TOY_PREPARE_S" not in os.environ else float(os.environ["TOY_PREPARE_S"]))
    check_stop("preparing")
    write_json(runs[0].folder.parent / "shared.json", [run.signature for run in runs])


def run(run: Run, report=None) -> None:
    settings = yaml.safe_load(run.config_file.read_text())
    # runs of the real configuration have no `work`: their tests tell it by the environment
    work = Work(**{**settings.get("work", {}), **json.loads(os.environ.get("TOY_WORK", "{}"))})
    rank = int(os.environ.get("RANK", "0"))
    state = run.checkpoints / f"{rank}.json"
    first = read_json(state)["epoch"] if state.exists() else taken_over(run)
    quality = {s.key: s.value for s in changed_settings(run)}.get("work.quality", work.quality)
    if rank == 0:
        run.keep_metrics(first)  # killed between the line and the state: the epoch is done again
        if not (notes := run.folder / "notes.txt").exists():
            notes.write_text(run.signature)
    note_surroundings(run, rank)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    until(lambda: all((run.folder / f"seen-{other}.json").exists() for other in range(world)))
    for epoch in range(first + 1, work.epochs + 1):
        rest(work.epoch_s)
        misbehave(work, rank)
        if rank == 0:
            score = quality * epoch / work.epochs
            line = {
                "kind": "epoch", "stage": "work", "epoch": epoch, "step": epoch,
                "loss": 1.0 / epoch, "losses": {"toy": 1.0 / epoch}, "lr": 0.1,
                "validation": {"mAP": score},
            }
            run.log_metrics(line)
            write_checkpoint(run, epoch)
        write_json(state, {"epoch": epoch})
        if rank == 0 and report is not None:
            report(line)
        if stop_requested() and epoch < work.epochs:
            raise Stopped("told to stop")
    if rank == 0:
        write_json(run.result_file, {
            # the names of the real experiment: its sweeps are also tested with this one
            "mAP": quality / 2, "mINP": quality / 4,
            "cmc": {"1": quality, "5": quality, "10": quality},
            "validation": {"mAP": quality, "cmc": {"1": quality}},
            "initial": {"mAP": 0.1}, "seconds": 1.0,
        })


def write_checkpoint(run: Run, epoch: int) -> None:
    """Leave what a real run would, for others to go on from; of no use to this one."""
    for old in run.checkpoints.glob("work-*"):
        shutil.rmtree(old)
    folder = run.checkpoints / f"work-{epoch + 1:04d}-000000"
    write_json(folder / "state.json", {
        "signature": run.signature,
        "progress": {"stage": "work", "epoch": epoch + 1, "step": 0, "metric_lines": epoch},
    })


def taken_over(run: Run) -> int:
    """Return the last epoch of a checkpoint that is another run's, 0 when there is none."""
    latest = run.checkpoints / "latest.json"
    if not latest.exists():
        return 0
    state = read_json(run.checkpoints / read_json(latest)["name"] / "state.json")
    assert state["signature"] == run.signature
    return state["progress"]["epoch"] - 1


def rest(seconds: float) -> None:
    """Sleep, but wake up when told to stop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop_requested():
        time.sleep(0.02)


def misbehave(work: Work, rank: int) -> None:
    if rank != work.fail_rank or work.fail == "no":
        return
    if work.fail == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if work.fail == "exit":
        os._exit(7)
    raise RuntimeError("the toy broke, as it was told to")


def note_surroundings(run: Run, rank: int) -> None:
    """Keep what each rank saw, for tests to look at."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SVLL_ATTEMPT", "OMP_NUM_THREADS",
             "CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV", "SLURM_CPUS_PER_TASK", "SLURM_RESTART_COUNT",
             "TOY", *CACHES)
    seen = {name: os.environ[name] for name in names if name in os.environ}
    seen["pid"] = os.getpid()
    seen["host"] = os.uname().nodename
    seen["file"], seen["mounts"] = __file__, os.readlink("/proc/self/ns/mnt")
    seen["shared"] = (run.folder.parent / "shared.json").exists()
    write_json(Path(run.folder) / f"seen-{rank}.json", seen)


def make_sweep(folder: Path, search: dict, *, recipe: dict | None = None, **keys) -> Sweep:
    """Write a recipe and a sweep file of this experiment below `folder` and read them."""
    recipes = folder / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    settings = {"run": {"runs": str(folder / "runs")}, **(recipe or {})}
    (recipes / "toy.yaml").write_text(yaml.safe_dump(settings))
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({
        "name": "toys", "recipe": "toy", "search": search, "resources": {"time": "10m"}, **keys,
    }, sort_keys=False))
    return read_sweep(file, schema=Config, recipes=recipes)


def until(check, *, seconds: float = 180.0, every: float = 0.1) -> None:
    """Wait until `check()` is true; it is asked `every` so many seconds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(every)
