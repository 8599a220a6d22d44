"""A run of the recipe synthetic_tiny."""

import os
from pathlib import Path

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.config.values import to_yaml
from harness.runs.run import Run
from svll.config import RECIPES, Config


def tiny_run(folder: str | os.PathLike[str], *overrides: str) -> Run:
    """Return a new run in a folder, which may hold others of other settings."""
    settings = [*read_recipe(RECIPES / "synthetic_tiny.yaml", Config), *parse_overrides(overrides)]
    config = build(Config, settings)
    run = Run(Path(folder) / signature(config))
    run.create(to_yaml(config))
    return run
