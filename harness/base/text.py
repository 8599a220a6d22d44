"""The end of a log."""

from pathlib import Path

LOG_LINES = 20


def tail(path: Path, size: int = 16384) -> str:
    """Return the last `size` bytes of a text file; its first line may be cut. "" for no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def log_tail(path: Path) -> str:
    """Return the last lines of a log file, "" when there is none."""
    return "\n".join(tail(path).splitlines()[-LOG_LINES:])
