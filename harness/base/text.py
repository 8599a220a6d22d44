"""The end of a log."""

from pathlib import Path

LOG_LINES = 20


def log_tail(path: Path) -> str:
    """Return the last lines of a log file, empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return last_lines(file.read().decode(errors="replace"))
    except FileNotFoundError:
        return ""


def last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_LINES:])
