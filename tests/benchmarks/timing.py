"""What the benchmarks share: times of repeated calls, in turns, and a row of the table."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from harness.training import ranks


@dataclass(frozen=True)
class Row:
    """One line: time per unit of our way, of the standard way, and the least possible."""

    name: str
    unit: str
    ours: float
    baseline: float | None
    floor: float | None
    memory_mb: float | None = None
    """What our way needs beyond its input; None: not measured."""
    baseline_memory_mb: float | None = None
    note: str = ""
    spread: float | None = None
    """Half of the range of our times, as a share of their median; None: one time."""
    baseline_spread: float | None = None
    images_per_s: float | None = None
    mfu: float | None = None
    """The share of the GPU's stated speed that our matrix products reach; None: unknown."""
    idle: float | None = None
    """The share of our time in which the GPU has nothing to do."""
    waiting: float | None = None
    """The share of our time in which a step waits for its images."""


class Times(NamedTuple):
    """Of repeated calls."""

    median: float
    spread: float
    """Half of the range, as a share of the median."""
    memory_mb: float | None = None
    """What the process held at most beyond what it held before a call; None: not measured."""


def in_turns(*works: Callable[[], Any], repeats: int = 3) -> list[Times]:
    """Time some ways of doing one thing in turns, so that a busy machine slows all alike.

    After one call each that does not count.
    """
    for work in works:
        work()
    found: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, found, strict=True):
            taken.append(measured(work))
    return [times([s for s, _ in taken], max(mb for _, mb in taken)) for taken in found]


def times(taken: Sequence[float], memory_mb: float | None = None) -> Times:
    """Return the median of some seconds, and their spread."""
    median = statistics.median(taken)
    return Times(median, (max(taken) - min(taken)) / 2 / median, memory_mb)


def row(
    name: str, unit: str, ours: Times, baseline: Times | None = None, *,
    floor: float | None = None, per: float = 1.0, note: str = "", **shares: float | None,
) -> Row:
    """Return the line of one way, or of two that were timed in turns; `per` units in a call."""
    other = shares if baseline is None else shares | {
        "baseline_memory_mb": baseline.memory_mb, "baseline_spread": baseline.spread,
    }
    return Row(
        name, unit, ours.median / per, None if baseline is None else baseline.median / per,
        None if floor is None else floor / per, ours.memory_mb, note=note, spread=ours.spread,
        **other,
    )


def median_s(work: Callable[[], Any], *, repeats: int = 3) -> float:
    """Return the median seconds of `repeats` calls, after one that does not count."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


def seconds(work: Callable[[], Any]) -> float:
    """Return how long one call takes, and what it leaves a GPU to do."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and the MB that was held at most beyond what was before: of a GPU, or by us."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have given back would hide a peak
    ranks.forget_peak()
    before = ranks.peak_memory_gb()
    taken = seconds(work)
    return taken, 1000 * (ranks.peak_memory_gb() - before)


def apart(work: Callable[..., Any], *arguments: Any, first: Callable[[], Any] | None = None) -> Any:
    """Return what `work` returns in a fresh process, where nothing earlier hides a peak.

    On a GPU, whose memory is counted by itself, in this process: starting one takes seconds.
    first: called there before.
    """
    if torch.cuda.is_available():
        if first is not None:
            first()
        return work(*arguments)
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=first) as pool:
        return pool.submit(work, *arguments).result()
