"""The real experiment, in which one rank is killed, once, at a chosen moment.

A test writes a `Strike` to strike.json in the run folder. Every step that is trained is noted in
steps.txt there, so that a test sees what was done twice. Child processes import this by PYTHONPATH.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.base.files import read_json, write_json
from harness.runs.run import Run

PACE_S = float(os.environ.get("PACE_S", "0.15"))
"""How much longer a step takes, so that what happens from outside happens in the midst."""
ENCODE_S = float(os.environ.get("ENCODE_S", "0"))
"""How much longer a batch of images takes to be encoded."""


@dataclass(frozen=True)
class Strike:
    """SIGKILL for a rank, at the count-th time that it comes to a moment."""

    moment: str
    """A stage's name: after one of its steps; `checkpoint`, `features`: with half of it written."""
    count: int
    rank: int = 0

    def plan(self, run: Run) -> None:
        write_json(run.folder / "strike.json", asdict(self))


def steps(run: Run) -> list[str]:
    """What was trained: stage, epoch and step, in the order of time."""
    file = run.folder / "steps.txt"
    return file.read_text().splitlines() if file.exists() else []


def encoded(run: Run) -> int:
    """How many batches of images were encoded."""
    file = run.folder / "batches.txt"
    return len(file.read_text()) if file.exists() else 0


def run(run: Run, report: Any = None) -> Any:
    from svll import experiment

    rank = int(os.environ.get("RANK", "0"))
    note_steps(run.folder / "steps.txt", rank)
    note_batches(run.folder / "batches.txt")
    plan = run.folder / "strike.json"
    if plan.exists() and (strike := Strike(**read_json(plan))).rank == rank:
        arm(strike, plan)
    return experiment.run(run, report)


def note_steps(file: Path, rank: int) -> None:
    from harness.training import loop

    before = loop.train_step

    def step(stage: Any, engine: Any, batch: Any, at: Any, **more: Any) -> Any:
        time.sleep(PACE_S)
        losses = before(stage, engine, batch, at, **more)
        if rank == 0:
            with file.open("a") as notes:
                notes.write(f"{stage.name} {at.epoch} {at.step}\n")
        return losses

    loop.train_step = step


def note_batches(file: Path) -> None:
    from svll.features import extract

    before = extract._encoded

    def encoded(*arguments: Any) -> Iterator[Any]:
        for batch in before(*arguments):
            with file.open("a") as notes:
                notes.write(".")
            time.sleep(ENCODE_S)
            yield batch

    extract._encoded = encoded


def arm(strike: Strike, plan: Path) -> None:
    seen = 0

    def now() -> bool:
        nonlocal seen
        seen += 1
        return seen == strike.count

    def kill() -> None:
        plan.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    if strike.moment == "checkpoint":
        import safetensors.torch as library

        library.save_file = half_of(library.save_file, now, kill)
    elif strike.moment == "features":
        from svll.features import parts as feature_parts

        whole = feature_parts.put_features

        def put(group: Any, features: Any) -> None:
            if now():
                whole(group, features[: len(features) // 2])
                group.file.flush()
                kill()
            whole(group, features)

        feature_parts.put_features = put
    else:
        from harness.training import loop

        step = loop.train_step

        def struck(stage: Any, *rest: Any, **more: Any) -> Any:
            losses = step(stage, *rest, **more)
            if stage.name == strike.moment and now():
                kill()
            return losses

        loop.train_step = struck


def half_of(
    save: Callable[..., None], now: Callable[[], bool], kill: Callable[[], None]
) -> Callable[..., None]:
    def saved(tensors: Any, path: Path, **more: Any) -> None:
        save(tensors, path, **more)
        if path.parents[1].name == "checkpoints" and now():
            os.truncate(path, path.stat().st_size // 2)
            kill()

    return saved
