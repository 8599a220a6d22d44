"""A thousand trivial trials through a real SLURM: submitting, looking, following; and workers of
this machine that wait for their turn.

The cluster is that of the tests, whose two nodes claim 32 cores each. Trials are held while
submitting and looking are measured, and are then let go; what they take to run is that of starting
Python a thousand times on the cores that there are, and is told as a note.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.base.files import read_json
from harness.base.locks import held_lock
from harness.cluster.launch import cancel, launch
from harness.cluster.local import slots
from harness.cluster.local.place import living_workers
from harness.cluster.states import survey
from harness.sweeps.reading import Sweep
from tests.benchmarks.own_slurm import own_slurm
from tests.benchmarks.timing import Row, measured, median_s, seconds

TRIALS = 1000
ALONE = 50
"""How many jobs the baseline submits one by one; its time is scaled to all."""
FOLLOWED_S = 60.0
WORKERS = 8
"""How many workers wait."""
WAITED_S = 20.0
TOYS = Path(__file__).parents[1] / "toy"
FOLLOW = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from rich.console import Console
import toy_experiment as toy
from harness.reporting import follow
from harness.sweeps.reading import read_sweep
folder = Path(sys.argv[2])
sweep = read_sweep(folder / "sweep.yaml", schema=toy.Config, recipes=folder / "recipes")
follow.follow(sweep, Console(file=open(folder / "followed.txt", "w")))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure() -> Iterator[Row]:
    """Yield a row each for two ways of waiting, and for submitting, looking, and following."""
    sys.path.insert(0, str(TOYS))
    os.environ["PYTHONPATH"] = str(TOYS)
    import toy_experiment as toy

    search = {"work.quality": {"grid": [n / TRIALS for n in range(TRIALS)]}}
    with tempfile.TemporaryDirectory(prefix="wait-") as name:
        yield from _waiting(toy.make_sweep(Path(name), search), Path(name) / "claims")
    with (
        own_slurm(cpus=32, memory_mb=64000) as cluster,
        tempfile.TemporaryDirectory(prefix="scale-") as name,
    ):
        folder = Path(name)
        recipe = {"work": {"epochs": 1}}
        sweep = toy.make_sweep(folder, search, recipe=recipe, slurm={"hold": True})
        yield _submitting(cluster, sweep)
        yield _looking(sweep)
        yield _following(cluster, sweep, folder)


def _waiting(sweep: Sweep, claims: Path) -> Iterator[Row]:
    """Yield how much workers read while others have their slots, and their GPUs or cores."""
    os.environ["SVLL_CLAIMS"] = str(claims)
    for what in ("slots", "cores"):
        with ExitStack() as held:
            # to be claimed; nothing runs on them
            held.enter_context(patch.object(slots, "usable_cores", lambda: list(range(WORKERS))))
            if what == "slots":
                for number in range(WORKERS):
                    held.enter_context(held_lock(sweep.folder / "jobs" / f"slot-{number}.lock"))
            elif claim := slots.pool_for(sweep.resources, WORKERS).take("benchmark", WORKERS):
                held.callback(claim.release)
            launch(sweep, "local", jobs=WORKERS)
            pids = [worker["pid"] for worker in living_workers(sweep.folder)]
            time.sleep(10.0)  # they start, and their pauses grow
            before, began = sum(map(_reads, pids)), time.monotonic()
            time.sleep(WAITED_S)
            per_s = (sum(map(_reads, pids)) - before) / (time.monotonic() - began)
            one_pass = _reads(os.getpid())
            for trial in sweep.trials:
                trial.run.status()
            one_pass = _reads(os.getpid()) - one_pass
            released = time.monotonic()
        while not any((trial.run.folder / "claim.lock").exists() for trial in sweep.trials):
            time.sleep(0.01)
        taken = time.monotonic() - released
        cancel(sweep)
        yield Row(
            f"reads of {len(pids)} workers that wait for {what}", "per s", per_s,
            one_pass * WORKERS / 0.2, None,
            note=f"of {TRIALS} trials; baseline: each worker reads all statuses five times a "
            f"second; the first one had its trial {taken:.1f} s after the {what} came free",
        )


def _reads(pid: int) -> int:
    """Return how often a process has read from files."""
    return int(re.findall(r"syscr: (\d+)", Path(f"/proc/{pid}/io").read_text())[0])


def _submitting(cluster: Any, sweep: Sweep) -> Row:
    ours, memory = measured(lambda: launch(sweep, "slurm"))

    def one_by_one() -> None:
        for _ in range(ALONE):
            cluster.run("sbatch", "--hold", "--output=/dev/null", "--wrap=true")

    alone = seconds(one_by_one) * TRIALS / ALONE
    at_once = seconds(lambda: cluster.run(
        "sbatch", "--hold", f"--array=0-{TRIALS - 1}", "--output=/dev/null", "--wrap=true"
    ))
    cluster.run("scancel", "--name=wrap")
    return Row(
        f"submitting {TRIALS} trials", "s", ours, alone, at_once, memory,
        note=f"baseline: one sbatch for each, {ALONE} measured and scaled; floor: one bare array",
    )


def _looking(sweep: Sweep) -> Row:
    files = [trial.run.status_file for trial in sweep.trials]
    # as --status does it, less the time to start Python and to draw the table
    ours = median_s(lambda: survey(sweep))
    floor = median_s(lambda: [read_json(file) for file in files])
    return Row(
        f"the states of {TRIALS} trials", "s", ours, None, floor,
        note="floor: reading their status files",
    )


def _following(cluster: Any, sweep: Sweep, folder: Path) -> Row:
    follower = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(TOYS), str(folder)], text=True, stdout=subprocess.PIPE
    )
    time.sleep(10.0)  # it starts
    before, began = _calls(cluster), time.monotonic()
    time.sleep(FOLLOWED_S)
    per_minute = (_calls(cluster) - before) * 60 / (time.monotonic() - began)
    began = time.monotonic()
    jobs = cluster.run("squeue", "-h", "-o", "%A").split()
    cluster.run("scontrol", "release", *dict.fromkeys(jobs))
    told, _ = follower.communicate()
    taken = time.monotonic() - began
    complete = sum(trial.run.is_complete() for trial in sweep.trials)
    assert complete == TRIALS, f"{complete} of {TRIALS} trials are complete"
    return Row(
        "following: controller calls", "per min", per_minute, None, 4.0, float(told),
        note=f"floor: one call every 15 s; memory: of the whole follower; all {complete} trials "
        f"complete {taken:.0f} s after they were let go, on {os.cpu_count()} cores. Estimate for "
        "100,000 trials, linear: a hundred times submitting and looking, the same calls",
    )


def _calls(cluster: Any) -> int:
    """Return how often the controller has been asked about jobs, partitions and nodes."""
    text = cluster.run("sdiag").partition("Remote Procedure Call statistics by user")[0]
    asked = re.findall(r"REQUEST_(?!STATS)\w+_INFO\w*\s*\(.*?count:(\d+)", text)
    return sum(map(int, asked))


if __name__ == "__main__":
    for row in measure():
        print(json.dumps(row.__dict__))
