"""What the benchmarks share: the median time of repeated calls, and a row of the table."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line: time per unit of our way, of the standard way, and the least possible."""

    name: str
    unit: str
    ours: float
    baseline: float | None
    floor: float
    memory_mb: float | None = None
    """What our way needs beyond its input; None: not measured."""
    baseline_memory_mb: float | None = None
    note: str = ""


def median_s(work: Callable[[], Any], *, repeats: int = 3) -> float:
    """Return the median seconds of `repeats` calls, after one that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
