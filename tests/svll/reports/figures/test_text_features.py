"""Text features and mean images of a run, against its files and plain loops."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs.run import Run
from svll.config import Config
from svll.data.datasets import load_datasets
from svll.data.splits import split
from svll.features.extract import Reader
from svll.models.clip import load_clip
from svll.reports.figures.text_features import OTHERS, image_means, text_distances, text_features
from svll.reuse.frozen_features import FrozenFeatures
from tests.svll.reports.conftest import MakeRun


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_text_features_are_those_in_the_weights_at_unit_length(run: Path) -> None:
    text = load_file(run / "model.safetensors")["text"].double().numpy()
    assert np.allclose(text_features(run), unit(text))


def test_a_run_without_prompts_has_no_text_features(make_run: MakeRun) -> None:
    folder = make_run("stage1.epochs=0", "stage2.i2t_weight=0")
    with pytest.raises(UserError, match=f"{folder}: was trained without prompts"):
        text_features(folder)


def test_a_run_without_weights_is_told_in_what_state_it_is(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path)
    Run(tmp_path).set_status("stopped")
    with pytest.raises(UserError, match=r"is missing, .* the run is stopped: the same command"):
        text_features(tmp_path)


def encoded(run: Path) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Encode the training images as stage 1 does, which leaves them in the cache."""
    config = build(Config, read_recipe(run / "config.yaml", Config))
    cache = run.parent.parent / "cache"
    datasets = load_datasets(config.data, cache / "data")
    splits = split(datasets, validation=config.data.validation, seed=config.seed)
    clip = load_clip("svll-tiny", "shipped", height=64, width=32, stride=config.model.stride)
    reader = Reader(64, 32, 64, 1, "cpu")
    frozen = FrozenFeatures(datasets.train, clip, reader, config, cache / "stage1")
    features = frozen.of(splits.train.paths)
    assert features is not None
    return features, splits.labels


def test_image_means_are_of_each_identitys_training_images(make_run: MakeRun) -> None:
    run = make_run("seed=5")
    features, labels = encoded(run)
    expected = [
        unit(np.mean([unit(f) for f in features.double().numpy()[labels == identity]], axis=0))
        for identity in range(labels.max() + 1)
    ]
    assert np.allclose(image_means(run), expected, atol=1e-6)


def test_image_features_that_are_gone_are_not_made_again(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "name" / "0a1b"
    folder.mkdir(parents=True)
    shutil.copy(run / "config.yaml", folder)
    with pytest.raises(UserError, match="cache/stage1: there are no image features of any stage 1"):
        image_means(folder)
    assert not (tmp_path / "cache").exists()
    shutil.copytree(run.parent.parent / "cache" / "data", tmp_path / "cache" / "data")
    (tmp_path / "cache" / "stage1").mkdir()
    (tmp_path / "cache" / "stage1" / "0123456789abcdef.h5").touch()
    with pytest.raises(UserError, match="cache/stage1: the image features of this run's stage 1"):
        image_means(folder)


def test_text_distances_are_means_over_pairs() -> None:
    rng = np.random.default_rng(2)
    text, images = unit(rng.normal(size=(5, 7))), unit(rng.normal(size=(5, 7)))
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    own = np.mean([1 - text[i] @ images[i] for i in range(5)])
    others = np.mean([1 - text[i] @ images[j] for i, j in pairs])
    between = np.mean([1 - text[i] @ text[j] for i, j in pairs])
    assert text_distances(text, images) == pytest.approx({
        "between texts": between, "to own images": own, OTHERS: others, "ratio": others / own,
    })
    assert text_distances(text, None) == pytest.approx({"between texts": between})
    assert np.isnan(text_distances(text[:1], None)["between texts"])
