"""Measure parts of the project against the standard way, in one run: `make bench [PART=data]`.

Prints, for each part, our time, the baseline's, their ratio, the floor, our time in multiples of
it, and memory; the same goes to runs/bench as JSON. A part that fails does not end the others.
"""

import dataclasses
import importlib
import os
import platform
import sys
import time
import traceback
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from harness.base.files import write_json
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
    rows: list[Row] = []
    failed = []
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{wanted}.json"
    machine = _machine()
    for part in PARTS if wanted == "all" else (wanted,):
        try:
            for row in importlib.import_module(f"tests.benchmarks.{part}").measure():
                rows.append(row)
                write_json(file, {"machine": machine, "rows": [_as_json(row) for row in rows]})
                table.add_row(*_cells(row))
                print(*_cells(row), row.note, sep="  ", file=sys.stderr, flush=True)
        except Exception:  # the parts after it take hours, and those before it took them
            traceback.print_exc()
            failed.append(part)
    Console(width=170).print(table)
    for row in rows:
        if row.note:
            print(f"{row.name}: {row.note}")
    if rows:
        print(f"kept: {file}")
    if failed:
        print(f"failed, see above: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


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
    memory, other = (
        "" if mb is None else f"{mb:,.0f} MB" for mb in (row.memory_mb, row.baseline_memory_mb)
    )
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
