"""Times and sizes are read as people write them."""

from harness.units import gigabytes, minutes


def test_times_and_sizes_are_read_with_their_units() -> None:
    assert [minutes(t) for t in ("90m", "4h", "1d12h", "1.5h", "30s", "1h 30m")] == [
        90, 240, 2160, 90, 1, 90
    ]
    assert [minutes(t) for t in ("", "4x", "4", "h", "-1h", "4:00")] == [0] * 6
    assert [gigabytes(t) for t in ("32GB", "512M", "1TB", "1.5 G")] == [32, 0.5, 1024, 1.5]
    assert [gigabytes(t) for t in ("", "32", "32KB", "GB")] == [0] * 4
