"""Texts that are one number are one label, however tools write it, and what is no label is told."""

import pytest

from svll.data.readers.labels import alike, fault, is_junk, whole


@pytest.mark.parametrize(
    "text", ["7", "7.0", "7.", "7.000", "7,0", "+7", "7e0", "7E+00", "0.7e1", "\uff17", "\u0667",
             "7\u200b", " 7 ", "\u00a07", "700e-2"],
)
def test_a_whole_number_is_read_in_every_notation(text: str) -> None:
    assert whole(text) == "7"
    assert fault("identity", text) == ""


@pytest.mark.parametrize(
    "text", ["7.5", "7,5", "1_0", "0x7", "1e-3", "x7", "7 7", "inf", "1/7", "7e", "1" * 19, "1e18",
             "1e999", "1" * 400, "7.7.7", "\u00bd", "-7"],
)
def test_other_texts_are_no_whole_numbers(text: str) -> None:
    assert whole(text) is None


@pytest.mark.parametrize(
    "text", ["-1", "-1.0", "-1.", " -1 ", "\u22121", "\u20131", "\uff0d\uff11", "-1,0", "-1e0",
             "-01", "-1\u200b"],
)
def test_junk_is_junk_in_every_notation(text: str) -> None:
    assert is_junk(text)
    assert fault("identity", text) == ""
    assert fault("camera", text).endswith("numbers may not be negative")


def test_what_stands_for_no_label_is_a_fault() -> None:
    for text in ("NA", "nan", "NaN", "NULL", "None", "<NA>", "#N/A", "\\N"):
        assert fault("camera", text).startswith(f"camera is {text}, which stands for a missing")
    for text in ("", " ", "\u200b", "\u00a0"):
        assert fault("view", text) == "view is empty"
    assert fault("identity", "1,000").endswith("write numbers without separators")
    assert "may be rounded" in fault("identity", "1.23457E+12")
    assert fault("identity", "-0.5").endswith("numbers may not be negative")
    for text in ("Nana", "na", "None2", "e12", "1e5", "a,b", "1 000", "-", "-inf"):
        assert fault("identity", text) == ""


def test_texts_that_are_alike_are_named() -> None:
    assert alike("camera", ["x", "7", "8", "70", "1.1", "1.10"]) == []
    [one] = alike("camera", ["7", "x", "7.0"])
    assert one.startswith("column camera has both 7 and 7.0, which are one number; write them")
    [two] = alike("identity", ["zoe\u0301", "zo\u00e9", "zoe"])
    assert two.startswith("column identity has both 'zoe\\u0301' and 'zo\\xe9', which look alike")
    assert len(alike("view", ["a", "a ", "a\u200b"])) == 2
