"""A signal only sets a flag; the body it interrupts goes on, and handlers are put back."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from harness.runs.stopping import (
    Stopped,
    at_once,
    request_stop,
    stop_after,
    stop_on_signals,
    stop_requested,
)

CAUGHT = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in CAUGHT]


def tell(number: signal.Signals) -> None:
    """Send a signal to this process; Python runs its handler before the next line."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", CAUGHT)
def test_a_signal_requests_a_stop_and_the_body_continues(number: signal.Signals) -> None:
    before = handlers()
    went_on = False
    with stop_on_signals():
        assert not stop_requested()
        tell(number)
        assert stop_requested()
        went_on = True
    assert went_on
    assert handlers() == before


def test_a_second_interrupt_ends_at_once() -> None:
    before = handlers()

    def interrupted() -> None:
        tell(signal.SIGINT)
        assert stop_requested()
        tell(signal.SIGINT)
        pytest.fail("the second interrupt was swallowed")

    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        interrupted()
    assert handlers() == before


def test_a_repeated_notice_does_not_end_at_once() -> None:
    with stop_on_signals():
        tell(signal.SIGUSR2)
        tell(signal.SIGTERM)
        tell(signal.SIGTERM)
        assert stop_requested()


def test_a_request_from_before_the_body_is_the_bodys_and_forgotten_after_it() -> None:
    request_stop()  # a signal while the run's lock was awaited
    with stop_on_signals():
        assert stop_requested()
    assert not stop_requested()
    with stop_on_signals():
        assert not stop_requested()


def test_a_storm_of_signals_does_not_hang_their_handler() -> None:
    body = """
import time
from harness.runs.stopping import stop_on_signals, stop_requested
with stop_on_signals():
    print("ready", flush=True)
    while not stop_requested():
        time.sleep(0.01)
    time.sleep(0.5)
"""
    process = subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"ready\n"
        for _ in range(200):  # each may come in the midst of the one before
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGUSR2)
        try:
            # the last ones may come after the handlers were put back
            assert process.wait(10.0) in (0, -signal.SIGTERM, -signal.SIGUSR2)
        finally:
            process.kill()


def test_handlers_are_put_back_after_a_failure() -> None:
    before = handlers()

    def fail() -> None:
        assert handlers() != before
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), stop_on_signals():
        fail()
    assert handlers() == before


def test_a_signal_ends_a_call_that_asks_for_it_at_once_and_only_that() -> None:
    with stop_on_signals():
        threading.Timer(0.2, tell, [signal.SIGUSR2]).start()
        began = time.monotonic()
        with pytest.raises(Stopped, match="on request while downloading"):
            at_once("downloading", lambda: time.sleep(60.0))
        assert time.monotonic() - began < 30.0
        assert stop_requested()
        tell(signal.SIGTERM)  # the call is over
        with pytest.raises(Stopped, match="while reading"):
            at_once("reading", lambda: pytest.fail("a stop was requested before"))
    with stop_on_signals():
        assert at_once("adding", lambda: 1 + 1) == 2
        tell(signal.SIGTERM)
        assert stop_requested()


def test_a_stop_that_a_library_takes_for_a_failure_is_still_requested() -> None:
    def attempt() -> str:
        for _ in range(2):
            with suppress(Exception):  # as a download that is tried again
                tell(signal.SIGUSR2)
        return "gave up"

    with stop_on_signals():
        assert at_once("downloading", attempt) == "gave up"
        assert stop_requested()


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before, seen = handlers(), []

    def body() -> None:
        with stop_on_signals():
            seen.append(handlers() == before)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [True]


def forked_handlers() -> list[int]:
    """For each signal, how a forked child answers it: 1 by its default, 0 by a handler."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, bytes(signal.getsignal(n) is signal.SIG_DFL for n in CAUGHT))
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        return list(answer.read())


def test_forked_children_can_be_ended() -> None:
    with stop_on_signals():
        assert forked_handlers() == [1, 1, 1]


def test_children_forked_later_have_their_parents_handlers() -> None:
    previous = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with stop_on_signals():
            pass
        assert forked_handlers() == [1, 0, 0]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_signal_that_comes_too_early_is_ignored_once_and_the_stop_comes_later() -> None:
    before = [*handlers(), signal.getsignal(signal.SIGALRM)]
    try:
        stop_after(1.0, instead_of=signal.SIGUSR2)
        with stop_on_signals():
            tell(signal.SIGUSR2)
            assert not stop_requested()
            tell(signal.SIGUSR2)
            assert stop_requested(), "another one, as before a preemption"
        with stop_on_signals():
            assert not stop_requested()
            signal.pause()  # until the alarm
            assert stop_requested()
    finally:
        signal.signal(signal.SIGALRM, before[-1])
    assert handlers() == before[:-1]
