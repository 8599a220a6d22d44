"""Recipes and overrides become one checked tree; each fault is told with its place and remedy."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from harness.config import build as config_module
from harness.config.build import Base, build
from harness.config.casts import type_words
from harness.config.fields import keys, runtime, text_fields
from harness.config.sources import Setting, find_recipe, parse_overrides, read_recipe
from harness.config.values import differences, signature, to_mapping, to_yaml, value_at
from svll.config import Config as WholeConfig


@dataclass
class Engine:
    power: float = 1.5
    fuel: Literal["petrol", "wood"] = "wood"
    gears: list[int] = field(default_factory=lambda: [1, 2])
    span: tuple[float, float] = (0.1, 1 / 3)
    level: Literal[0, 1, 2] = 0

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.power < 0:
            yield "power", f"must not be negative, found {self.power}"
        if len(self.gears) > 3:
            yield "gears", "at most 3"


@dataclass
class Car:
    name: str = "beetle"
    doors: int = 4
    seats: int | None = None
    open: bool = False
    engine: Engine = field(default_factory=Engine)
    garage: str = runtime("here")
    colour: str | None = runtime(None)
    notes: list[str] = runtime(factory=list)

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.doors % 2:
            yield "doors", f"{self.doors} is odd, with engine.level={self.engine.level}"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a YAML file by name; returns its path."""

    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def told(function: Any, *arguments: Any, **options: Any) -> list[str]:
    """The lines of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    return str(caught.value).splitlines()


def made(*words: str) -> Car:
    return build(Car, parse_overrides(words))


# --- values ---


def test_defaults_hold_where_nothing_is_said() -> None:
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
        ("seats=", None), ("seats=5", 5), ("open=true", True), ("engine.fuel=petrol", "petrol"),
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
        ("doors=2.5", "a whole number, found 2.5"),
        ("doors=2.0", "a whole number, found 2.0"),
        ("doors=true", "a whole number, found True"),
        ("doors=null", "a whole number, found None"),
        ("doors=two", "a whole number, found 'two'"),
        ("seats=x", "a whole number or null, found 'x'"),
        ("open=perhaps", "true or false, found 'perhaps'"),
        ("open=1", "true or false, found 1"),
        ("doors=010", "a whole number, found '010'"),
        ("doors=1_000", "a whole number, found '1_000'"),
        ("doors=12:30", "a whole number, found '12:30'"),
        ("doors='4'", "a whole number, found '4'"),
        ("seats=None", "a whole number or null, found 'None'"),
        ("colour=None", "a text or null, found 'None'"),
        ("notes=[1e3]", "a list (a text), found [1000.0]"),
        ("engine.power=1_000", "a number, found '1_000'"),
        ("engine.power=on", "a number, found 'on'"),
        ("engine.fuel=off", "one of petrol, wood, found 'off'"),
        ("name=12", "a text, found 12"),
        ("name=true", "a text, found True"),
        ("name={a: 1}", "a text, found {'a': 1}"),
        ("name='???'", "a text, found '???'"),
        ("engine.power=much", "a number, found 'much'"),
        ("engine.power=.nan", "a number, found nan"),
        ("engine.power=inf", "a number, found 'inf'"),
        ("engine.power=[1]", "a number, found [1]"),
        ("engine.fuel=Wood", "one of petrol, wood, found 'Wood'"),
        ("engine.fuel=1", "one of petrol, wood, found 1"),
        ("engine.level=3", "one of 0, 1, 2, found 3"),
        ("engine.level=true", "one of 0, 1, 2, found True"),
        ("engine.gears=3", "a list (a whole number), found 3"),
        ("engine.gears=[1, [2]]", "a list (a whole number), found [1, [2]]"),
        ("engine.gears=[1.5]", "a list (a whole number), found [1.5]"),
        ("engine.span=[0.1]", "a list (2 of a number), found [0.1]"),
        ("engine.span=[0.1, .nan]", "a list (2 of a number), found [0.1, nan]"),
        ("engine.span=[1, 2, 3]", "a list (2 of a number), found [1, 2, 3]"),
    ],
)
def test_a_wrong_type_is_told_with_the_right_one(word: str, expected: str) -> None:
    key = word.partition("=")[0]
    assert told(made, word) == [f"command line, override 1: {key}: expected {expected}"]


def test_a_text_field_gets_a_number_as_it_was_written(write: Any) -> None:
    text = "name: 1e4\ngarage: 0012.10\nnotes: [1e3, TRUE]\nengine: {power: 1e4}\n"
    car = build(Car, read_recipe(write("old.yaml", text), Car))
    assert (car.name, car.garage, car.notes) == ("1e4", "0012.10", ["1e3", "TRUE"])
    assert car.engine.power == 1e4
    words = ["name=1e4", "garage=0012.10", "notes=[1e3, TRUE]", "engine.power=1e4"]
    assert build(Car, parse_overrides(words, text_fields(Car))) == car


def test_types_are_said_in_words() -> None:
    assert type_words(dict[str, Any]) == "a mapping"
    assert type_words(float | None) == "a number or null"


# --- keys ---


def test_an_unknown_key_is_told_with_the_nearest() -> None:
    assert told(made, "engine.pwoer=1", "fuel=wood", "zzz=1", "engine=3", "engine={power: 2}") == [
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
    assert told(build, Car, settings) == [
        f"{base}, line 3: no key engine.fule; did you mean engine.fuel?",
        f"{path}, line 2: doors: expected a whole number, found 'four'",
        f"{path}, line 4: no key nmae; did you mean name?",
        "command line, override 2: seats: expected a whole number or null, found 'z'",
        f"{base}, line 2: engine.power: must not be negative, found -2.0",
        "command line, override 1: engine.gears: at most 3",
    ]


def test_values_that_do_not_go_together_are_told_at_the_one_that_was_written() -> None:
    assert told(made, "engine.level=1", "doors=3") == [
        "command line, override 2: doors: 3 is odd, with engine.level=1"
    ]

    @dataclass
    class Odd(Car):
        doors: int = 3

    assert told(build, Odd, parse_overrides(["name=x", "engine.level=1"])) == [
        "command line, override 2: doors: 3 is odd, with engine.level=1"
    ]
    assert told(build, Odd, []) == ["default: doors: 3 is odd, with engine.level=0"]


def test_words_of_a_command_line_that_are_no_settings_are_all_told() -> None:
    words = ["doors", "doors=2", "=3", "name=[a", "engine.span={a: 1, a: 2}"]
    assert told(parse_overrides, words) == [
        "command line, override 1: 'doors' is not of the form key=value",
        "command line, override 3: '=3' is not of the form key=value",
        "command line, override 4: name: '[a' is not a YAML value: expected ',' or ']', but got "
        "'<stream end>'",
        "command line, override 5: engine.span: '{a: 1, a: 2}' is not a YAML value: engine.span.a "
        "is given twice (first on line 1)",
    ]


# --- recipes ---


def test_a_recipe_starts_from_the_one_that_it_extends(write: Any) -> None:
    write("base.yaml", "doors: 2\nname: base\nengine: {power: 5}\n")
    write("middle.yaml", "extends: base\nname: middle\nengine.fuel: petrol\n")
    path = write("top.yaml", "extends: middle\nengine:\n  power: 7\n")
    car = build(Car, read_recipe(path, Car))
    assert (car.doors, car.name, car.engine) == (2, "middle", Engine(power=7.0, fuel="petrol"))
    assert [s for s in read_recipe(path, Car) if s.key == "engine.power"] == [
        Setting("engine.power", 5, f"{path.with_name('base.yaml')}, line 3"),
        Setting("engine.power", 7, f"{path}, line 3"),
    ]


def test_a_base_given_as_a_path_is_looked_up_from_the_recipes_folder(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("base.yaml", "doors: 2\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "base.yaml").write_text("doors: 8\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert build(Car, read_recipe(write("a.yaml", "extends: base.yaml\n"), Car)).doors == 2


def test_a_recipe_anywhere_may_extend_shipped_ones_by_name_or_path(
    write: Any, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped"
    (shipped / "parts").mkdir(parents=True)
    (shipped / "demo.yaml").write_text("doors: 8\nextends: parts/base.yaml\n")
    (shipped / "own.yaml").write_text("doors: 6\n")
    (shipped / "parts" / "base.yaml").write_text("name: base\n")
    write("own.yaml", "doors: 2\n")

    def doors(text: str, name: str = "mine.yaml") -> int:
        return build(Car, read_recipe(write(name, text), Car, shipped)).doors

    assert doors("extends: demo\n") == 8
    assert doors("extends: [demo, own]\n") == 2  # one beside the file comes first
    assert doors("extends: own\n", "own.yaml") == 6  # but not the file itself
    path = write("mine.yaml", "extends: [parts/base.yaml]\n")
    assert build(Car, read_recipe(path, Car, shipped)).name == "base"
    assert told(read_recipe, write("mine.yaml", "extends: demoo\n"), Car, shipped) == [
        f"{path}, line 1: no recipe 'demoo'; did you mean demo?", "recipes: demo, mine, own"
    ]
    assert told(read_recipe, write("mine.yaml", "extends: x/a.yaml\n"), Car, shipped)[0] == (
        f"{path}, line 1: no recipe 'x/a.yaml' in {tmp_path}, {shipped}"
    )


def test_recipes_that_extend_each_other_in_a_circle_are_told(write: Any) -> None:
    write("a.yaml", "extends: b\n")
    path = write("b.yaml", "extends: a\n")
    assert told(read_recipe, path, Car) == [
        f"{path}: recipes extend each other in a circle: b -> a -> b"
    ]
    path = write("a.yaml", f"extends: ../{path.parent.name}/a.yaml\n")
    assert told(read_recipe, path, Car) == [
        f"{path}: recipes extend each other in a circle: a -> a"
    ]
    assert told(read_recipe, write("a.yaml", "doors: 2\nextends: 5\n"), Car) == [
        f"{path}, line 2: extends: expected a recipe's name or a list of them, found 5"
    ]


def test_later_bases_win_over_earlier_ones_and_the_recipe_over_all(write: Any) -> None:
    write("a.yaml", "doors: 2\ngarage: north\n")
    write("b.yaml", "doors: 6\nengine: {power: 7.0}\n")
    car = build(Car, read_recipe(write("c.yaml", "extends: [a, b]\n"), Car))
    assert (car.doors, car.garage, car.engine.power) == (6, "north", 7.0)
    turned = write("d.yaml", "extends: [b, a]\nengine: {power: 8.0}\n")
    other = build(Car, read_recipe(turned, Car))
    assert (other.doors, other.engine.power) == (2, 8.0)


def test_an_unknown_recipe_is_told_with_the_nearest_and_all(write: Any, tmp_path: Path) -> None:
    write("market.yaml", "")
    path = write("tiny.yaml", "doors: 2\nextends: markt\n")
    assert told(find_recipe, "markte", tmp_path) == [
        "no recipe 'markte'; did you mean market?", "recipes: market, tiny"
    ]
    assert told(read_recipe, path, Car)[0] == (
        f"{path}, line 2: no recipe 'markt'; did you mean market?"
    )


def test_a_recipe_is_found_by_name_or_by_path(write: Any, tmp_path: Path) -> None:
    path = write("mine.yaml", "")
    assert find_recipe("mine", tmp_path) == find_recipe(str(path), tmp_path / "other") == path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        assert find_recipe("~/mine.yaml", tmp_path / "other") == path
        other = write("further.yaml", "extends: $HOME/mine.yaml\n")
        assert read_recipe(other, Car) == []


# --- signature ---


def test_the_signature_depends_on_all_that_can_change_a_result_and_on_nothing_else() -> None:
    base = signature(Car())
    assert len(base) == 12
    assert int(base, 16) >= 0
    others = [
        "name=x", "doors=2", "seats=4", "open=true", "engine.power=2", "engine.fuel=petrol",
        "engine.gears=[2,1]", "engine.span=[0.1,0.2]", "engine.level=1",
    ]
    changing = {word.partition("=")[0] for word in others}
    assert changing | {"garage", "colour", "notes"} == set(keys(Car))
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


def test_references_that_cannot_be_followed_are_told() -> None:
    words = ["name=${nmae}", "seats=${colour}", "colour=red", "engine.power=${engine.power}"]
    assert told(made, *words) == [
        "command line, override 1: name: no key nmae, found '${nmae}'; did you mean name?",
        "command line, override 2: seats: expected a whole number or null, found 'red' "
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
