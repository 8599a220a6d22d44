"""Following a sweep until none of its trials is queued or running: a live table, or log lines."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console
from rich.live import Live

from harness.base.errors import UserError
from harness.cluster.known_places import Places, all_places
from harness.cluster.states import ALIVE, DONE, TrialState, is_searched, survey
from harness.reporting.terminal import live_table, progress, say, trial_line
from harness.sweeps.reading import Sweep

Show = Callable[[Sequence[TrialState]], None]
POLL_S = 1.0
SQUEUE_EVERY_S = 15.0  # largest age of a scheduler's answer
PATIENCE_S = 30.0  # how long files may be unreadable
LINE_EVERY_S = 10.0  # least time between two log lines on a trial's epochs


def follow(sweep: Sweep, console: Console) -> list[TrialState]:
    """Show the sweep until no trial is queued or running, and return the last states."""
    places = all_places(max_age_s=SQUEUE_EVERY_S, patient=True)
    if not console.is_terminal:
        return _poll(sweep, places, _line_printer(sweep, console))
    most = max(5, console.height - 8)
    with Live(console=console, refresh_per_second=2, vertical_overflow="ellipsis") as live:
        return _poll(sweep, places, lambda states: live.update(live_table(sweep, states, most)))


def _poll(sweep: Sweep, places: Places, show: Show) -> list[TrialState]:
    seen, was_over = time.monotonic(), False
    while True:
        try:
            states = survey(sweep, places)
            is_over = not any(one.state in ALIVE for one in states)
            is_over = is_over and not is_searched(sweep, places)
            show(states)
        except BrokenPipeError:  # the reader of the output has ended
            raise
        except (OSError, UserError) as error:  # until then the last good states are shown
            if time.monotonic() - seen > PATIENCE_S:
                raise UserError(_lasting(error)) from None
            time.sleep(POLL_S)
            continue
        # a folder that is missing for a moment looks like a trial that has not begun
        if is_over and (was_over or all(one.state in DONE for one in states)):
            return states
        seen, was_over = time.monotonic(), is_over
        # a thousand status files take a while to read: pause in proportion, for the file system
        time.sleep(max(POLL_S, len(states) / 200))


def _lasting(error: OSError | UserError) -> str:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return (f"{text}\nno longer followed: this has lasted for {PATIENCE_S:.0f} s; trials continue "
            "(--status shows, --cancel ends them)")


def _line_printer(sweep: Sweep, console: Console) -> Show:
    """Return a function that prints trials whose state changed, now and then whose epoch did."""
    printed: dict[str, tuple[float, tuple[object, ...]]] = {}

    def show(states: Sequence[TrialState]) -> None:
        for one in states:
            newest = progress(one.trial.run, sweep.metric)
            reached = one.state, newest.get("stage"), newest.get("epoch")
            when, before = printed.get(one.trial.signature, (0.0, (None,)))
            is_early = before[0] == one.state and time.monotonic() - when < LINE_EVERY_S
            if reached == before or is_early:
                continue
            printed[one.trial.signature] = (time.monotonic(), reached)
            say(console, f"{datetime.now():%H:%M:%S} {trial_line(sweep, one)}")

    return show
