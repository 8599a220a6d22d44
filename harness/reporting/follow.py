"""Following a sweep until none of its trials is queued or running: a live view, or log lines."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console
from rich.live import Live

from harness.base.errors import UserError
from harness.cluster.known_places import Places, all_places
from harness.cluster.states import ALIVE, DONE, TrialState, is_searched, survey
from harness.reporting.overview import Overview, Watch
from harness.reporting.terminal import (
    BAD,
    best_line,
    counts,
    done_and_left,
    live_view,
    say,
    trial_line,
    trials,
)
from harness.sweeps.reading import Sweep
from harness.training.progress import in_words

Show = Callable[[Sequence[TrialState]], None]
POLL_S = 1.0
SQUEUE_EVERY_S = 15.0  # largest age of a scheduler's answer
PATIENCE_S = 30.0  # how long files may be unreadable
LINE_EVERY_S = 10.0  # least time between two log lines on a trial's epochs, or on the whole sweep
SUMMARY_EVERY_S = 60.0  # most time between a change and a line on the whole sweep
QUIET_S = 300.0  # most time without a log line
MOST_LINES = 20  # log lines on single trials, at a time
OTHER_LINES = 8  # of the live view: all but the trials


def follow(sweep: Sweep, console: Console) -> list[TrialState]:
    """Show the sweep until no trial is queued or running, and return the last states."""
    places = all_places(max_age_s=SQUEUE_EVERY_S, patient=True)
    watch = Watch(sweep)
    if not console.is_terminal:
        return _poll(sweep, places, _Lines(sweep, watch, console).show)
    with Live(console=console, refresh_per_second=2, vertical_overflow="ellipsis") as live:
        def show(states: Sequence[TrialState]) -> None:
            most, width = max(5, console.height - OTHER_LINES), console.width
            live.update(live_view(sweep, states, watch.look(states), most, width))

        states = _poll(sweep, places, show)
        live.transient = True  # the ranking comes in its place
    return states


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
        time.sleep(POLL_S if is_over else max(POLL_S, len(states) / 200))


def _lasting(error: OSError | UserError) -> str:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return (f"{text}\nno longer followed: this has lasted for {PATIENCE_S:.0f} s; trials continue "
            "(--status shows, --cancel ends them)")


class _Lines:
    """Log lines: first the counts and what runs or failed, then each change once."""

    def __init__(self, sweep: Sweep, watch: Watch, console: Console) -> None:
        self._sweep, self._watch, self._console = sweep, watch, console
        self._states: dict[str, str] = {}
        self._reached: dict[str, tuple[float, object]] = {}
        """When a line was printed on a trial's epoch, and which."""
        self._counts, self._changed_at = "", 0.0
        """The counts of the last look, and when anything has changed."""
        self._summary, self._summary_at, self._said_at = "", 0.0, 0.0

    def show(self, states: Sequence[TrialState]) -> None:
        """Print what has changed since the last call, or that nothing has for a while."""
        seen, now = self._watch.look(states), time.monotonic()
        is_first, found = not self._summary, counts(states)
        changed = [one for one in states if self._states.get(one.trial.signature) != one.state
                   and not (is_first and one.state not in ("running", *BAD))]
        self._states = {one.trial.signature: one.state for one in states}
        moved = self._moved([one for one in states if one.state == "running"], changed, seen, now)
        if changed or moved or self._counts != found:
            self._counts, self._changed_at = found, now
        every_s = SUMMARY_EVERY_S if found == self._summary else LINE_EVERY_S
        is_due = self._changed_at > self._summary_at and now - self._summary_at >= every_s
        quiet = now - self._said_at >= QUIET_S and not changed and not moved
        summary = f"{self._sweep.name}: {found}; {done_and_left(seen)}"
        if best := best_line(self._sweep, seen):
            summary += f"; {best}"
        if quiet and not is_first:
            summary += f"; no change for {in_words(now - self._changed_at)}"
        lines = [trial_line(self._sweep, one) for one in [*changed, *moved][:MOST_LINES]]
        if len(changed) > MOST_LINES:
            lines.append(f"and {trials(len(changed) - MOST_LINES)} more changed")
        if is_first or is_due or quiet:
            lines.insert(0 if is_first else len(lines), summary)
            self._summary, self._summary_at = found, now
        if lines:
            self._said_at = now
        say(self._console, *(f"{datetime.now():%H:%M:%S} {line}" for line in lines))

    def _moved(
        self, running: Sequence[TrialState], changed: Sequence[TrialState], seen: Overview,
        now: float,
    ) -> list[TrialState]:
        """Return the running trials whose new epoch is due for a line; none where many run."""
        moved, is_new = [], {one.trial.signature for one in changed}
        for one in running:
            name, newest = one.trial.signature, seen.newest[one.trial.signature]
            reached = newest.get("stage"), newest.get("epoch")
            when, before = self._reached.get(name, (now, reached))
            is_moved = reached != before and now - when >= LINE_EVERY_S
            if name in is_new or is_moved or name not in self._reached:
                self._reached[name] = now, reached
            moved += [one] if is_moved and name not in is_new else []
        return moved if len(running) <= MOST_LINES else []
