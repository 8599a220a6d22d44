"""The end of a log."""

from pathlib import Path

from harness.base.files import LOG_LINES, log_tail, tail


def test_a_tail_is_the_last_bytes_of_a_file_whatever_they_are(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"first\nsecond\n\xff third")
    assert tail(log, 10) == "nd\n\N{REPLACEMENT CHARACTER} third"
    assert tail(log) == "first\nsecond\n\N{REPLACEMENT CHARACTER} third"


def test_a_log_ends_with_its_last_lines_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert (tail(log), log_tail(log)) == ("", "")
    log.write_text("".join(f"line {n}\n" for n in range(10_000)))
    assert log_tail(log).splitlines() == [f"line {n}" for n in range(10_000 - LOG_LINES, 10_000)]
