"""Words of a command line become settings; values of string keys stay as they were written."""

from typing import Any

import pytest

from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from tests.harness.config.car import Car, faults_of


def test_words_of_a_command_line_that_are_no_settings_are_all_reported() -> None:
    words = ["doors", "doors=2", "=3", "name=[a", "engine.span={a: 1, a: 2}", "doors=", "name= "]
    assert faults_of(parse_overrides, words) == [
        "command line, override 1: 'doors' is not of the form key=value",
        "command line, override 3: '=3' is not of the form key=value",
        "command line, override 4: name: '[a' is not a YAML value: expected ',' or ']', but got "
        "'<stream end>'",
        "command line, override 5: engine.span: '{a: 1, a: 2}' is not a YAML value: engine.span.a "
        "appears twice (first on line 1)",
        "command line, override 6: doors: is empty; write a value, null, or '\"\"' "
        "for an empty string",
        "command line, override 7: name: is empty; write a value, null, or '\"\"' "
        "for an empty string",
    ]


def test_a_text_field_gets_a_number_as_it_was_written(write: Any) -> None:
    text = "name: 1e4\ngarage: 0012.10\nnotes: [1e3, TRUE]\nengine: {power: 1e4}\n"
    car = build(Car, read_recipe(write("old.yaml", text), Car))
    assert (car.name, car.garage, car.notes) == ("1e4", "0012.10", ["1e3", "TRUE"])
    assert car.engine.power == 1e4
    words = ["name=1e4", "garage=0012.10", "notes=[1e3, TRUE]", "engine.power=1e4"]
    assert build(Car, parse_overrides(words, text_fields(Car))) == car


@pytest.mark.parametrize("text", [
    "a #b", "a\nb", "a\r\nb", "a\tb", " a ", "-a", "%a", "@a", "`a", "*", "&a", "a, b", "a\\b",
])
def test_a_text_field_gets_what_the_shell_passed_where_yaml_would_change_it(text: str) -> None:
    texts = text_fields(Car)
    assert build(Car, parse_overrides([f"name={text}", f"garage={text}"], texts)) == Car(
        name=text, garage=text
    )
    as_typed = parse_overrides(["name = a ", 'garage="a #b "', "notes=[a #c\n]"], texts)
    assert build(Car, as_typed) == Car(name="a", garage="a #b ", notes=["a"])
    assert build(Car, parse_overrides(["colour=~"], texts)).colour is None
