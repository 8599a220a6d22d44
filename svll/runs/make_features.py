"""Features for the command line: those that a finished run lacks, and those of weights."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.errors import UserError, WrongUsage
from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.recipes import named_recipe, read_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.runs.run import Run
from svll.config import RECIPES, Config
from svll.features.files import check_is_run, feature_paths

if TYPE_CHECKING:  # torch and DALI: not for existing features
    from svll.features.from_weights import EncodedTest


def run_features(folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Return a run's caches, one for each of its test sets, the first one's first.

    Missing ones are made as the run makes them, from its configuration and weights; `overrides` may
    give the dataset's present folder (data.root=DIR). Raises UserError for a folder that is not a
    run's, for a run without a trained model, and as the run does for its dataset.
    """
    run = Run(folder)
    check_is_run(run)
    settings = read_recipe(run.config_file, Config)
    config = build(Config, [*settings, *parse_overrides(overrides, text_fields(Config))])
    if signature(config) != signature(build(Config, settings)):
        raise UserError(f"{', '.join(overrides)}: that would be another run; only folders can be "
                        "given here, as in data.root=DIR")
    paths = feature_paths(run, config)
    if all(path.is_file() for path in paths):
        return paths
    if not run.weights_file.is_file():
        raise UserError(f"{folder}: the run is {run.status()['state']} and has no "
                        f"{run.weights_file.name} to make features with; if it is not running, "
                        "give the command that started it again: it resumes")
    make_features(run, config)
    return paths


def make_features(run: Run, config: Config) -> None:
    """Write a run's missing test features, on every rank; Busy while the run is in progress."""
    # DALI, DeepSpeed: not for existing features
    from harness.training import ranks
    from svll.experiment import set_up
    from svll.inputs import load_inputs
    from svll.scoring import write_features
    from svll.stage2 import trained_model

    set_up(config)
    with ExitStack() as stack:
        with ranks.leader_first() as acts:
            if acts:
                stack.enter_context(run.lock())
        inputs = load_inputs(run, config)
        model = trained_model(inputs)
        for part in inputs.splits.tests:
            write_features(inputs, model, part)


def weights_features(
    weights: Path, recipe: str | None, overrides: Sequence[str], save: Path | None = None,
    protocol: str | None = None,
) -> "list[EncodedTest]":
    """Encode the test sets of a recipe with trained weights, as `encode_tests` does.

    `model.sie=none` among the overrides leaves out side information; a recipe's model.sie is for
    training and does not count. Raises UserError without a recipe, and as `encode_tests` does.
    """
    if recipe is None:
        raise WrongUsage("--weights also needs --recipe NAME, which names the test set")
    used = [] if protocol is None else [f"evaluation.protocol={protocol}"]
    given = parse_overrides([*overrides, *used], text_fields(Config))
    config = build(Config, [*named_recipe(recipe, Config, RECIPES), *given])
    is_off = any(one.key == "model.sie" and one.value == "none" for one in given)
    # torch and DALI: not for a recipe with a mistake
    from svll.features.from_weights import encode_tests

    return encode_tests(weights, config, save, side_information=not is_off)
