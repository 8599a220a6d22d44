"""Odd inputs, the same ones each time, end in an answer or in one message."""

import pytest

from tests.fuzz.targets import TARGETS
from tests.fuzz.trying import Target, count


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_odd_input_ends_in_a_right_answer_or_in_one_message(target: Target) -> None:
    counts = count(target, draws=1, examples=target.examples)
    assert (counts.tracebacks, counts.hangs) == ({}, {})
    assert counts.tried >= target.examples
    assert counts.messages
