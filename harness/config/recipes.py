"""Recipes: files of settings that combine by name, as in `market1501+clipreid+rn50`.

Later recipes win. A recipe's key `extends` names recipes that come before it. Recipes in the
folder `parts` only change the recipes before them. A value that depends on two recipes is set by
one of them in its section `with`, below the other's name:

    with:
      small: {train: {label_smoothing: 0.0}}

These settings come directly after the second of the two, so a third recipe still wins.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import isfile  # False, and no error, for a name that no file can have
from pathlib import Path

from harness.base.errors import UserError
from harness.base.paths import expanded
from harness.config.fields import text_fields
from harness.config.sources import Setting, as_given_now, settings_of, suggest
from harness.config.yaml_files import ENDINGS, read_yaml

PARTS = "parts"


@dataclass(frozen=True)
class _Recipe:
    """One of the files that are combined, named as the user wrote it: sections `with` apply to
    names, not to paths."""

    name: str
    settings: list[Setting]
    beside: Mapping[str, list[Setting]]
    """Its section `with`, by name."""


def named_recipe(
    name: str, schema: type, folder: Path, *, near: Sequence[Path] = (Path(),), where: str = ""
) -> list[Setting]:
    """Return the settings of a recipe, or of several joined by `+`, each given by name or path.

    folder: holds the recipes that are given by name. near: folders that a path may start from.
    where: the place of `name` in the user's input. Raises UserError for an unknown recipe (with the
    nearest name), a recipe that is given twice and a part without a recipe before it.
    """
    found = _files(name, [folder], near, where)
    first, file = found[0]
    start = f"{where}: " if where else ""
    if file.parent.name == PARTS and not first.endswith(ENDINGS):
        raise UserError(f"{start}{first} only changes a recipe: write RECIPE+{first}\n"
                        f"{_known([folder])}")
    files = [file for _, file in found]
    for place, (word, file) in enumerate(found):
        if file in files[:place]:
            raise UserError(f"{start}{name}: {word} is given twice")
    return _combined(one for word, file in found for one in _read(word, file, schema, folder, ()))


def recipe_files(name: str, folder: Path, near: Sequence[Path] = (Path(),)) -> list[Path]:
    """Return the files that a recipe's name combines. Raises UserError as `named_recipe`."""
    return [file for _, file in _files(name, [folder], near, "")]


def recipe_stem(name: str) -> str:
    """Return the name of the folder of a recipe's runs: the names of its files, joined by _."""
    return "_".join(Path(word).stem for word in _split(name, [Path()]))


def read_recipe(path: Path, schema: type, recipes: Path | None = None) -> list[Setting]:
    """Return the settings of one file, after those of the recipes that it `extends`.

    recipes: a further folder, besides the file's own, of recipes that it may extend. Raises
    UserError where `read_yaml` does, and for a missing base or a circle of bases.
    """
    return _combined(_read(str(path), path, schema, recipes, ()))


def _combined(recipes: Iterable[_Recipe]) -> list[Setting]:
    settings: list[Setting] = []
    before: list[_Recipe] = []
    for recipe in recipes:
        settings += recipe.settings
        settings += [one for other in before for one in recipe.beside.get(other.name, ())]
        settings += [one for other in before for one in other.beside.get(recipe.name, ())]
        before.append(recipe)
    return settings


def _read(
    name: str, path: Path, schema: type, recipes: Path | None, above: tuple[Path, ...]
) -> Iterator[_Recipe]:
    """Yield the recipes that a file extends, then its own; `above`: the files that extend it."""
    if any(path.samefile(one) for one in above):
        names = " -> ".join(file.stem for file in [*above, path])
        raise UserError(f"{above[0]}: recipes extend each other in a circle: {names}")
    texts = text_fields(schema)
    value, lines = read_yaml(path, lambda key: texts(re.sub(r"^with\.[^.]+\.", "", key)))
    foreign = getattr(schema, "foreign", None)  # files of other programs, by their keys
    if foreign is not None and (found := foreign(path, value, lines)) is not None:
        yield _Recipe(name, found, {})
        return
    bases, beside = value.pop("extends", None) or [], value.pop("with", None) or {}
    where = f"{path}, line {lines.get('extends', 1)}"
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{where}: extends: expected a recipe's name or a list of them, found "
                        f"{bases!r}")
    folders = [path.parent, *([recipes] if recipes else [])]
    for base in bases:
        for word, file in _files(base, folders, (), where, not_first=path):
            yield from _read(word, file, schema, recipes, (*above, path))
    where = f"{path}, line {lines.get('with', 1)}: with"
    if not isinstance(beside, dict) or not all(isinstance(one, dict) for one in beside.values()):
        raise UserError(f"{where}: expected settings by the name of a recipe, found {beside!r}")
    for other in beside:
        _file(other, folders, f"{path}, line {lines.get(f'with.{other}', 1)}: with")
    yield _Recipe(name, as_given_now(settings_of(value, lines, path, schema), schema),
                  {other: settings_of(settings, lines, path, schema, f"with.{other}.")
                   for other, settings in beside.items()})


def _files(
    name: str, folders: Sequence[Path], near: Sequence[Path], where: str,
    not_first: Path | None = None,
) -> list[tuple[str, Path]]:
    """Return the recipes that a name combines, each as it was written and with its file."""
    every = [*near, *folders]

    def places(word: str) -> Sequence[Path]:
        return every if word.endswith(ENDINGS) else folders

    words = [one for word in _split(name, every) for one in _parted(word, places(word))]
    return [(word, _file(word, places(word), where, not_first)) for word in words]


def _split(name: str, folders: Sequence[Path]) -> list[str]:
    """Split a name at `+`, unless it is the name of a file."""
    is_file = name.endswith(ENDINGS) and any(isfile(one / expanded(name)) for one in folders)
    return [name] if is_file else [word.strip() for word in name.split("+")]


def _parted(name: str, folders: Sequence[Path]) -> list[str]:
    """Return market1501_rn50, as earlier versions called it, as market1501, rn50; paths alike."""
    ending = Path(name).suffix if name.endswith(ENDINGS) else ""
    head, _, tail = name.removesuffix(ending).rpartition("_")
    is_part = any(isfile(folder / PARTS / f"{tail}.yaml") for folder in folders)
    if not head or not is_part or _found(name, folders):
        return [name]
    return [*_parted(head + ending, folders), tail]


def _file(name: str, folders: Sequence[Path], where: str, not_first: Path | None = None) -> Path:
    """Return the first file of that name; `not_first` only if there is no other."""
    found = _found(name, folders)
    found.sort(key=lambda path: not_first is not None and path.samefile(not_first))
    if found:
        return found[0]
    start = f"{where}: " if where else ""
    looked = ", ".join(str(one.absolute()) for one in folders)
    raise UserError(f"{start}no recipe {name!r}{f' in {looked}' if name.endswith(ENDINGS) else ''}"
                    f"{suggest(name, _stems(folders) + _stems(folders, PARTS))}\n{_known(folders)}")


def _found(name: str, folders: Sequence[Path]) -> list[Path]:
    """Return the files that a name or a path may mean."""
    if name.endswith(ENDINGS):
        files = [folder / expanded(name) for folder in folders]
    else:
        files = [folder / part / f"{name}.yaml" for folder in folders for part in ("", PARTS)]
    return [file for file in files if isfile(file)]


def _known(folders: Sequence[Path]) -> str:
    """Return two lines that list all recipes, and all parts if there are any."""
    parts = _stems(folders, PARTS)
    line = f"\nparts, such as RECIPE+{parts[0]}: {', '.join(parts)}" if parts else ""
    return f"recipes: {', '.join(_stems(folders))}{line}"


def _stems(folders: Sequence[Path], below: str = "") -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / below).glob("*.yaml")})
