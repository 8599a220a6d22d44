"""Text features of a run's training identities, and the image features they were learned from.

Both lie in CLIP's joint space; the image features are those of the frozen encoder in stage 1.
Letters: N training identities, D width of the joint space.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs.run import Run
from svll.config import Config
from svll.evaluation.engine.feature_rows import Floats
from svll.inputs import load_inputs
from svll.models.weights.load import model_from_file
from svll.reuse.frozen_features import FrozenFeatures

OTHERS = "to others' images"


def text_features(folder: Path) -> Floats:
    """Return the text features [N, D] at the end of stage 1, of unit length.

    They are part of the weights; stage 2 keeps them fixed. Raises UserError for a run without a
    trained model, and for one without prompts.
    """
    run = Run(folder)
    if not run.weights_file.is_file():
        raise UserError(f"{run.weights_file}: is missing, so there are no text features; the run "
                        f"is {run.status()['state']}: the same command resumes it")
    model = model_from_file(folder)
    if model.text is None:
        raise UserError(
            f"{folder}: was trained without prompts (stage1.epochs=0), so it has no text features"
        )
    return unit_rows(model.encode_text(torch.arange(model.identities)).numpy())


def image_means(folder: Path) -> Floats:
    """Return each training identity's mean image feature [N, D], of unit length.

    Read from stage 1's features in the cache beside the runs; nothing is encoded. Raises UserError
    when they, the dataset or CLIP's weights are missing.
    """
    run = Run(folder)
    config = build(Config, read_recipe(run.config_file, Config))
    cache = run.folder.parent.parent / "cache"
    if not any(cache.glob("stage1/*.h5")):  # before a dataset is looked for, or drawn
        raise UserError(f"{cache / 'stage1'}: there are no image features of any stage 1")
    # nothing is copied to this machine
    inputs = load_inputs(run, replace(config, data=replace(config.data, stage=None)))
    splits = inputs.splits
    for device in ("cuda", "cpu"):  # the features depend on the device that made them
        reader = replace(inputs.reader(), device=device)
        frozen = FrozenFeatures(inputs.datasets.train, inputs.clip, reader, config,
                                cache / "stage1")
        if all(file.is_file() for file in frozen.files):
            break
    else:
        raise UserError(f"{cache / 'stage1'}: the image features of this run's stage 1 are missing")
    features = frozen.of(splits.train.paths)
    assert features is not None, "training images are of the training sets"
    sums = np.zeros((splits.identities, features.shape[1]))
    np.add.at(sums, splits.labels, unit_rows(features.numpy()))
    return unit_rows(sums)


def text_distances(text: Floats, images: Floats | None) -> Mapping[str, float]:
    """Return mean cosine distances by name: between texts [N, D], and from these to images [N, D].

    To images: of the text's own identity, of all others, and the ratio of the latter to the former.
    NaN for distances to others when there is one identity.
    """
    distances = {"between texts": _mean_to_others(text, text)}
    if images is not None:
        own = float(1 - np.einsum("nd,nd->n", text, images).mean())
        others = _mean_to_others(text, images)
        distances |= {"to own images": own, OTHERS: others, "ratio": others / own}
    return distances


def _mean_to_others(a: Floats, b: Floats) -> float:
    """Return the mean cosine distance of unit rows i of a [N, D] and j of b [N, D], i not j."""
    count = len(a)
    if count < 2:
        return float("nan")
    # sums of rows, as N x N cosines of a large benchmark are gigabytes
    products = a.sum(axis=0) @ b.sum(axis=0) - np.einsum("nd,nd->", a, b)
    return float(1 - products / (count * (count - 1)))


def unit_rows(rows: NDArray[np.floating]) -> Floats:
    """Return rows [n, D] at unit length."""
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
