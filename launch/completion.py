"""What shells complete in the installed commands: names of recipes and of sweeps, and keys."""

from collections.abc import Callable, Iterable
from pathlib import Path

from harness.config.fields import field_types
from harness.config.recipes import PARTS
from harness.config.yaml_files import ENDINGS
from svll.config import RECIPES, SWEEPS, Config


def recipes(incomplete: str) -> list[str]:
    """Return recipes for a word as far as it is typed: by name or file; after A+, parts too."""
    before, _, last = incomplete.rpartition("+")
    names = _stems(RECIPES) + (_stems(RECIPES / PARTS) if before else [])
    start = f"{before}+" if before else ""
    return [start + name for name in _starting(last, [*names, *_files(last)])]


def sweeps(incomplete: str) -> list[str]:
    """Return sweeps for a word as far as it is typed: by name or file."""
    return _starting(incomplete, [*_stems(SWEEPS), *_files(incomplete)])


def keys_of(*schemas: type) -> Callable[[str], list[str]]:
    """Return what completes a key of some schemas, up to its `=`."""

    def keys(incomplete: str) -> list[str]:
        known = [f"{key}=" for schema in schemas for key in field_types(schema)]
        return _starting(incomplete, known)

    return keys


settings = keys_of(Config)
"""Completes a key of a run's configuration."""


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
