"""Features made for the command line: those that a finished run lacks, and those of weights."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.recipes import named_recipe, read_recipe
from harness.config.sources import parse_overrides
from harness.config.values import signature
from harness.runs.run import Run
from svll.config import RECIPES, Config
from svll.features.files import check_is_run, feature_paths

if TYPE_CHECKING:  # torch and DALI: not for features that are there
    from svll.features.from_weights import Encoded


def run_features(folder: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Return a run's caches, one for each of its test sets, the first one's first.

    Missing ones are made as the run itself makes them, from its configuration and weights;
    `overrides` may say where the dataset is now (data.root=DIR). Raises UserError for a folder that
    is no run's, for a run without a trained model, and as the run does for its dataset.
    """
    run = Run(folder)
    check_is_run(run)
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
) -> "list[Encoded]":
    """Encode the test sets of a recipe with trained weights, as `encode_tests` does.

    `model.sie=none` among the overrides leaves out side information; a recipe's own model.sie says
    how models are trained, and does not count. Raises UserError without a recipe, and as
    `encode_tests` does.
    """
    if recipe is None:
        raise UserError("--weights also needs --recipe NAME, which names the test set")
    settings = named_recipe(recipe, Config, RECIPES)
    used = [] if protocol is None else [f"evaluation.protocol={protocol}"]
    words = parse_overrides([*overrides, *used], text_fields(Config))
    config = build(Config, [*settings, *words])
    is_off = any(word.key == "model.sie" and word.value == "none" for word in words)
    # torch and DALI: not for a recipe with a mistake
    from svll.features.from_weights import encode_tests

    return encode_tests(weights, config, save, side_information=not is_off)
