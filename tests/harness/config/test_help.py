"""Help on configuration keys: what is printed, and that every key says what it is for."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from harness.base.errors import UserError
from harness.config.fields import changeable, field_types, runtime, unless_empty, where_it_counts
from harness.config.help import config_help, field_texts, sections
from harness.sweeps.keys import ALGORITHMS, SCHEDULERS, SweepFile
from svll.config import Config


@dataclass
class Oven:
    """What bakes,
    and how long."""

    heat: float = changeable(0.5)
    """Share of the
    most that it can."""
    fan: bool = False
    kind: Literal["gas", "wood"] = "gas"
    """What burns."""
    shelves: tuple[int, int] = (1, 4)
    """Where trays may stand."""


@dataclass
class Kitchen:
    """All of it."""

    cooks: list[str] = field(default_factory=list)
    """Who works here."""
    oven: Oven = field(default_factory=Oven)
    door: str | None = runtime(None)
    """Which one to enter by."""
    mark: str = unless_empty("")
    """Painted above it."""
    lamp: bool = where_it_counts(True, lambda kitchen: kitchen.oven.fan)
    """Whether it is lit."""


@dataclass
class LargerOven(Oven):
    """Has a second fan."""

    fan: bool = True
    """Whether both run."""


def test_texts_are_those_that_follow_the_fields_also_of_base_classes() -> None:
    own = {"heat": "Share of the most that it can.", "kind": "What burns.",
           "shelves": "Where trays may stand."}
    assert field_texts(Oven) == own
    assert field_texts(LargerOven) == {**own, "fan": "Whether both run."}


def test_each_key_is_reported_with_type_default_and_marks_section_by_section() -> None:
    assert config_help({"": Kitchen}, width=70) == """\
All of it.

  cooks: a list of strings, default []
      Who works here.
  door: a string or null, default null; outside the signature
      Which one to enter by.
  mark: a string, default ''; in the signature where set
      Painted above it.
  lamp: true or false, default true; in the signature where it changes
      the result
      Whether it is lit.

oven: What bakes, and how long.

  oven.heat: a number, default 0.5; changeable
      Share of the most that it can.
  oven.fan: true or false, default false
  oven.kind: one of gas, wood, default gas
      What burns.
  oven.shelves: a list of 2 integers, default [1, 4]
      Where trays may stand.

outside the signature: does not affect the run's ID
changeable: population based training may change it during a run"""


def test_words_choose_keys_and_leave_sections_without_any_out() -> None:
    assert config_help({"": Kitchen}, ["oven.k", "fan"]) == """\
oven: What bakes, and how long.

  oven.fan: true or false, default false
  oven.kind: one of gas, wood, default gas
      What burns."""


def test_a_word_that_no_key_holds_is_reported_with_the_nearest() -> None:
    for word, told in (("shelfes", "did you mean shelves?"), ("xyz", "leave it out to print")):
        with pytest.raises(UserError, match=f"no key contains '{word}'; .*{told[:-1]}"):
            config_help({"": Kitchen}, ["oven", word])


def test_lines_are_no_longer_than_asked_for() -> None:
    for width in (40, 100):
        lines = config_help({"": Config}, width=width).splitlines()[:-2]
        assert max(len(line) for line in lines) <= width


@pytest.mark.parametrize(
    "schema", [Config, SweepFile, *SCHEDULERS.values(), *ALGORITHMS.values()],
    ids=lambda schema: schema.__name__,
)
def test_every_key_and_every_section_has_a_description(schema: type) -> None:
    found = list(sections(schema))
    assert [key.name for part in found for key in part.keys if not key.text] == []
    assert not [part.prefix for part in found if part.text.startswith("(") or not part.text]
    assert sorted(key.name for part in found for key in part.keys) == sorted(field_types(schema))


def test_marks_are_those_of_the_fields() -> None:
    marks = {key.name: key.marks for part in sections(Config) for key in part.keys}
    assert marks["data.root"] == marks["run.runs"] == ("outside the signature",)
    assert marks["model.fingerprint"] == ("in the signature where set",)
    assert marks["stage2.lr"] == ("changeable",)
    assert marks["stage1.lr"] == ()


def test_defaults_are_written_as_a_recipe_would_write_them() -> None:
    defaults = {key.name: key.default for part in sections(Config) for key in part.keys}
    assert defaults["stage2.milestones"] == "[30, 50]"
    assert defaults["model.stride"] == "12"
    assert defaults["data.root"] == "null"
