"""Following a sweep until nothing of it is on its way: a live table, or lines in a log."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console
from rich.live import Live

from harness.cluster.places import Places, all_places
from harness.cluster.states import ALIVE, TrialState, is_searched, survey
from harness.reporting.terminal import line, live_table, progress
from harness.sweeps.reading import Sweep

POLL_S = 1.0
SQUEUE_EVERY_S = 15.0
"""How old an answer of a scheduler may be."""
LINE_EVERY_S = 10.0
"""A running trial says at most this often how far it is, in a log."""


def follow(sweep: Sweep, console: Console) -> list[TrialState]:
    """Show the sweep until no trial is placesd or running any more; return the last state.

    A controller that does not answer for a while is waited for.
    """
    places = all_places(max_age_s=SQUEUE_EVERY_S, patient=True)
    if not console.is_terminal:
        return _poll(sweep, places, _Lines(sweep, console).show)
    with Live(console=console, refresh_per_second=2, vertical_overflow="ellipsis") as live:
        most = max(5, console.height - 8)
        return _poll(
            sweep, places, lambda states: live.update(live_table(sweep, states, most=most))
        )


def _poll(
    sweep: Sweep, places: Places, show: Callable[[Sequence[TrialState]], None]
) -> list[TrialState]:
    while True:
        states = survey(sweep, places)
        show(states)
        if not any(one.state in ALIVE for one in states) and not is_searched(sweep, places):
            return states
        # reading a thousand status files takes a while: leave the file system some rest
        time.sleep(max(POLL_S, len(states) / 200))


class _Lines:
    """Prints a line when a trial's state changes, and now and then when its epoch does."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self.sweep = sweep
        self.console = console
        self.said: dict[str, tuple[float, object]] = {}

    def show(self, states: Sequence[TrialState]) -> None:
        for one in states:
            newest = progress(one.trial.run, self.sweep.metric)
            epoch = (one.state, newest.get("stage"), newest.get("epoch"))
            when, before = self.said.get(one.trial.signature, (0.0, (None,)))
            same_state = isinstance(before, tuple) and before[0] == one.state
            if epoch == before or (same_state and time.monotonic() - when < LINE_EVERY_S):
                continue
            self.said[one.trial.signature] = (time.monotonic(), epoch)
            now = datetime.now().strftime("%H:%M:%S")
            text = f"{now} {line(self.sweep, one)}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
