"""What shells complete in the installed commands: names of recipes and of sweeps, and keys."""

from collections.abc import Callable, Iterable
from pathlib import Path

from harness.config.fields import field_types
from harness.config.recipes import PARTS
from harness.config.yaml_files import ENDINGS

Complete = Callable[[str], list[str]]
"""Returns the words that begin with what is typed so far."""


def recipes_in(folder: Path) -> Complete:
    """Return what completes recipes of a folder by name, and any by file; after A+, parts too."""

    def recipes(incomplete: str) -> list[str]:
        before, _, last = incomplete.rpartition("+")
        names = _stems(folder) + (_stems(folder / PARTS) if before else [])
        start = f"{before}+" if before else ""
        return [start + name for name in _starting(last, [*names, *_files(last)])]

    return recipes


def sweeps_in(folder: Path) -> Complete:
    """Return what completes sweeps of a folder by name, and any by file."""

    def sweeps(incomplete: str) -> list[str]:
        return _starting(incomplete, [*_stems(folder), *_files(incomplete)])

    return sweeps


def keys_of(*schemas: type) -> Complete:
    """Return what completes a key of some schemas, up to its `=`."""

    def keys(incomplete: str) -> list[str]:
        known = [f"{key}=" for schema in schemas for key in field_types(schema)]
        return _starting(incomplete, known)

    return keys


def _starting(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _stems(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.yaml"))


def _files(word: str) -> list[str]:
    """Return YAML files, and folders that may hold some, whose path begins with `word`."""
    above, _, start = word.rpartition("/")
    folder = Path(f"{above}/" if "/" in word else ".")
    prefix = word[: len(word) - len(start)]
    found = sorted(folder.glob(f"{start}*")) if folder.is_dir() else []
    return [f"{prefix}{one.name}/" if one.is_dir() else f"{prefix}{one.name}" for one in found
            if one.is_dir() or one.suffix in ENDINGS]
