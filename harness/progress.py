"""Progress bars on long work: in a terminal, on rank 0; elsewhere the log's lines have to do."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # drawing is needed in a terminal only
    from rich.progress import Progress

Advance = Callable[[str], None]
"""Call after each step with a short text."""
Report = Callable[[int, int], None]
"""Call now and then with the numbers of things done and of all."""

log = logging.getLogger(__name__)


@contextmanager
def bar(title: str, *, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a bar of `total` steps, `done` of them behind, while the body runs."""
    if not _is_shown():
        yield lambda text: None
        return
    with _columns() as progress:
        task = progress.add_task(title, total=total, completed=done, text="")
        yield lambda text: progress.update(task, advance=1, text=text)


@contextmanager
def counter(title: str) -> Iterator[Report]:
    """Show how many of a total are done: a bar in a terminal, elsewhere a log line per tenth."""
    if _is_shown():
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


def _is_shown() -> bool:
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def _columns() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[text]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
