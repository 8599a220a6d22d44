"""Measure parts of the project against the standard way, in one run: `make bench [PART=data]`.

Prints, for each part, our time, the baseline's, their ratio, the floor and the peak memory.
"""

import importlib
import resource
import sys

from rich.console import Console
from rich.table import Table

PARTS = ("data", "ranking")


def main(wanted: str) -> int:
    """Run one part or all of them and print the table."""
    if wanted not in ("all", *PARTS):
        print(f"no part {wanted!r}; parts: all, {', '.join(PARTS)}", file=sys.stderr)
        return 1
    table = Table("part", "unit", "ours", "baseline", "ratio", "floor", "peak memory")
    for part in PARTS if wanted == "all" else (wanted,):
        for row in importlib.import_module(f"tests.benchmarks.{part}").measure():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            table.add_row(
                row.name, row.unit, f"{row.ours:.3g}", f"{row.baseline:.3g}",
                f"{row.baseline / row.ours:.2f} x", f"{row.floor:.3g}", f"{peak:.2f} GB",
            )
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "all"))
