"""Progress of long work shows as a bar in a terminal, as a line per tenth elsewhere."""

import logging
import sys

import pytest

from harness.training.progress import Pace, counter, in_words


def test_outside_of_a_terminal_a_line_is_logged_for_each_tenth(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO), counter("decoding") as report:
        for done in range(0, 1001, 8):
            report(done, 1000)
    assert caplog.messages[0] == "decoding: 104 of 1000"
    assert caplog.messages[-1] == "decoding: 1000 of 1000"
    assert len(caplog.messages) == 10


def test_in_a_terminal_a_bar_is_drawn_and_nothing_is_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TERM", "xterm")
    with caplog.at_level(logging.INFO), counter("decoding") as report:
        report(3, 7)
    assert "decoding" in capsys.readouterr().err
    assert not caplog.messages


def test_work_on_nothing_is_no_fault() -> None:
    with counter("decoding") as report:
        report(0, 0)


def test_the_time_left_is_estimated_from_the_mean_of_all_steps_but_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("harness.training.progress.time.perf_counter", lambda: now)
    pace = Pace()
    texts = [pace.left(10)]
    # the first step takes 50 s; then one of 2 s, and one of 4 s with something after it
    for seconds in (50.0, 2.0, 4.0):
        now += seconds
        pace.step()
        texts.append(pace.left(10))
    now += 6.0
    texts.append(pace.left(10))
    assert texts == ["", "", "20 s left", "30 s left", "1 min left"]
    assert pace.left(0) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (725, "12 min"), (3600, "1 h 0 min"),
        (12_000, "3 h 20 min"), (86_370, "1 d 0 h"), (190_900, "2 d 5 h"),
    ],
)
def test_times_are_told_as_people_say_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
