"""Make the files that a sweep's runs share before they start, so that none waits for another."""

import json
from collections.abc import Sequence

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.values import to_mapping
from harness.runs.run import Run
from svll.config import Config
from svll.experiment import set_up
from svll.inputs import load_inputs
from svll.scoring import initial_metrics


def prepare(runs: Sequence[Run]) -> None:
    """Make frozen features and starting metrics, on every rank; raises UserError as a run does."""
    first: dict[str, tuple[Run, Config]] = {}
    for run in runs:
        config = build(Config, read_recipe(run.config_file, Config))
        model = config.model
        shared = json.dumps([  # equal for runs that may use the same files
            to_mapping(config.data), model.name, model.weights or config.seed, model.stride,
            config.stage1.epochs > 0, to_mapping(config.evaluation), config.engine.precision,
        ])
        first.setdefault(shared, (run, config))
    for run, config in first.values():
        set_up(config)
        inputs = load_inputs(run, config)
        if config.stage1.epochs:
            inputs.frozen().of([])
        initial_metrics(inputs)
