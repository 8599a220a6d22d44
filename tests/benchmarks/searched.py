"""A sweep of Ray's backend by the command line, its driver killed in the middle, gone on.

    python -m tests.benchmarks.searched SWEEP          # on a real SLURM of two nodes
    python -m tests.benchmarks.searched SWEEP --here   # on this machine without it

The first brings up the SLURM of the tests (needs root and its packages, see tests/slurm/cluster.py)
and searches on both nodes. Prints what the command prints, and in the end where each trial ran and
how often it began. Minutes to half an hour on two cores, by the sweep.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from harness.cluster.local.place import living_workers
from harness.cluster.ray.search_notes import was_ended_early
from harness.runs.run import Run, epoch_lines
from tests.benchmarks.own_slurm import own_slurm

ON_TWO_NODES = ("ray.nodes=2", "ray.trials_per_node=1", "resources.memory=3GB", "resources.time=1h")
DRIVER = b"harness.cluster.ray.driver"
PATIENCE_S = 3600.0


def main(file: str, *options: str) -> int:
    here = "--here" in options
    with nullcontext() if here else own_slurm(), tempfile.TemporaryDirectory() as runs:
        words = ["--sweep", file, f"run.runs={runs}", *(["--cluster", "local"] if here else [])]
        command = [sys.executable, "launch/slurm.py", *words, *([] if here else ON_TWO_NODES)]
        assert _say(command) == 0
        _until(lambda: _is_halfway(Path(runs)))
        [driver] = _drivers(runs)
        print(f"kill -9 {driver}, the driver; trials so far:", flush=True)
        os.kill(driver, signal.SIGKILL)
        _say([*command, "--status"])
        _until(lambda: not _is_on_its_way(Path(runs), here))
        code = _say([*command, "--follow"])
        _say([*command, "--status"])
        return code


def _is_halfway(runs: Path) -> bool:
    """Whether two trials are over, and two others have trained for some epochs."""
    found = [Run(status.parent) for status in runs.glob("*/*/status.json")]
    over = [run for run in found if run.is_complete() or was_ended_early(run)]
    begun = [run for run in found if run not in over and len(epoch_lines(run)) > 2]
    return len(over) >= 2 and len(begun) >= 2


def _drivers(runs: str) -> list[int]:
    """Return the processes that drive a search in this folder of runs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if DRIVER in words and any(word.startswith(runs.encode()) for word in words):
            found.append(int(file.parent.name))
    return found


def _is_on_its_way(runs: Path, here: bool) -> bool:
    """Whether the job whose driver was killed has not ended yet."""
    if here:
        return any(living_workers(folder) for folder in runs.iterdir() if folder.name != "cache")
    jobs = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    return bool(jobs.stdout.strip())


def _say(command: list[str]) -> int:
    print("$ python", *command[1:], flush=True)
    return subprocess.run(command).returncode


def _until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:.0f} s in vain")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
