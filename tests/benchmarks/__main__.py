"""Measure parts of the project against the standard way, in one run: `make bench [PART=data]`.

Prints, for each part, our time, the baseline's, their ratio, the floor, our time in multiples of
it, and memory.
"""

import importlib
import resource
import sys

from rich.console import Console
from rich.table import Table

from tests.benchmarks.timing import Row

PARTS = ("data", "evaluation", "cluster", "search")


def main(wanted: str) -> int:
    """Run one part or all of them and print the table."""
    if wanted not in ("all", *PARTS):
        print(f"no part {wanted!r}; parts: all, {', '.join(PARTS)}", file=sys.stderr)
        return 1
    table = Table(
        "part", "unit", "ours", "baseline", "ratio", "floor", "ours/floor", "memory", "its baseline"
    )
    notes = []
    for part in PARTS if wanted == "all" else (wanted,):
        for row in importlib.import_module(f"tests.benchmarks.{part}").measure():
            table.add_row(*_cells(row))
            print(*_cells(row), row.note, sep="  ", file=sys.stderr, flush=True)
            if row.note:
                notes.append(f"{row.name}: {row.note}")
    Console(width=150).print(table)
    for note in notes:
        print(note)
    return 0


def _cells(row: Row) -> list[str]:
    baseline = ("", "") if row.baseline is None else (
        f"{row.baseline:.3g}", f"{row.baseline / row.ours:.2f} x"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    memory = f"{peak:,.0f} MB in all" if row.memory_mb is None else f"{row.memory_mb:,.0f} MB"
    other = "" if row.baseline_memory_mb is None else f"{row.baseline_memory_mb:,.0f} MB"
    return [
        row.name, row.unit, f"{row.ours:.3g}", *baseline, f"{row.floor:.3g}",
        f"{row.ours / row.floor:.2f} x", memory, other,
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "all"))
