"""A trial of two nodes with two ranks each on a real SLURM, preempted twice, beside a calm one.

    python -m tests.benchmarks.preempted

Brings up the SLURM of the tests (needs root and its packages, see tests/slurm/cluster.py), runs the
recipe synthetic_tiny both ways, and prints the numbers side by side. Some ten minutes on two cores.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.cluster.known_places import Places, all_places
from harness.cluster.launch import launch
from harness.cluster.states import ALIVE, survey
from harness.runs.run import Run
from harness.sweeps.reading import Sweep, read_sweep
from svll.config import RECIPES, Config
from tests.benchmarks.own_slurm import own_slurm

SETTINGS = ("stage1.batch=16", "stage1.epochs=3", "stage2.batch=16", "stage2.epochs=6",
            "run.log_every=1", "run.tensorboard=false", "resources.nodes=2", "resources.tasks=2",
            "resources.time=30m", "metric=mAP")
PREEMPTED_IN = (("stage1", 2), ("stage2", 3))
"""The stage and epoch in whose midst a more urgent job comes."""
PATIENCE_S = 900.0


def main() -> int:
    with own_slurm() as cluster, tempfile.TemporaryDirectory(prefix="preempted-") as folder:
        calm = _carry_out(Path(folder) / "calm", cluster, ())
        struck = _carry_out(Path(folder) / "struck", cluster, PREEMPTED_IN)
        return _tell(calm, struck)


def _carry_out(folder: Path, cluster: Any, moments: tuple[tuple[str, int], ...]) -> Run:
    words = [*SETTINGS, f"run.runs={folder}"]
    sweep = read_sweep("synthetic_tiny", schema=Config, recipes=RECIPES, overrides=words)
    launch(sweep, "slurm")
    run = sweep.trials[0].run
    for stage, epoch in moments:
        _until(lambda stage=stage, epoch=epoch: _is_in(run, stage, epoch))  # type: ignore[misc]
        print(f"a more urgent job comes in {stage}, epoch {epoch}", file=sys.stderr)
        cluster.run("srun", "-p", "urgent", "-N2", "--exclusive", "true", timeout=120)
    places = all_places(max_age_s=2.0)
    _until(lambda: not _is_on_its_way(sweep, places))
    assert run.is_complete(), run.status()
    return run


def _is_in(run: Run, stage: str, epoch: int) -> bool:
    """Whether a step of an epoch has been logged, and the epoch is not yet over."""
    lines = [(line["stage"], line["epoch"]) for line in run.metrics()]
    return bool(lines) and lines[-1] == (stage, epoch) and run.metrics()[-1]["kind"] == "step"


def _is_on_its_way(sweep: Sweep, places: Places) -> bool:
    return any(view.state in ALIVE for view in survey(sweep, places))


def _until(check: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s in vain")
        time.sleep(0.02)


def _tell(calm: Run, struck: Run) -> int:
    table = Table("", "undisturbed", "preempted twice", "")
    for key in ("attempts", "preemptions"):
        counts = [str(run.status().get(key, 0)) for run in (calm, struck)]
        table.add_row(key, *counts, "")
    rows = {"lines of the metric log": (len(calm.metrics()), len(struck.metrics()))}
    for before, after in zip(calm.metrics(), struck.metrics(), strict=False):
        if before["kind"] == "epoch":
            name = f"{before['stage']} epoch {before['epoch']}: loss"
            rows[name] = before["loss"], after.get("loss")
    a, b = calm.result() or {}, struck.result() or {}
    rows |= {"validation mAP": (a["validation"]["mAP"], b["validation"]["mAP"]),
             "test mAP": (a["mAP"], b["mAP"]), "test Rank-1": (a["cmc"]["1"], b["cmc"]["1"])}
    for name, values in rows.items():
        table.add_row(name, *map(repr, values), "equal" if values[0] == values[1] else "different")
    Console(width=120).print(table)
    return 0 if all(x == y for x, y in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
