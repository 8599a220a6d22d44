"""Stopping on signals: they set a flag, which long work checks at least every few seconds.

submitit and SLURM send USR2 before a preemption or time limit, and TERM without notice; INT is
Ctrl-C. Handlers save nothing: a collective save in a handler would deadlock. Work of all ranks
asks `ranks.check_stop`, which they answer together; work of one process asks `check_stop` here.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import FrameType
from typing import Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_requested = False
"""Not a threading.Event: with its lock, a signal during another's handler would deadlock."""
_terminated = False
_ignored: set[int] = set()
"""Signals whose next arrival is ignored."""
_interruptible: str | None = None
"""What the main thread is doing while a signal may raise Stopped in it."""


class Stopped(Exception):
    """The run stopped on request, after it saved; the message says where."""


def request_stop(signum: int | None = None, frame: FrameType | None = None) -> None:
    """Ask this process to save and stop; usable as a signal handler."""
    global _requested, _terminated
    if signum in _ignored:
        _ignored.remove(signum)
    else:
        _requested = True
        _terminated = _terminated or signum == signal.SIGTERM


def stop_after(seconds: float, *, instead_of: int) -> None:
    """Request a stop in so many seconds; the next arrival of the signal `instead_of` is ignored."""
    _ignored.add(instead_of)
    signal.signal(signal.SIGALRM, request_stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))


def stop_requested() -> bool:
    """Return whether this process, that is this rank alone, was asked to stop."""
    return _requested


def was_terminated() -> bool:
    """Return whether this process was asked to stop by TERM."""
    return _terminated


def check_stop(doing: str) -> None:
    """Raise Stopped if this process was asked to stop. doing: what the message says, after
    "while". Only for work of one process: other ranks would wait for this one."""
    if stop_requested():
        raise Stopped(f"on request while {doing}")


class Counted(Protocol[T_co]):
    """What can be counted before it is gone through."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


def stoppable(items: Counted[T], doing: str, largest: Callable[[int], int]) -> Iterator[T]:
    """Yield this process's items; before each, raise Stopped in all processes if any was asked to.

    largest: returns the largest of the numbers that all processes give, each at the same time. So
    every process must go through all of its items; their numbers may differ.
    """
    remaining = iter(items)
    for _ in range(largest(len(items))):
        if largest(int(stop_requested())):
            raise Stopped(f"on request while {doing}")
        yield from islice(remaining, 1)


def at_once(doing: str, function: Callable[[], T]) -> T:
    """Call a function in which a signal raises Stopped anywhere, such as in a download.

    Only for work of one process that a kill could end as well. The signals are those of
    `stop_on_signals`; outside of it and of the main thread, they do what they did. Check again
    after it: a library may catch Stopped and go on.
    """
    global _interruptible
    if threading.current_thread() is threading.main_thread():
        _interruptible = doing
    try:
        check_stop(doing)
        return function()
    finally:
        _interruptible = None


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let USR2, TERM, INT and the alarm of `stop_after` request a stop while the body runs.

    A second INT interrupts at once.

    An earlier request is valid for the body; all are cleared after it. Outside the main thread, no
    handler is changed, as signals cannot be caught there. Forked child processes get the default
    handlers, so that signals can end them.
    """
    global _requested, _terminated

    def on_signal(signum: int, frame: FrameType | None) -> None:
        global _interruptible
        if _requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request_stop(signum)
        if _requested and (doing := _interruptible) is not None:
            _interruptible = None  # once: the next signal may come after its end
            check_stop(doing)

    is_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM, signal.SIGINT) if is_main else ()
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
        _requested = _terminated = False
