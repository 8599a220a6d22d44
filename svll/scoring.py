"""Trained weights on a dataset: our own and published ones, without a run around them."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness import engine as ranks
from harness.features import FeatureGroup, read_features
from harness.runs import Run
from svll.cache import feature_key, staged
from svll.config import Config
from svll.data.datasets import load_datasets
from svll.data.records import Records
from svll.encode import FeatureTarget, Reader, encode_pair, encode_to_file, feature_groups
from svll.models import load_model
from svll.models.loaded import LoadedModel
from svll.storage import file_hash

log = logging.getLogger(__name__)
UNSEEN = -1


@dataclass(frozen=True)
class Encoded:
    """A test set through a model."""

    name: str
    protocol: str
    groups: dict[str, FeatureGroup]
    """query and gallery."""


def encode_tests(weights: str | Path, config: Config, save: Path | None = None) -> list[Encoded]:
    """Encode the query and gallery of each test set of a configuration with a file's model.

    Size and colours are the file's; cameras are looked up among those that it was trained with,
    unless the configuration says model.sie=none. With `save`, features go to that cache (those of
    further test sets beside it), as `encode_to_file` does: an attempt that was killed goes on.
    Raises UserError as `load_model` and `load_datasets` do.
    """
    model = load_model(weights, str(ranks.device()))
    with_side = config.model.sie != "none" and bool(model.cameras)
    log.info(
        "%s: %d x %d pixels, trained on %d identities, side information of cameras: %s", weights,
        model.height, model.width, model.identities,
        [camera + 1 for camera in model.cameras] if with_side else "none",
    )
    datasets = load_datasets(config.data, Path(config.run.runs) / "cache" / "data")
    reader = Reader(
        model.height, model.width, config.evaluation.batch,
        config.data.threads or len(os.sched_getaffinity(0)), str(ranks.device()),
        _precision(config), model.mean, model.std, staged(datasets.every, config.data.stage),
    )

    def encode(images: Tensor, camera: Tensor, view: Tensor) -> Tensor:
        return model.encode_image(images, *((camera, view) if with_side else ()))

    def side(records: Records) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return places(model, records)

    found = []
    for place, test in enumerate(datasets.test):
        pair = test.query, test.gallery
        if save is None:
            groups = feature_groups(encode_pair(*pair, reader, side, encode), *pair)
        else:
            path = save.with_name(f"{save.stem}.{test.name}{save.suffix}") if place else save
            dtype = config.evaluation.feature_dtype
            key = feature_key(
                test.fingerprint, _hash(weights), config, reader, reader.batch, with_side, dtype
            )
            target = FeatureTarget(path, test.name, str(weights), test.protocol, key, dtype)
            encode_to_file(target, *pair, reader, side, encode)
            groups = read_features(path).groups
        found.append(Encoded(test.name, test.protocol, groups))
    return found


def _hash(weights: str | Path) -> str:
    """What tells one set of weights from another: the bytes of the file, a run's own one."""
    path = Path(weights)
    return file_hash(Run(path).weights_file if path.is_dir() else path)


def _precision(config: Config) -> str:
    """Return the configured precision, or fp32 where the device would only imitate bf16."""
    wanted = config.engine.precision
    return "fp32" if wanted == "bf16" and not ranks.has_fast_bf16() else wanted


def places(model: LoadedModel, records: Records) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each image's camera and view as the model's places [n], -1 for those it never saw."""
    known = {camera: place for place, camera in enumerate(model.cameras)}
    camera = [known.get(camera, UNSEEN) for camera in records.cameras.tolist()]
    view = np.where(records.views < model.views, records.views, UNSEEN)
    return np.array(camera, dtype=np.int64), view
