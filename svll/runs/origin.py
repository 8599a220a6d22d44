"""Where a run comes from and where it can go on: its recipe, what it changed, the next commands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.paths import typed
from harness.config.build import build
from harness.config.recipes import named_recipe, read_recipe
from harness.config.sources import Setting
from harness.config.values import differences
from harness.config.yaml_files import read_yaml
from harness.runs.run import Run
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
    source = sweep_source(run.folder.parent)
    if source.endswith((".yaml", ".yml")) and Path(source).is_file():
        try:
            own = read_yaml(Path(source))[0].get("recipe")
            if isinstance(own, str):
                yield own
        except UserError:
            pass
    elif source:
        yield source
    yield run.folder.parent.name


def sweep_source(folder: Path) -> str:
    """Return the sweep file, or the recipe, that a sweep's folder was made from; "" for none."""
    try:
        return str(read_json(folder / "sweep.json")["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


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
    source = sweep_source(run.folder.parent)
    if source.endswith((".yaml", ".yml")):
        failed = " --retry-failed" if state == "failed" else ""
        if state in GOES_ON:
            commands.append((f"python launch/slurm.py --sweep {typed(source)}{failed}",
                             "resume its sweep"))
        commands.append((f"python launch/report.py {typed(run.folder.parent)}", "rank its sweep"))
    return commands
