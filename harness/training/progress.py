"""Progress of long work: bars in a terminal, on rank 0; log lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # needed in a terminal only
    from rich.progress import Progress

Advance = Callable[[str], None]
"""Called after each step with a short text."""
Count = Callable[[int, int], None]
"""Called now and then with the number done and the total."""

log = logging.getLogger(__name__)
BAR_WIDTH = 10
"""Columns of a bar; the rest of the terminal's width is for the text beside it."""


class Pace:
    """Mean time per step, including validation and checkpoints in between."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._steps = 0

    def step(self) -> None:
        """Count a finished step. The first, slower one only starts the clock."""
        if self._started is None:
            self._started = time.perf_counter()
        else:
            self._steps += 1

    def left(self, steps: int) -> str:
        """Return the time that the steps will take, such as `12 min left`; "" until known."""
        if self._started is None or not self._steps or not steps:
            return ""
        step_s = (time.perf_counter() - self._started) / self._steps
        return f"{in_words(steps * step_s)} left"


def in_words(seconds: float) -> str:
    """Return a duration in about two figures: 40 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


@contextmanager
def bar(title: str, *, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a bar of `total` steps, `done` of them finished, while the body runs."""
    if not _on_terminal():
        yield lambda text: None
        return
    with _columns() as progress:
        task = progress.add_task(title, total=total, completed=done, text="")
        yield lambda text: progress.update(task, advance=1, text=text)


@contextmanager
def counter(title: str) -> Iterator[Count]:
    """Show how many of a total are done: a bar in a terminal, elsewhere a log line per 10%."""
    if _on_terminal():
        with _columns() as progress:
            task = progress.add_task(title, total=None, text="")
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    tenths = 0

    def report(done: int, total: int) -> None:
        nonlocal tenths
        if (reached := 10 * done // max(total, 1)) > tenths:
            tenths = reached
            log.info("%s: %d of %d", title, done, total)

    yield report


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def _columns() -> "Progress":
    from rich import console, progress
    from rich.table import Column

    columns = (
        progress.TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        progress.BarColumn(BAR_WIDTH), progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        # takes the rest of the line, and is cut off where that is too short
        progress.TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, ratio=1)),
    )
    terminal = console.Console(stderr=True)
    return progress.Progress(*columns, console=terminal, transient=True, expand=True)
