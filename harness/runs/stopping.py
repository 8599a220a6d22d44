"""Being told to stop: signals set a flag; training looks at it between steps and saves first.

USR2 is what submitit and SLURM send before a preemption or time limit, TERM what comes without that
notice, INT is Ctrl-C. Nothing is saved inside a handler: a collective save there would dead-lock.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = False
"""Not a threading.Event: its lock would hang the handler of a signal that comes during another."""


class Stopped(Exception):
    """Raised by the training loop after it saved, because it was told to stop."""


def request_stop(signum: int | None = None, frame: FrameType | None = None) -> None:
    """Ask the training loop of this process to save and stop. Usable as a signal handler."""
    global _requested
    _requested = True


def stop_requested() -> bool:
    """Whether this process (this rank alone) was told to stop."""
    return _requested


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let USR2, TERM and INT ask for a stop while the body runs; a second INT ends at once.

    A request that came before the body is for the body; afterwards it is forgotten. Outside the
    main thread signals cannot be caught, and no handler is changed. Child processes forked
    meanwhile get the default handlers, so that they can be ended.
    """
    global _requested
    try:
        with _handlers():
            yield
    finally:
        _requested = False


@contextmanager
def _handlers() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if _requested:
            raise KeyboardInterrupt
        request_stop()

    handlers = {
        signal.SIGUSR2: request_stop,
        signal.SIGTERM: request_stop,
        signal.SIGINT: on_interrupt,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    owner, inside = os.getpid(), True

    def default_in_child() -> None:
        if inside and os.getppid() == owner:
            for number in handlers:
                signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=default_in_child)
    try:
        yield
    finally:
        inside = False
        for number, handler in before.items():
            signal.signal(number, handler)
