"""Recipes and overrides become one checked tree; each fault is reported with its place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from harness.config import build as config_module
from harness.config.build import Base, build
from harness.config.fields import text_fields
from harness.config.recipes import read_recipe
from harness.config.sources import Setting, parse_overrides
from harness.config.values import to_mapping, value_at
from svll.config import Config as WholeConfig
from tests.harness.config.car import Car, Engine, faults_of, made

# --- values ---


def test_keys_that_are_not_set_have_their_defaults() -> None:
    assert build(Car, []) == Car()


def test_the_defaults_of_a_schema_stay_whoever_changes_a_tree_of_them() -> None:
    build(Engine, parse_overrides(["gears=[4]"])).gears.append(5)
    build(Engine, []).gears.append(6)
    assert build(Engine, []).gears == [1, 2]


def test_later_settings_win_over_earlier_ones() -> None:
    car = made("doors=2", "engine.power=3", "doors=6", "name=van")
    assert (car.doors, car.engine.power, car.name) == (6, 3.0, "van")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("engine.power=1e-4", 1e-4), ("engine.power=2", 2.0), ("seats=null", None),
        ("seats=NULL", None), ("seats=5", 5), ("open=true", True), ("engine.fuel=petrol", "petrol"),
        ("engine.gears=[]", []), ("engine.gears=[1, 5]", [1, 5]), ("engine.level=2", 2),
        ("name='12'", "12"), ("name=a=b", "a=b"), ("engine.gears=[3]", [3]),
        ("engine.power=1E6", 1e6), ("engine.power=1e+3", 1e3), ("engine.power=.5", 0.5),
        ("engine.span=[1e-6, 1e-4]", (1e-6, 1e-4)), ("open=yes", True), ("open=Off", False),
        ("seats=~", None), ("name=no", "no"), ("name=010", "010"), ("name=12:30", "12:30"),
        ("name=2024-01-01", "2024-01-01"), ("notes=[on, 1_000]", ["on", "1_000"]),
    ],
)
def test_a_value_is_read_as_its_type(word: str, value: Any) -> None:
    key = word.partition("=")[0]
    found = value_at(made(word), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("doors=2.5", "an integer, found 2.5"),
        ("doors=2.0", "an integer, found 2.0"),
        ("doors=true", "an integer, found True"),
        ("doors=null", "an integer, found None"),
        ("doors=two", "an integer, found 'two'"),
        ("seats=x", "an integer or null, found 'x'"),
        ("open=perhaps", "true or false, found 'perhaps'"),
        ("open=1", "true or false, found 1"),
        ("doors=010", "an integer, found '010'"),
        ("doors=1_000", "an integer, found '1_000'"),
        ("doors=12:30", "an integer, found '12:30'"),
        ("doors='4'", "an integer, found '4'"),
        ("seats=None", "an integer or null, found 'None'"),
        ("colour=None", "a string or null, found 'None'"),
        ("notes=[1e3]", "a list of strings, found [1000.0]"),
        ("engine.power=1_000", "a number, found '1_000'"),
        ("engine.power=on", "a number, found 'on'"),
        ("engine.fuel=off", "one of petrol, wood, found 'off'"),
        ("name=12", "a string, found 12"),
        ("name=true", "a string, found True"),
        ("name={a: 1}", "a string, found {'a': 1}"),
        ("name='???'", "a string, found '???'"),
        ("engine.power=much", "a number, found 'much'"),
        ("engine.power=.nan", "a number, found nan"),
        ("engine.power=inf", "a number, found 'inf'"),
        ("engine.power=[1]", "a number, found [1]"),
        ("engine.fuel=Wood", "one of petrol, wood, found 'Wood'"),
        ("engine.fuel=1", "one of petrol, wood, found 1"),
        ("engine.level=3", "one of 0, 1, 2, found 3"),
        ("engine.level=true", "one of 0, 1, 2, found True"),
        ("engine.gears=3", "a list of integers, found 3"),
        ("engine.gears=[1, [2]]", "a list of integers, found [1, [2]]"),
        ("engine.gears=[1.5]", "a list of integers, found [1.5]"),
        ("engine.span=[0.1]", "a list of 2 numbers, found [0.1]"),
        ("engine.span=[0.1, .nan]", "a list of 2 numbers, found [0.1, nan]"),
        ("engine.span=[1, 2, 3]", "a list of 2 numbers, found [1, 2, 3]"),
    ],
)
def test_a_wrong_type_is_reported_with_the_right_one(word: str, expected: str) -> None:
    key = word.partition("=")[0]
    assert faults_of(made, word) == [f"command line, override 1: {key}: expected {expected}"]


# --- keys ---


def test_an_unknown_key_is_reported_with_the_nearest() -> None:
    words = ["engine.pwoer=1", "fuel=wood", "zzz=1", "engine=3", "engine={power: 2}"]
    assert faults_of(made, *words) == [
        "command line, override 1: no key engine.pwoer; did you mean engine.power?",
        "command line, override 2: no key fuel; did you mean engine.fuel?",
        "command line, override 3: no key zzz",
        "command line, override 4: engine is a section; set one of its keys, such as engine.power",
        "command line, override 5: engine is a section; set one of its keys, such as engine.power",
    ]


def test_all_faults_of_all_files_and_overrides_come_at_once(write: Any) -> None:
    write("base.yaml", "engine:\n  power: -2\n  fule: wood\n")
    path = write("mine.yaml", "extends: base\ndoors: four\n\nnmae: x\n")
    settings = [*read_recipe(path, Car), *parse_overrides(["engine.gears=[1,2,3,4]", "seats=z"])]
    base = path.with_name("base.yaml")
    assert faults_of(build, Car, settings) == [
        f"{base}, line 3: no key engine.fule; did you mean engine.fuel?",
        f"{path}, line 2: doors: expected an integer, found 'four'",
        f"{path}, line 4: no key nmae; did you mean name?",
        "command line, override 2: seats: expected an integer or null, found 'z'",
        f"{base}, line 2: engine.power: must not be negative, found -2.0",
        "command line, override 1: engine.gears: at most 3",
    ]


def test_values_that_do_not_go_together_are_reported_at_the_one_that_was_written() -> None:
    assert faults_of(made, "engine.level=1", "doors=3") == [
        "command line, override 2: doors: 3 is odd, with engine.level=1"
    ]

    @dataclass
    class Odd(Car):
        doors: int = 3

    assert faults_of(build, Odd, parse_overrides(["name=x", "engine.level=1"])) == [
        "command line, override 2: doors: 3 is odd, with engine.level=1"
    ]
    assert faults_of(build, Odd, []) == ["default: doors: 3 is odd, with engine.level=0"]


# --- trees that share settings ---


def test_every_part_of_the_module_is_about_any_tree() -> None:
    assert "svll" not in Path(config_module.__file__).read_text()


PIECES = [
    ("seed", 3), ("seed", "three"), ("model.name", "svll-tiny"), ("model.nam", 1), ("model", {}),
    ("stage2.lr", 1), ("stage2.lr", "5e-6"), ("stage2.lr", -1.0), ("stage2.lr", float("inf")),
    ("stage2.milestones", [3, 5]), ("stage2.milestones", 3), ("stage2.erase_area", [0.1, 0.2]),
    ("stage2.erase_area", [0.1]), ("data.roots", {"msmt17": "a"}), ("data.roots", {"veri776": "b"}),
    ("data.root", None), ("data.root", "${run.name}"), ("run.name", "x"), ("stage2.batch", 63),
    ("stage2.instances", 4), ("engine.zero", 2), ("engine.precision", "fp16"), ("data.check", "no"),
    ("model.sie", "none"), ("stage1.lss_weight", True), ("data.validation", 2),
]


def test_a_variable_of_the_environment_is_kept_inside_lists_too() -> None:
    words = ("garage=${HOME}", "notes=['${HOME}/x', '${colour} door']", "colour=red")
    car = build(Car, parse_overrides(words, text_fields(Car)))
    assert (car.garage, car.notes) == ("${HOME}", ["${HOME}/x", "red door"])


def test_a_reference_stands_for_the_final_value_of_another_key() -> None:
    words = ("engine.power=${doors}", "name=${colour} ${doors}-door", "doors=${engine.level}",
             "engine.level=2", "colour=${garage}", "garage=red")
    car = made(*words)
    assert (car.engine.power, car.doors, car.colour, car.name) == (2.0, 2, "red", "red 2-door")
    base = Base(Car, parse_overrides(["doors=${engine.level}"]))
    assert base.build(parse_overrides(["engine.level=2"])).doors == 2
    assert Base(Car, []).build(parse_overrides(["doors=${engine.level}"])).doors == 0


def test_references_that_cannot_be_followed_are_reported() -> None:
    words = ["name=${nmae}", "seats=${colour}", "colour=red", "engine.power=${engine.power}"]
    assert faults_of(made, *words) == [
        "command line, override 1: name: no key nmae, found '${nmae}'; did you mean name?",
        "command line, override 2: seats: expected an integer or null, found 'red' "
        "(from '${colour}')",
        "command line, override 4: engine.power: '${engine.power}' refers to itself in a circle",
    ]


@settings(max_examples=40, deadline=None)
@given(
    common=st.lists(st.sampled_from(PIECES), max_size=6),
    trials=st.lists(st.lists(st.sampled_from(PIECES), max_size=4), max_size=4),
)
def test_trees_built_from_a_common_base_are_those_built_from_all_settings(
    common: list[tuple[str, Any]], trials: list[list[tuple[str, Any]]]
) -> None:
    def placed(pieces: list[tuple[str, Any]], file: str) -> list[Setting]:
        return [Setting(key, value, f"{file}, line {n}") for n, (key, value) in enumerate(pieces)]

    def outcome(make: Callable[[], WholeConfig]) -> Any:
        try:
            return to_mapping(make())
        except UserError as error:
            return str(error)

    first = placed(common, "a")
    base = Base(WholeConfig, first)
    for trial in [*trials, []]:  # what one trial sets must not stay for the next
        more = placed(trial, "b")
        assert outcome(lambda more=more: base.build(more)) == outcome(
            lambda more=more: build(WholeConfig, [*first, *more])
        )


def test_two_values_do_not_make_one_more_reference() -> None:
    [fault] = faults_of(made, "colour=$", "name=${colour}{doors}")
    assert fault == ("command line, override 2: name: '${doors}' refers to a key once more (from "
                     "'${colour}{doors}')")
