"""Times, sizes and counts as people write them, 90m, 1d12h, 32GB, 1 run, and as SLURM does,
1-12:00:00."""

import math
import re


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return `1 trial`, `2 trials`, ...; many: where it is not `one` with an s."""
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time such as 90m, 4h or 1d12h; 0 when it is none."""
    if not re.fullmatch(r"(\d+(\.\d+)?\s*[dhms]\s*)+", text.strip()):
        return 0
    unit = {"d": 1440.0, "h": 60.0, "m": 1.0, "s": 1 / 60}
    return math.ceil(sum(
        float(number) * unit[letter]
        for number, letter in re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", text)
    ))


def gigabytes(text: str) -> float:
    """Return the gigabytes of a size such as 500MB or 32GB; 0 when it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])B?", text.strip())
    if match is None:
        return 0.0
    return float(match[1]) * {"M": 1 / 1024, "G": 1.0, "T": 1024.0}[match[2]]


def slurm_seconds(text: str) -> float:
    """Return the seconds of a time that SLURM prints: [days-][[hours:]minutes:]seconds.

    Infinity for words such as UNLIMITED; 0 for INVALID, which squeue says of a job past its end.
    """
    if text == "INVALID":
        return 0.0
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return math.inf
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return 86400.0 * int(days or 0) + total
