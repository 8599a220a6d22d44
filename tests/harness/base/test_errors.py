"""The ends of messages, and faults that are collected."""

import pytest

from harness.base.errors import UserError, collecting, hint


def test_a_hint_names_the_nearest_word_or_all_or_what_was_given() -> None:
    known = ["grid", "choice", "uniform"]
    assert hint("gird", known) == "; did you mean grid?"
    assert hint(3, known) == "; one of grid, choice, uniform"
    assert hint("gird", known, "; x") == "; did you mean grid?"
    assert hint("zzz", known, "") == ""


def test_only_a_users_mistakes_are_collected_line_by_line() -> None:
    faults = ["before"]
    with collecting(faults):
        raise UserError("one\ntwo")
    with collecting(faults):
        pass
    assert faults == ["before", "one", "two"]
    with pytest.raises(KeyError), collecting(faults):
        raise KeyError("x")
