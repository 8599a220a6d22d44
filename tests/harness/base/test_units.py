"""Times and sizes are read as people write them."""

import math

import pytest

from harness.base.units import counted, gigabytes, minutes, slurm_seconds, time_fault


def test_times_and_sizes_are_read_with_their_units() -> None:
    assert [minutes(t) for t in ("90m", "4h", "1d12h", "1.5h", "30s", "1h 30m")] == [
        90, 240, 2160, 90, 1, 90
    ]
    # sbatch reads 4:00 as four minutes, so it is refused
    slurm = ("12:00:00", "1-00:00:00", "0:00:30", "1:02:03", "2-12", "1-6:30", "7-00:00:01")
    assert [minutes(t) for t in slurm] == [720, 1440, 1, 63, 3600, 1830, 10081]
    assert [minutes(t) for t in ("", "4x", "0", "h", "-1h", "4:00", "1:60:00", "0:0:0")] == [0] * 8
    assert [gigabytes(t) for t in ("32GB", "512M", "1TB", "1.5 G", "32gb", "8GiB")] == [
        32, 0.5, 1024, 1.5, 32, 8
    ]
    assert [gigabytes(t) for t in ("", "32", "32KB", "GB")] == [0] * 4
    assert [gigabytes("9" * 400 + "GB"), minutes("9" * 400 + "h"), minutes("9" * 5000 + "-1")] == [
        0, 0, 0
    ]


def test_times_are_read_as_people_and_slurm_write_them() -> None:
    written = {"30": 30, "2h": 120, "2 hours": 120, "90 min": 90, "1 day 2 hrs": 1560,
               "02:00:00": 120, "1-12:00:00": 2160, "1h30m": 90, "45 Minutes": 45}
    assert {text: minutes(text) for text in written} == written
    assert [minutes(t) for t in ("2h30", "1 month", "4:00", "unlimited", "1,5h")] == [0] * 5
    assert time_fault("4:00") == ("'4:00' is 4 minutes and 0 seconds to SLURM; write 4m, or "
                                  "4:00:00 for hours and minutes")
    assert minutes("4m") == 4
    assert minutes("4:00:00") == 240


def test_counts_have_singular_and_plural() -> None:
    assert [counted(n, "trial") for n in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
    assert [counted(n, "query", "queries") for n in (1, 2)] == ["1 query", "2 queries"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784), ("2:03:04", 7384), ("12:34", 754), ("0:09", 9), ("5", 5),
        ("INVALID", 0), ("UNLIMITED", math.inf), ("infinite", math.inf), ("", math.inf),
    ],
)
def test_times_as_slurm_prints_them(text: str, seconds: float) -> None:
    assert slurm_seconds(text) == seconds
