"""What the benchmarks share: the median time of repeated calls, and a row of the table."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
    return statistics.median(seconds(work) for _ in range(repeats))


def seconds(work: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and the MB that this process held at most beyond what it held before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _status_mb("VmRSS")
    taken = seconds(work)
    return taken, _status_mb("VmHWM") - before


def _status_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return float("nan")
