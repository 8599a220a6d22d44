"""The feature caches of a finished run: taken where they are there, made where they are not."""

from collections.abc import Sequence
from pathlib import Path

from harness.config import build, parse_overrides, read_recipe, signature, text_fields
from harness.errors import UserError
from harness.runs import Run
from svll.config import Config
from svll.data.datasets import tested_on


def run_features(folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Return a run's caches, one for each of its test sets, the first one's first.

    Missing ones are made as the run itself makes them, from its configuration and weights;
    `overrides` may say where the dataset is now (data.root=DIR). Raises UserError for a folder that
    is no run's, for a run without a trained model, and as the run does for its dataset.
    """
    run = Run(folder)
    if not run.config_file.is_file():
        raise UserError(f"{folder}: not a run's folder: there is no {run.config_file.name} in it")
    settings = read_recipe(run.config_file, Config)
    config = build(Config, [*settings, *parse_overrides(overrides, text_fields(Config))])
    if signature(config) != signature(build(Config, settings)):
        raise UserError(
            f"{', '.join(overrides)}: that would be another run; only where things are can be said "
            "here, as in data.root=DIR"
        )
    paths = feature_paths(run, config)
    if all(path.is_file() for path in paths):
        return paths
    if not run.weights_file.is_file():
        state = run.status()["state"]
        raise UserError(
            f"{folder}: the run is {state} and has no {run.weights_file.name}, so there is nothing "
            "to make features with; if it is not running, give the command that started it again: "
            "it goes on where it stopped"
        )
    from svll.experiment import make_features  # DALI, DeepSpeed: not for caches that are there

    make_features(run, config)
    return paths


def features_file(folder: Path) -> Path:
    """Return where a run's test features are; raises UserError when there are none."""
    path = Run(folder).features_file
    if not path.is_file():
        raise UserError(f"{path}: is missing; python launch/evaluate.py --run {folder} makes it")
    return path


def feature_paths(run: Run, config: Config) -> list[Path]:
    """Where the features of each test set are: features.h5, features.<name>.h5 of further ones."""
    path, others = run.features_file, tested_on(config.data)[1:]
    return [path, *(path.with_name(f"features.{name}.h5") for name in others)]
