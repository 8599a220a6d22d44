"""Paths of a run's feature files."""

from pathlib import Path

from harness.base.errors import UserError
from harness.base.paths import typed
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs.run import Run
from svll.config import Config
from svll.data.datasets import tested_on


def features_file(folder: Path) -> Path:
    """Return a run's feature file of the first test set; raises UserError when it is missing."""
    return _existing(Run(folder).features_file)


def feature_files(place: Path) -> list[Path]:
    """Return a feature file itself, or those of a run's test sets; UserError if one is missing."""
    if not place.is_dir():
        return [place]
    run = Run(place)
    check_is_run(run)
    config = build(Config, read_recipe(run.config_file, Config))
    return [_existing(path) for path in feature_paths(run, config)]


def feature_paths(run: Run, config: Config) -> list[Path]:
    """Return the path for each test set: features.h5, then features.<name>.h5."""
    path, others = run.features_file, tested_on(config.data)[1:]
    return [path, *(path.with_name(f"features.{name}.h5") for name in others)]


def check_is_run(run: Run) -> None:
    """Raise UserError for a folder that is not a run's."""
    if not (file := run.config_file).is_file():
        raise UserError(f"{run.folder}: not a run's folder: there is no {file.name} in it")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: is missing; python launch/features.py {typed(path.parent)} makes "
                        "it")
    return path
