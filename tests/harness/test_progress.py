"""Long work is told of: by a bar in a terminal, by a line per tenth elsewhere."""

import logging
import sys

import pytest

from harness.progress import counter


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
