"""Labels as texts: which number a text is, what is no label, and what is too alike to tell apart.

Tables write the whole number 7 as 7, 7.0, 7., +7, 7,0 or 7E+00, some in full-width digits.
"""

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache

JUNK = -1
"""The identity of detections that show nobody; benchmarks leave them out."""

_DIGITS = 18
"""Numbers of more digits may not fit into 64 bits."""
_ROUNDED = 12
"""Spreadsheets round numbers of so many digits when they write them with an exponent."""
_MISSING = frozenset({
    "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "NaT", "NULL", "null", "None",
    "\\N",
})
"""What R, pandas, spreadsheets and databases write where there is no value."""
_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"))
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d*)?(?:[eE][+-]?\d{1,3})?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
_PLAIN = re.compile(rf"(\d{{1,{_DIGITS}}})(?:\.0*)?", re.ASCII)


def looks(text: str) -> str:
    """Return what a reader sees of a text: without white space around it and characters of no
    width, in one of the ways in which Unicode writes a letter."""
    if text.isascii():
        return text.strip()
    shown = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in shown if unicodedata.category(letter) != "Cf").strip()


@lru_cache(maxsize=100_000)
def number(text: str) -> Decimal | None:
    """Return the number that a text is, in whatever way it is written; None for other texts."""
    shown = looks(text).translate(_MINUS)
    if not _NUMBER.fullmatch(shown) or _GROUPED.fullmatch(shown):
        return None
    return Decimal(shown.replace(",", "."))


def whole(text: str) -> str | None:
    """Return the digits of a whole number from 0 on, with its leading zeros; None for others."""
    if match := _PLAIN.fullmatch(text):
        return match[1]
    value = number(text)
    if value is None or value.is_signed() or value.adjusted() >= _DIGITS or value % 1:
        return None
    return str(int(value))


def is_junk(text: str) -> bool:
    """Return whether an identity is JUNK, in whatever way that is written."""
    return number(text) == JUNK


def fault(column: str, text: str) -> str:
    """Return why a text cannot be a label of a column (identity, camera or view); "" if it can."""
    if _PLAIN.fullmatch(text):
        return ""
    if not looks(text):
        return f"{column} is empty"
    if text in _MISSING:
        return f"{column} is {text}, which stands for a missing value; give every image its label"
    value = number(text)
    if value is None:
        is_grouped = _GROUPED.fullmatch(looks(text))
        return f"{column} is {text}; write numbers without separators" if is_grouped else ""
    if value.is_signed() and not (column == "identity" and value == JUNK):
        return f"{column} is {text}; numbers may not be negative"
    if "e" in text.lower() and value.adjusted() >= _ROUNDED - 1:
        return (f"{column} is {text}, which may be rounded; store long numbers with all their "
                "digits, as text")
    return ""


def alike(column: str, texts: Iterable[str]) -> list[str]:
    """Return a sentence for each two texts of a column that are one number or look alike."""
    faults: list[str] = []
    first: dict[object, str] = {}
    for text in sorted(texts):
        digits = whole(text)
        key: object = looks(text) if digits is None else int(digits)
        if (before := first.setdefault(key, text)) == text:
            continue
        if digits is None:
            faults.append(f"column {column} has both {before!a} and {text!a}, which look "
                          "alike; write them alike if they mean one thing")
        else:
            faults.append(f"column {column} has both {before} and {text}, which are one number; "
                          "write them alike, or any of them with a letter if they differ")
    return faults
