"""Where a run's features are."""

from pathlib import Path

from harness.base.errors import UserError
from harness.runs.run import Run
from svll.config import Config
from svll.data.datasets import tested_on


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
