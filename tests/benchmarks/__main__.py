"""Measure parts of the project against the standard way, in one run: `make bench [PART=data]`.

Prints, for each part, our time, the baseline's, their ratio, the floor, our time in multiples of
it, and memory; the same goes to runs/bench as JSON.
"""

import dataclasses
import importlib
import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from harness.files import write_json
from tests.benchmarks.timing import Row

PARTS = (
    "stage1", "start", "data", "stage2", "features", "ranks", "demo", "scale", "evaluation",
    "cluster", "search",
)
RESULTS = Path("runs/bench")


def main(wanted: str) -> int:
    """Run one part or all of them, print the table and keep it."""
    if wanted not in ("all", *PARTS):
        print(f"no part {wanted!r}; parts: all, {', '.join(PARTS)}", file=sys.stderr)
        return 1
    table = Table(
        "part", "unit", "ours", "+-", "baseline", "+-", "ratio", "floor", "ours/floor", "memory",
        "its baseline",
    )
    rows = []
    for part in PARTS if wanted == "all" else (wanted,):
        for row in importlib.import_module(f"tests.benchmarks.{part}").measure():
            rows.append(row)
            table.add_row(*_cells(row))
            print(*_cells(row), row.note, sep="  ", file=sys.stderr, flush=True)
    Console(width=170).print(table)
    for row in rows:
        if row.note:
            print(f"{row.name}: {row.note}")
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{wanted}.json"
    write_json(file, {"machine": _machine(), "rows": [_as_json(row) for row in rows]})
    print(f"kept: {file}")
    return 0


def _machine() -> dict[str, str | int]:
    named = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": named[0] if named else platform.machine(),
        "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__,
        "arithmetic": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _as_json(row: Row) -> dict[str, object]:
    return {**dataclasses.asdict(row), "ratio": row.baseline and row.baseline / row.ours}


def _cells(row: Row) -> list[str]:
    baseline = ("", "") if row.baseline is None else (
        f"{row.baseline:.3g}", f"{row.baseline / row.ours:.2f} x"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    memory = f"{peak:,.0f} MB in all" if row.memory_mb is None else f"{row.memory_mb:,.0f} MB"
    other = "" if row.baseline_memory_mb is None else f"{row.baseline_memory_mb:,.0f} MB"
    floor = ("", "") if row.floor is None else (
        f"{row.floor:.3g}", f"{row.ours / row.floor:.2f} x"
    )
    spread, other_spread = (
        "" if share is None else f"{share:.0%}" for share in (row.spread, row.baseline_spread)
    )
    return [
        row.name, row.unit, f"{row.ours:.3g}", spread, baseline[0], other_spread, baseline[1],
        *floor, memory, other,
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "all"))
