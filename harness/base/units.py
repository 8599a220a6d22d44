"""Counts, times and sizes as text, such as 1 run, 90m, 1d12h and 32GB, and SLURM's 1-12:00:00."""

import math
import re


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return `1 trial`, `2 trials`, ...; many: the plural if it is not `one` with an s."""
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


UNITS = {"d": 1440.0, "h": 60.0, "m": 1.0, "s": 1 / 60}
"""Minutes of a unit, by its first letter."""
PART = r"(\d{1,9}(?:\.\d+)?)\s*(d|h|m|s|days?|hours?|hrs?|minutes?|mins?|seconds?|secs?)\s*"
"""A number and its unit."""


def minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time such as 90m, 2 hours or 1d12h, or of SLURM's 30
    (minutes), 12:00:00, 1-12 or 1-12:00:00; 0 for any other text (see `time_fault`)."""
    text = text.strip().lower()
    clock = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::([0-5]?\d))?(?::([0-5]?\d))?", text)
    if clock and (clock[1] or clock[4]):
        return math.ceil(sum(int(part or 0) * unit for part, unit in
                             zip(clock.groups(), (1440, 60, 1, 1 / 60), strict=True)))
    if clock and not clock[3]:  # minutes to SLURM
        return int(text)
    if not re.fullmatch(rf"({PART})+", text):
        return 0
    return math.ceil(sum(float(number) * UNITS[unit[0]] for number, unit in re.findall(PART, text)))


def time_fault(text: str) -> str:
    """Return the message about a text that is not a time, with what to write."""
    clock = re.fullmatch(r"(\d{1,3}):([0-5]\d)", text.strip())
    if clock:
        first, second = int(clock[1]), clock[2]
        return (f"{text!r} is {first} minutes and {int(second)} seconds to SLURM; write {first}m, "
                f"or {first}:{second}:00 for hours and minutes")
    return f"{text!r} is not a time; write it as 90m, 1d12h or 1-12:00:00"


def gigabytes(text: str) -> float:
    """Return the gigabytes of a size such as 500MB, 32GB or 32GiB; 0 for any other text."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*([mgt])(?:i?b)?", text.strip().lower())
    if match is None:
        return 0.0
    return float(match[1]) * {"m": 1 / 1024, "g": 1.0, "t": 1024.0}[match[2]]


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
