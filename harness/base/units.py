"""Counts, times and sizes as text, such as 1 run, 90m, 1d12h and 32GB, and SLURM's 1-12:00:00."""

import math
import re


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return `1 trial`, `2 trials`, ...; many: the plural if it is not `one` with an s."""
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time such as 90m, 4h or 1d12h; 0 for any other text."""
    if not re.fullmatch(r"(\d+(\.\d+)?\s*[dhms]\s*)+", text.strip()):
        return 0
    unit = {"d": 1440.0, "h": 60.0, "m": 1.0, "s": 1 / 60}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
    return math.ceil(sum(float(number) * unit[letter] for number, letter in parts))


def gigabytes(text: str) -> float:
    """Return the gigabytes of a size such as 500MB or 32GB; 0 for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])B?", text.strip())
    if match is None:
        return 0.0
    return float(match[1]) * {"M": 1 / 1024, "G": 1.0, "T": 1024.0}[match[2]]


def slurm_seconds(text: str) -> float:
    """Return the seconds of a time that SLURM prints: [days-][[hours:]minutes:]seconds. Infinity
    for words such as UNLIMITED; 0 for INVALID, which squeue prints for a job past its end."""
    if text == "INVALID":
        return 0.0
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return math.inf
    days, _, clock = text.rpartition("-")
    parts = reversed(clock.split(":"))
    return 86400.0 * int(days or 0) + sum(int(part) * 60**n for n, part in enumerate(parts))
