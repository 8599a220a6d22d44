"""Stopping on signals: they set a flag; training checks it between steps, saves and stops.

submitit and SLURM send USR2 before a preemption or time limit, and TERM without notice; INT is
Ctrl-C. Handlers save nothing: a collective save in a handler would deadlock.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = False
"""Not a threading.Event: with its lock, a signal during another's handler would deadlock."""
_ignored: set[int] = set()
"""Signals whose next arrival is ignored."""


class Stopped(Exception):
    """The training loop stopped on request, after it saved; the message says where."""


def request_stop(signum: int | None = None, frame: FrameType | None = None) -> None:
    """Ask the training loop of this process to save and stop; usable as a signal handler."""
    global _requested
    if signum in _ignored:
        _ignored.remove(signum)
    else:
        _requested = True


def stop_after(seconds: float, *, instead_of: int) -> None:
    """Request a stop in so many seconds; the next arrival of the signal `instead_of` is ignored."""
    _ignored.add(instead_of)
    signal.signal(signal.SIGALRM, request_stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))


def stop_requested() -> bool:
    """Return whether this process, that is this rank alone, was asked to stop."""
    return _requested


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let USR2, TERM and INT request a stop while the body runs; a second INT interrupts at once.

    An earlier request is valid for the body; all are cleared after it. Outside the main thread, no
    handler is changed, as signals cannot be caught there. Forked child processes get the default
    handlers, so that signals can end them.
    """
    global _requested

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if _requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request_stop(signum)

    is_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = {number: signal.signal(number, on_signal) for number in signals}
    owner, inside = os.getpid(), True

    def default_in_child() -> None:
        if inside and os.getppid() == owner:
            for number in signals:
                signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=default_in_child)
    try:
        yield
    finally:
        inside = False
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = False
