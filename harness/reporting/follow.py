"""Following a sweep until nothing of it is on its way: a live table, or lines in a log."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console
from rich.live import Live

from harness.cluster.states import ALIVE, SQUEUE_EVERY_S, Queue, View, is_searched, survey
from harness.reporting.terminal import line, live_table, progress
from harness.sweeps.reading import Sweep

POLL_S = 1.0
LINE_EVERY_S = 10.0
"""A running trial says at most this often how far it is, in a log."""


def follow(sweep: Sweep, console: Console) -> list[View]:
    """Show the sweep until no trial is queued or running any more; return the last state.

    A controller that does not answer for a while is waited for.
    """
    queue = Queue(sweep, max_age_s=SQUEUE_EVERY_S, patient=True)
    if not console.is_terminal:
        return _poll(sweep, queue, _Lines(sweep, console).show)
    with Live(console=console, refresh_per_second=2, vertical_overflow="ellipsis") as live:
        most = max(5, console.height - 8)
        return _poll(sweep, queue, lambda views: live.update(live_table(sweep, views, most=most)))


def _poll(sweep: Sweep, queue: Queue, show: Callable[[Sequence[View]], None]) -> list[View]:
    while True:
        views = survey(sweep, queue)
        show(views)
        if not any(view.state in ALIVE for view in views) and not is_searched(sweep, queue):
            return views
        # reading a thousand status files takes a while: leave the file system some rest
        time.sleep(max(POLL_S, len(views) / 200))


class _Lines:
    """Prints a line when a trial's state changes, and now and then when its epoch does."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep = sweep
        self.console = console
        self.said: dict[str, tuple[float, object]] = {}

    def show(self, views: Sequence[View]) -> None:
        for view in views:
            newest = progress(view.trial.run, self.sweep.metric)
            epoch = (view.state, newest.get("stage"), newest.get("epoch"))
            when, before = self.said.get(view.trial.signature, (0.0, (None,)))
            same_state = isinstance(before, tuple) and before[0] == view.state
            if epoch == before or (same_state and time.monotonic() - when < LINE_EVERY_S):
                continue
            self.said[view.trial.signature] = (time.monotonic(), epoch)
            now = datetime.now().strftime("%H:%M:%S")
            text = f"{now} {line(self.sweep, view)}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
