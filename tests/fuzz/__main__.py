"""Try odd inputs on every target, or on those that are named, and print how they ended.

Each target has a separate process, which may die of an input; as many run at the same time as
there are processors.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.fuzz.targets import TARGETS


def main() -> int:
    """Return 1 if an input led to a traceback, a hang or a dead process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="in all")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}; targets: {', '.join(TARGETS)}")
    workers = min(len(names), len(os.sched_getaffinity(0)))
    seconds = given.seconds * workers / len(names)
    table = Table("target", "tried", "answers", "messages", "tracebacks", "hangs", "crashes")
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as threads:
        counted = threads.map(lambda name: _counts(name, seconds, given.seed, Path(folder)), names)
        for name, counts in zip(names, counted, strict=True):
            table.add_row(name, *(str(counts[key]) for key in ("tried", "answers", "messages")),
                          *(str(len(counts[key])) for key in ("tracebacks", "hangs", "crashes")))
            faults += [f"{name}: {kind[:-1]}: {place}\n    {value}"
                       for kind in ("tracebacks", "hangs", "crashes")
                       for place, value in counts[kind].items()]
    print("\n".join(faults))
    Console().print(table)
    print(f"seed {given.seed}")
    return 1 if faults else 0


def _counts(name: str, seconds: float, draws: int, folder: Path) -> dict[str, Any]:
    out = folder / f"{name}.json"
    words = [sys.executable, "-m", "tests.fuzz.trying", name, str(seconds), str(draws), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    counts = dict.fromkeys(("tried", "answers", "messages"), 0) | {"tracebacks": {}, "hangs": {}}
    if out.exists():
        counts = json.loads(out.read_text())
    crashes = {}
    if done.returncode:
        value = Path(f"{out}.input").read_text(errors="replace") if out.exists() else "at the start"
        crashes = {f"exit status {done.returncode}: {done.stderr[-2000:]}": value}
    return {**counts, "crashes": crashes}


if __name__ == "__main__":
    sys.exit(main())
