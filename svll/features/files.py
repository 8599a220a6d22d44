"""Where a run's features are."""

from pathlib import Path

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs.run import Run
from svll.config import Config
from svll.data.datasets import tested_on


def features_file(folder: Path) -> Path:
    """Return where a run's test features are; raises UserError when there are none."""
    return _there(Run(folder).features_file)


def feature_files(place: Path) -> list[Path]:
    """Return a feature file itself, or those of a run's test sets, the first one's first.

    Raises UserError for a folder that is no run's, and where a run's features are missing.
    """
    if not place.is_dir():
        return [place]
    run = Run(place)
    check_is_run(run)
    config = build(Config, read_recipe(run.config_file, Config))
    return [_there(path) for path in feature_paths(run, config)]


def feature_paths(run: Run, config: Config) -> list[Path]:
    """Where the features of each test set are: features.h5, features.<name>.h5 of further ones."""
    path, others = run.features_file, tested_on(config.data)[1:]
    return [path, *(path.with_name(f"features.{name}.h5") for name in others)]


def check_is_run(run: Run) -> None:
    """Raise UserError for a folder that is no run's."""
    if not run.config_file.is_file():
        raise UserError(
            f"{run.folder}: not a run's folder: there is no {run.config_file.name} in it"
        )


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: is missing; python launch/features.py {path.parent} makes it")
    return path
