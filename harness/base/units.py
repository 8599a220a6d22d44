"""Counts, times and sizes as text, such as 1 run, 90m, 1d12h and 32GB, and SLURM's 1-12:00:00."""

import math
import re


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return `1 trial`, `2 trials`, ...; many: the plural if it is not `one` with an s."""
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time such as 90m, 4h or 1d12h, or of SLURM's 12:00:00,
    1-12 or 1-12:00:00; 0 for any other text, such as 4:00, which is four minutes to SLURM."""
    text = text.strip().lower()
    clock = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::([0-5]?\d))?(?::([0-5]?\d))?", text)
    if clock and (clock[1] or clock[4]):
        return math.ceil(sum(int(part or 0) * unit for part, unit in
                             zip(clock.groups(), (1440, 60, 1, 1 / 60), strict=True)))
    if not re.fullmatch(r"(\d{1,9}(\.\d+)?\s*[dhms]\s*)+", text):
        return 0
    unit = {"d": 1440.0, "h": 60.0, "m": 1.0, "s": 1 / 60}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
    return math.ceil(sum(float(number) * unit[letter] for number, letter in parts))


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
