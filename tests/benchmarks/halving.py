"""What ending trials early spares, and what it costs: a search by ASHA beside all its trials.

    python -m tests.benchmarks.halving [SWEEP [SEED ...]]

Runs a sweep of Ray's backend (default: sweeps/stage2_weights.yaml, seeds 1, 2 and 3) on this
machine, counts the epochs it trained, then lets the same trials go on to their ends by the array
backend, which has no scheduler. Some ten minutes a seed on two cores.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.base.mappings import numeric_leaves
from harness.cluster.launch import launch
from harness.cluster.local.place import living_workers
from harness.cluster.states import ALIVE, survey
from harness.runs.run import epoch_lines
from harness.sweeps.reading import Sweep, read_sweep
from launch.slurm import METRICS
from svll.base.run_files import taken_epochs
from svll.config import RECIPES, Config

SWEEP = Path("sweeps/stage2_weights.yaml")
SEEDS = (1, 2, 3)
PATIENCE_S = 3 * 3600.0


@dataclass(frozen=True)
class Cost:
    """What was trained until nothing was left to do, and the best of it."""

    complete: int
    epochs: int
    """Of both stages, that were trained; a stage 1 that was taken over was not."""
    stage2: int
    """Those of stage 2."""
    seconds: float
    best: float
    """Of the trials that were trained to their end."""


def main(words: list[str]) -> int:
    file = Path(words[0]) if words else SWEEP
    seeds = [int(word) for word in words[1:]] or SEEDS
    table = Table(
        "seed", "trials", "to their end", "epochs", "share", "of stage 2", "share", "time", "share",
        "best found", "best of all",
    )
    with tempfile.TemporaryDirectory(prefix="halving-") as folder:
        for seed in seeds:
            searched = _carry_out(_read(file, seed, folder, "backend=ray"))
            rest = _carry_out(_read(file, seed, folder, "backend=array"))
            whole = searched.seconds + rest.seconds
            cells = [
                seed, rest.complete, searched.complete,
                *_share(searched.epochs, rest.epochs), *_share(searched.stage2, rest.stage2),
                *_share(round(searched.seconds), round(whole)),
                f"{searched.best:.4f}", f"{rest.best:.4f}",
            ]
            table.add_row(*map(str, cells))
            print(*cells, sep="  ", flush=True)
    Console(width=120).print(table)
    return 0


def _share(part: int, whole: int) -> tuple[str, str]:
    return f"{part} of {whole}", f"{part / whole:.0%}"


def _read(file: Path, seed: int, runs: str, backend: str) -> Sweep:
    return read_sweep(
        file, schema=Config, recipes=RECIPES, metrics=METRICS,
        overrides=[f"seeds=[{seed}]", f"name=seed-{seed}", f"run.runs={runs}", backend],
    )


def _carry_out(sweep: Sweep) -> Cost:
    started = time.monotonic()
    launch(sweep, "local")
    while (
        any(one.state in ALIVE for one in survey(sweep))
        or living_workers(sweep.folder)
    ):
        assert time.monotonic() < started + PATIENCE_S, f"see {sweep.folder}"
        time.sleep(1.0)
    taken = time.monotonic() - started
    runs = [trial.run for trial in sweep.trials]
    bad = [view for view in survey(sweep) if view.state not in ("complete", "ended early")]
    assert not bad, f"{bad[0].state}: {bad[0].note}"
    results = [numeric_leaves(result) for run in runs if (result := run.result()) is not None]
    lines = [line for run in runs for line in epoch_lines(run)]
    return Cost(
        complete=len(results), epochs=len(lines) - sum(map(taken_epochs, runs)),
        stage2=sum(line["stage"] == "stage2" for line in lines), seconds=taken,
        best=max(result[sweep.metric] for result in results),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
