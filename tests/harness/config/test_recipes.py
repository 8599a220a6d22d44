"""Recipes extend each other and combine by name; unknown ones are reported with the nearest."""

from pathlib import Path
from typing import Any

import pytest

from harness.config.build import build
from harness.config.recipes import named_recipe, read_recipe, recipe_stem
from harness.config.sources import Setting
from tests.harness.config.car import Car, Engine, faults_of


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
    assert faults_of(read_recipe, write("mine.yaml", "extends: demoo\n"), Car, shipped) == [
        f"{path}, line 1: no recipe 'demoo'; did you mean demo?", "recipes: demo, mine, own",
        "parts, such as RECIPE+base: base",
    ]
    assert faults_of(read_recipe, write("mine.yaml", "extends: x/a.yaml\n"), Car, shipped)[0] == (
        f"{path}, line 1: no recipe 'x/a.yaml' in {tmp_path}, {shipped}"
    )


def test_recipes_that_extend_each_other_in_a_circle_are_reported(write: Any) -> None:
    write("a.yaml", "extends: b\n")
    path = write("b.yaml", "extends: a\n")
    assert faults_of(read_recipe, path, Car) == [
        f"{path}: recipes extend each other in a circle: b -> a -> b"
    ]
    path = write("a.yaml", f"extends: ../{path.parent.name}/a.yaml\n")
    assert faults_of(read_recipe, path, Car) == [
        f"{path}: recipes extend each other in a circle: a -> a"
    ]
    assert faults_of(read_recipe, write("a.yaml", "doors: 2\nextends: 5\n"), Car) == [
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


def test_an_unknown_recipe_is_reported_with_the_nearest_and_all(write: Any, tmp_path: Path) -> None:
    write("market.yaml", "")
    path = write("tiny.yaml", "doors: 2\nextends: markt\n")
    assert faults_of(named_recipe, "markte", Car, tmp_path) == [
        "no recipe 'markte'; did you mean market?", "recipes: market, tiny"
    ]
    assert faults_of(read_recipe, path, Car)[0] == (
        f"{path}, line 2: no recipe 'markt'; did you mean market?"
    )


def test_a_recipe_is_found_by_name_or_by_path(write: Any, tmp_path: Path) -> None:
    path = write("mine.yaml", "doors: 2\n")
    found = [Setting("doors", 2, f"{path}, line 1")]
    other = tmp_path / "other"
    assert named_recipe("mine", Car, tmp_path) == named_recipe(str(path), Car, other) == found
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        assert named_recipe("~/mine.yaml", Car, other) == found
        assert read_recipe(write("further.yaml", "extends: $HOME/mine.yaml\n"), Car) == found


# --- recipes that are combined ---


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder of recipes and parts."""
    folder = tmp_path / "shipped"
    (folder / "parts").mkdir(parents=True)
    files = {
        "city": "name: city\ndoors: 2\nengine: {power: 1.0, level: 1}\n",
        "sports_car": "name: sports\nwith:\n  big: {doors: 8}\n  big_wood: {open: true}\n",
        "parts/big": "doors: 6\nengine: {power: 9.0}\n",
        "parts/wood": "engine: {fuel: wood, power: 3.0}\nwith:\n  big: {engine: {power: 5.0}}\n",
        "parts/big_wood": "garage: wood\n",
    }
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def combined(name: str, folder: Path, **options: Any) -> Car:
    return build(Car, named_recipe(name, Car, folder, **options))


def test_of_combined_recipes_later_ones_win(shipped: Path) -> None:
    car = combined("city+big", shipped)
    assert (car.name, car.doors, car.engine.power, car.engine.level) == ("city", 6, 9.0, 1)
    assert combined("sports_car+city", shipped).name == "city"
    assert combined("city+sports_car", shipped).name == "sports"
    assert combined(" city + big ", shipped) == car


def test_combined_recipes_are_what_a_recipe_gets_that_extends_them(
    shipped: Path, write: Any
) -> None:
    for name in ("city+big+wood", "sports_car+wood+big"):
        for text in (f"extends: {name}\n", f"extends: [{name.replace('+', ', ')}]\n"):
            path = write("mine.yaml", text)
            assert read_recipe(path, Car, shipped) == named_recipe(name, Car, shipped)


def test_what_two_recipes_set_together_holds_in_either_order_and_not_for_one(shipped: Path) -> None:
    assert combined("city+wood", shipped).engine.power == 3.0
    assert combined("city+big+wood", shipped).engine.power == 5.0
    assert combined("city+wood+big", shipped).engine.power == 5.0
    assert combined("sports_car+wood+big", shipped).doors == 8
    assert combined("sports_car+wood", shipped).doors == 4


def test_a_recipe_after_those_that_set_something_together_still_wins(
    shipped: Path, write: Any
) -> None:
    path = write("mine.yaml", "engine: {power: 7.0}\n")
    assert combined(f"city+big+wood+{path}", shipped).engine.power == 7.0
    assert combined(f"city+{path}+big+wood", shipped).engine.power == 5.0
    extending = write("other.yaml", "extends: city+big+wood\nengine: {power: 8.0}\n")
    assert combined(str(extending), shipped).engine.power == 8.0


def test_a_part_given_by_its_path_is_that_file_alone(shipped: Path) -> None:
    assert combined("sports_car+big", shipped).doors == 8
    assert combined("sports_car+parts/big.yaml", shipped).doors == 6


def test_names_joined_by_underscores_mean_the_parts_unless_a_file_is_called_so(
    shipped: Path,
) -> None:
    for old, new in {
        "sports_car_big": "sports_car+big", "city_wood_big": "city+wood+big",
        "city_big_wood": "city+big+wood", "city_wood+big": "city+wood+big",
        f"{shipped}/city_wood_big.yaml": f"{shipped}/city.yaml+wood+big",
    }.items():
        assert named_recipe(old, Car, shipped) == named_recipe(new, Car, shipped)
        assert recipe_stem(old) == recipe_stem(new)
    (shipped / "city_wood.yaml").write_text("name: a file of its own\n")
    assert combined("city_wood", shipped) == Car(name="a file of its own")
    assert combined("city+big_wood", shipped).garage == "wood"


def test_names_that_cannot_be_combined_are_reported(shipped: Path) -> None:
    lists = ["recipes: city, sports_car", "parts, such as RECIPE+big: big, big_wood, wood"]
    for name, message in {
        "city+bgi": "no recipe 'bgi'; did you mean big?",
        "ctiy+big": "no recipe 'ctiy'; did you mean city?",
        "city_wod": "no recipe 'city_wod'; did you mean city?",
        "city+": "no recipe ''",
        "big": "big only changes a recipe: write RECIPE+big",
        "big+city": "big only changes a recipe: write RECIPE+big",
    }.items():
        assert faults_of(named_recipe, name, Car, shipped) == [message, *lists]
    for name, word in {
        "city+big+big": "big", "city_big+big": "big", "city+city": "city",
        f"city+big+{shipped}/parts/big.yaml": f"{shipped}/parts/big.yaml",
    }.items():
        assert faults_of(named_recipe, name, Car, shipped, where="a.yaml, line 2") == [
            f"a.yaml, line 2: {name}: {word} is given twice"
        ]


def test_faults_of_a_section_with_are_reported_at_their_lines(shipped: Path, write: Any) -> None:
    path = write("mine.yaml", "with:\n  big:\n    engine: {pwoer: 1}\n    doors: two\n")
    assert faults_of(build, Car, named_recipe(f"{path}+big", Car, shipped)) == [
        f"{path}, line 3: no key engine.pwoer; did you mean engine.power?",
        f"{path}, line 4: doors: expected an integer, found 'two'",
    ]
    write("mine.yaml", "doors: 2\nwith:\n  bgi: {doors: 4}\n")
    assert faults_of(named_recipe, str(path), Car, shipped)[0] == (
        f"{path}, line 3: with: no recipe 'bgi'; did you mean big?"
    )
    for wrong in ("big", "{big: 4}"):
        write("mine.yaml", f"with: {wrong}\n")
        (message,) = faults_of(named_recipe, str(path), Car, shipped)
        assert message.startswith(
            f"{path}, line 1: with: expected settings by the name of a recipe, found "
        )


def test_text_in_a_section_with_is_kept_as_it_is_written(shipped: Path, write: Any) -> None:
    path = write("mine.yaml", "with: {big: {name: 1e4}}\n")
    assert combined(f"{path}+big", shipped).name == "1e4"


def test_a_file_of_the_users_may_be_one_of_several_recipes(
    shipped: Path, write: Any, tmp_path: Path
) -> None:
    write("mine.yaml", "extends: city\nengine: {level: 2}\n")
    car = combined("mine.yaml+big", shipped, near=(tmp_path,))
    assert (car.name, car.doors, car.engine.level) == ("city", 6, 2)
    write("a+b.yaml", "name: plus\n")
    assert combined("a+b.yaml", shipped, near=(tmp_path,)).name == "plus"


def test_a_runs_folder_is_called_by_all_recipes(tmp_path: Path) -> None:
    assert recipe_stem("city") == "city"
    assert recipe_stem("city+big+wood") == recipe_stem("city_big_wood") == "city_big_wood"
    assert recipe_stem("some/folder/mine.yaml+big") == "mine_big"
