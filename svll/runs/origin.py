"""Where a run comes from and where it can go on: its recipe, what it changed, the next commands."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.paths import typed
from harness.config.build import build
from harness.config.casts import at_type
from harness.config.recipes import named_recipe, read_recipe
from harness.config.sources import Setting
from harness.config.values import differences
from harness.config.yaml_files import read_yaml
from harness.runs.run import Run
from harness.sweeps.space import RECIPE
from svll.config import RECIPES, Config

GOES_ON = ("new", "stopped", "failed", "interrupted", "ended early", "submitted")
"""States of runs that a command resumes."""


class Origin(NamedTuple):
    """The recipe of a run, and the settings in which the run differs from it."""

    recipe: str
    """A name or a file; "" if it is not known: the settings differ from the defaults."""
    differing: dict[str, tuple[Any, Any]]
    """By dotted key: the recipe's value and the run's."""


def origin(run: Run) -> Origin:
    """Return where a run comes from. Raises UserError for a configuration that cannot be read."""
    config = build(Config, read_recipe(run.config_file, Config))
    where = [Setting(f"data.{key}", getattr(config.data, key), "") for key in ("root", "roots")]
    for recipe in _recipes(run):
        for more in ([], where):  # a recipe may need a folder, which it does not know
            try:
                base = build(Config, [*named_recipe(recipe, Config, RECIPES), *more])
            except UserError:
                continue
            return Origin(recipe, _meant(differences(base, config)))
    return Origin("", _meant(differences(Config(), config)))


def _meant(differing: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Leave out what tells where the run is and what its files were."""
    return {key: pair for key, pair in differing.items()
            if not key.startswith("run.") and not key.endswith("fingerprint")}


def _recipes(run: Run) -> Iterator[str]:
    """Yield what may be the recipe of a run: its sweep's, or the one after which its folder is
    named."""
    sweep = _sweep(run.folder.parent)
    if run.signature in sweep.searched:
        yield sweep.searched[run.signature]
    yield from sweep.recipes
    if sweep.has_file and Path(sweep.source).is_file():
        try:
            own = read_yaml(Path(sweep.source))[0].get("recipe")
            if isinstance(own, str):
                yield own
        except UserError:
            pass
    elif sweep.source:
        yield sweep.source
    yield run.folder.parent.name


class _Sweep(NamedTuple):
    """What a sweep.json says of where its trials come from."""

    source: str = ""
    """The sweep file or the recipe."""
    recipes: Sequence[str] = ()
    words: Sequence[str] = ()
    """The recipe and the settings, as they were typed, of a sweep without a file."""
    searched: Mapping[str, str] = MappingProxyType({})
    """The recipe of each trial, by signature, where recipes are searched."""

    @property
    def has_file(self) -> bool:
        """Return whether it was made from a sweep file."""
        is_yaml = self.source.endswith((".yaml", ".yml"))
        return is_yaml and not self.words and self.source not in self.recipes


def _sweep(folder: Path) -> _Sweep:
    try:
        about = at_type(read_json(folder / "sweep.json"), dict[str, Any])
        points = {str(one["signature"]): one["point"] for one in about.get("trials", ())}
        return _Sweep(
            at_type(about["file"], str), at_type(about.get("recipes", []), list[str]),
            at_type(about.get("words", []), list[str]),
            {name: str(point[RECIPE]) for name, point in points.items() if RECIPE in point},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return _Sweep()


def sweep_source(folder: Path) -> str:
    """Return the sweep file, or the recipe, that a sweep's folder was made from; "" for none."""
    return _sweep(folder).source


def _resuming(folder: Path) -> str:
    """Return the options with which launch/slurm.py resumes a sweep; "" where neither a file nor a
    name tells its trials."""
    sweep = _sweep(folder)
    if sweep.words:
        is_default = folder.parent == Path(Config().run.runs)
        place = "" if is_default else f" {typed(folder.parent, 'run.runs=')}"
        return f"--sweep-name {typed(folder.name)}{place}"
    return f"--sweep {typed(sweep.source)}" if sweep.has_file else ""


def next_commands(run: Run, state: str) -> list[tuple[str, str]]:
    """Return the commands that go on from a run in a state, each with what it does."""
    folder, commands = typed(run.folder), list[tuple[str, str]]()
    if state == "complete":
        commands = [
            (f"python launch/evaluate.py {folder}", "score its features again"),
            (f"python launch/report.py {folder}", "write a page on it"),
            (f"python launch/search.py --weights {folder} --query QUERIES --gallery PHOTOS",
             "search images with its model"),
            (f"python launch/export.py --weights {folder} --out FILE.onnx",
             "write its model as ONNX"),
        ]
    elif state in GOES_ON and not run.signature.startswith("pbt-"):
        place = f"{typed(run.folder.parent.parent, 'run.runs=')} run.name={run.folder.parent.name}"
        commands = [(f"python launch/train.py --recipe {typed(run.config_file)} {place}",
                     "resume it here")]
    if options := _resuming(run.folder.parent):
        failed = " --retry-failed" if state == "failed" else ""
        if state in GOES_ON:
            commands.append((f"python launch/slurm.py {options}{failed}", "resume its sweep"))
        commands.append((f"python launch/report.py {typed(run.folder.parent)}", "rank its sweep"))
    return commands
