"""Runs as they are when they have finished, made in a second: nothing in them was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.config.values import to_yaml
from harness.runs.run import Run
from svll.base.feature_file import FeatureGroup, write_features
from svll.base.records import Records
from svll.config import RECIPES, Config
from svll.data.datasets import load_datasets
from svll.data.splits import split
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel, learned_side_information
from svll.models.weights.run_weights import save_model

MakeRun = Callable[..., Path]


def features_of(records: Records, seed: int, spread: float) -> FeatureGroup:
    """Random features around a centre for each identity."""
    rng = np.random.default_rng(seed)
    centres: NDArray[Any] = rng.normal(size=(records.identities.max() + 2, 16))
    noise = rng.normal(size=(len(records), 16))
    rows = centres[records.identities] + spread * noise
    return FeatureGroup(
        rows.astype(np.float32), records.identities, records.cameras, records.views, records.paths
    )


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Return a function that makes a run's folder with config, weights and features.

    All runs share a drawn world of 8 persons to train on and 8 to test.
    """
    runs = tmp_path_factory.mktemp("runs")

    def make(*overrides: str, spread: float = 0.5) -> Path:
        recipe = read_recipe(RECIPES / "synthetic_tiny.yaml", Config)
        config = build(Config, [*recipe, *parse_overrides(list(overrides))])
        run = Run(runs / "test" / signature(config))
        run.create(to_yaml(config))
        datasets = load_datasets(config.data, runs / "cache" / "data")
        splits = split(datasets, validation=config.data.validation, seed=config.seed)
        clip = load_clip(
            config.model.name, config.model.weights, height=config.data.height,
            width=config.data.width, stride=config.model.stride,
        )
        torch.manual_seed(config.seed)
        labels = splits.side_labels
        side = learned_side_information(
            config.model, clip.image.width, cameras=labels.camera_count, views=labels.view_count
        )
        if side is not None:
            side.weight = 20.0
        text = torch.randn(splits.identities, clip.image.out) if config.stage1.epochs else None
        save_model(
            run.weights_file, ReIDModel(clip.image, side).state_dict(), config, text=text,
            side_labels=labels, identities=splits.identities,
        )
        [part] = splits.tests
        write_features(run.features_file, {
            "query": features_of(part.query, 1, spread),
            "gallery": features_of(part.gallery, 1, spread),
        }, dataset=part.name, model=run.signature, protocol=part.protocol,
            first_camera=part.first_camera)
        return run.folder

    return make


@pytest.fixture(scope="session")
def run(make_run: MakeRun) -> Path:
    return make_run()
