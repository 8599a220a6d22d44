"""How a key of a sweep is searched."""

from typing import Any

import pytest

from harness.sweeps.dimensions import Dimension


@pytest.mark.parametrize(
    ("kind", "values", "is_log"),
    [
        ("loguniform", (1e-4, 1e-2), True), ("uniform", (1e-4, 10.0), False),
        ("randint", (1, 1000), False), ("grid", (1, 2, 4, 8), True),
        ("choice", (1e-4, 3e-4, 1e-3), True), ("grid", (0.3, 0.1, 1), True),
        ("grid", (1, 2, 3, 4), False), ("grid", (2, 3, 4), False), ("grid", (0.0, 0.1, 1.0), False),
        ("grid", (1e-4, 1e-2), False), ("grid", (1, 10, "100"), False), ("grid", (5, 5, 5), False),
    ],
)  # fmt: skip
def test_a_search_is_on_a_log_scale_where_its_values_rise_by_equal_factors(
    kind: Any, values: tuple[Any, ...], is_log: bool
) -> None:
    assert Dimension("key", kind, values, "file").is_log is is_log
