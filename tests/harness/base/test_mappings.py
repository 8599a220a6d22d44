"""What nested mappings hold, by dotted key."""

from harness.base.mappings import leaves, numeric_leaves


def test_every_value_has_its_dotted_key_and_only_numbers_are_numbers() -> None:
    nested = {"a": 1, "b": {"c": {"d": 0.5, "e": None}, "f": [1, 2], "g": {}}, "h": True, "i": "7"}
    assert leaves(nested) == {
        "a": 1, "b.c.d": 0.5, "b.c.e": None, "b.f": [1, 2], "h": True, "i": "7",
    }
    assert numeric_leaves(nested) == {"a": 1, "b.c.d": 0.5}
