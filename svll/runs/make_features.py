"""The feature caches of a finished run: taken where they are there, made where they are not."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from harness.base.errors import UserError
from harness.config.build import build, parse_overrides, read_recipe, signature, text_fields
from harness.runs.run import Run
from svll.config import Config
from svll.features.files import feature_paths


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
    make_features(run, config)
    return paths


def make_features(run: Run, config: Config) -> None:
    """Write those test features of a trained run that are missing; on every rank.

    Raises Busy while the run goes on, UserError as the run does.
    """
    # DALI, DeepSpeed: not for features that are there
    from harness.training import ranks
    from svll.experiment import set_up
    from svll.inputs import load_inputs
    from svll.stage2 import trained_model
    from svll.testing import write_features

    set_up(config)
    with ExitStack() as stack:
        with ranks.leader_first() as acts:
            if acts:
                stack.enter_context(run.lock())
        inputs = load_inputs(run, config)
        model = trained_model(inputs)
        for part in inputs.splits.tests:
            write_features(inputs, model, part)
