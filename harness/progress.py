"""Progress bars on long work: in a terminal, on rank 0; elsewhere the log's lines have to do."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]
"""Call after each step with a short text."""


@contextmanager
def bar(title: str, *, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a bar of `total` steps, `done` of them behind, while the body runs."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield lambda text: None
        return
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, completed=done, text="")
        yield lambda text: progress.update(task, advance=1, text=text)
