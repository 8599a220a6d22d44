"""Test features of our own or published weights, without a run."""

import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from harness.base.machine import usable_cores
from harness.training import ranks
from svll.base.feature_file import FeatureGroup, read_features
from svll.base.records import Dataset, Int64, Records
from svll.config import Config
from svll.data.benchmarks import describe, names
from svll.data.datasets import load_datasets
from svll.data.side_labels import UNNAMED, SideLabels, owner
from svll.data.staging import staged
from svll.features.extract import FeatureTarget, Reader, encode_pair, encode_to_file
from svll.features.feature_hashes import feature_key, file_hash
from svll.models.trained_model import LoadedModel
from svll.models.weights.load import model_from_file, weights_file

log = logging.getLogger(__name__)


class EncodedTest(NamedTuple):
    """Features of a test set."""

    name: str
    protocol: str
    groups: dict[str, FeatureGroup]
    """query and gallery."""
    first_camera: int
    """The dataset's number of camera 0."""
    file: Path | None = None
    """The cache of the features."""


def encode_tests(
    weights: str | Path, config: Config, save: Path | None = None, *, side_information: bool = True
) -> list[EncodedTest]:
    """Encode the query and gallery of each test set of a configuration with a file's model.

    Input size, mean, std and side information (unless `side_information` is off) are the file's,
    not the configuration's; cameras and views are matched with those of the same dataset. `save`:
    the cache, those of further test sets are beside it; a killed attempt resumes. Raises UserError
    as `check_gpus`, `model_from_file` and `load_datasets` do, and for a protocol that does not fit
    a test set.
    """
    ranks.check_gpus()
    model = model_from_file(weights, str(ranks.device()))
    with_side = side_information and model.image.side is not None
    log.info("%s: %d x %d pixels, trained on %d identities", weights, model.height, model.width,
             model.identities)
    if model.image.side is not None and not with_side:
        log.warning("%s: the weights have side information, which is not used", weights)
    datasets = load_datasets(config.data, Path(config.run.runs) / "cache" / "data")
    reader = Reader(
        model.height, model.width, config.evaluation.batch,
        config.data.threads or len(usable_cores()), str(ranks.device()),
        _precision(config), model.mean, model.std, staged(datasets.every, config.data.stage),
        on_cpu=config.data.device == "cpu",
    )

    def encode(images: Tensor, camera: Tensor, view: Tensor) -> Tensor:
        return model.encode_image(images, *((camera, view) if with_side else ()))

    found = []
    for number, test in enumerate(datasets.test):
        pair, protocol = (test.query, test.gallery), test.ranked_by(config.evaluation.protocol)
        labels = labels_for(model, test)
        if with_side:
            _log_side(model, labels, test)
        side = partial(_side, labels, test)
        path = None
        if save is None:
            features = encode_pair(*pair, reader, side, encode)
            groups = {
                name: FeatureGroup.of(rows.numpy(), images) for name, rows, images
                in zip(("query", "gallery"), features, pair, strict=True)
            }
        else:
            path = save.with_name(f"{save.stem}.{test.name}{save.suffix}") if number else save
            dtype, first = config.evaluation.feature_dtype, test.first_camera
            loaded = file_hash(weights_file(weights))
            key = feature_key(test.fingerprint, loaded, config, reader, reader.batch, with_side,
                              dtype)
            target = FeatureTarget(path, test.name, str(weights), protocol, key, first, dtype)
            encode_to_file(target, *pair, reader, side, encode)
            groups = read_features(path).groups
        found.append(EncodedTest(test.name, protocol, groups, test.first_camera, path))
    return found


def _side(labels: SideLabels, test: Dataset, records: Records) -> tuple[Int64, Int64]:
    return labels.places(*test.side_columns(records))


def _precision(config: Config) -> str:
    """Return the configured precision, or fp32 where the device would emulate bf16."""
    precision = config.engine.precision
    return "fp32" if precision == "bf16" and not ranks.has_fast_bf16() else precision


def labels_for(model: LoadedModel, dataset: Dataset) -> SideLabels:
    """Return a model's labels for a dataset; unnamed ones fit benchmarks with as many cameras."""
    known = describe(dataset.name) if dataset.name in names() else None
    cameras = known.published.cameras if known and known.published else 0
    if cameras == len(model.side_labels.cameras.get(UNNAMED, ())):
        return model.side_labels.of_dataset(dataset.name, dataset.first_camera)
    return model.side_labels


def _log_side(model: LoadedModel, labels: SideLabels, test: Dataset) -> None:
    """Log which of a test set's cameras have vectors in the model."""
    own = labels.cameras.get(owner(test.name), ())
    if own:
        log.info("%s: side information of cameras %s", test.name, list(own))
    elif labels.datasets:
        trained = ", ".join(name or "an unnamed set" for name in labels.datasets)
        log.warning("%s: the weights were trained on cameras of %s, so no image has side "
                    "information of its camera (model.sie_unseen of the weights: %s)", test.name,
                    trained, getattr(model.image.side, "unseen", "none"))
