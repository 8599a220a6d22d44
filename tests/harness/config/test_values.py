"""A tree's signature, its YAML and its differences from another."""

import dataclasses
import hashlib
from typing import Any

import yaml

from harness.config.build import build
from harness.config.fields import field_types
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.values import differences, to_mapping, to_yaml
from tests.harness.config.car import Car, Engine, made


def test_the_signature_depends_on_all_that_can_change_a_result_and_on_nothing_else() -> None:
    base = signature(Car())
    assert len(base) == 12
    assert int(base, 16) >= 0
    others = [
        "name=x", "doors=2", "seats=4", "open=true", "engine.power=2", "engine.fuel=petrol",
        "engine.gears=[2,1]", "engine.span=[0.1,0.2]", "engine.level=1",
    ]
    changing = {word.partition("=")[0] for word in others}
    assert changing | {"garage", "colour", "notes"} == set(field_types(Car))
    assert len({base, *(signature(made(word)) for word in others)}) == len(others) + 1
    assert signature(made("garage=there", "notes=[a]")) == base


def test_the_signature_is_that_of_the_values_however_they_were_written() -> None:
    expected = signature(made("engine.power=2", "engine.gears=[1]"))
    assert signature(made("engine.gears=[1]", "engine.power=2.0")) == expected
    assert signature(made("engine.power=2e0", "engine.gears=[1]", "doors=4")) == expected


def test_the_signature_does_not_change_between_versions() -> None:
    # another way of hashing would make every finished run look missing
    text = (
        '{"fuel": "wood", "gears": [1, 2], "level": 0, "power": 1.5, '
        '"span": [0.1, 0.3333333333333333]}'
    )
    assert signature(Engine()) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_the_written_yaml_builds_the_same_tree(write: Any) -> None:
    car = made("engine.power=1e-6", "name='yes'", "seats=null", "notes=['ü: 1', '1e4', '0o17']",
               "garage='1'")
    path = write("config.yaml", to_yaml(car))
    again = build(Car, read_recipe(path, Car))
    assert signature(again) == signature(car)
    assert to_mapping(again) == to_mapping(car)
    assert list(yaml.safe_load(to_yaml(car))) == [f.name for f in dataclasses.fields(Car)]


def test_differences_name_the_keys_with_both_values() -> None:
    assert differences(Car(), made("doors=2", "engine.level=1")) == {
        "doors": (4, 2), "engine.level": (0, 1)
    }
