"""Trained weights on a dataset: our own and published ones, without a run around them."""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from harness.base.machine import usable_cores
from harness.runs.run import Run
from harness.training import ranks
from svll.base.feature_file import FeatureGroup, read_features
from svll.base.records import Dataset, Int64, Records
from svll.config import Config
from svll.data.benchmarks import describe, names
from svll.data.datasets import load_datasets
from svll.data.side_labels import UNNAMED, SideLabels, owner
from svll.data.staging import staged
from svll.features.extract import FeatureTarget, Reader, encode_pair, encode_to_file, feature_groups
from svll.features.keys import feature_key, file_hash
from svll.models import load_model
from svll.models.trained_model import LoadedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """A test set through a model."""

    name: str
    protocol: str
    groups: dict[str, FeatureGroup]
    """query and gallery."""
    first_camera: int
    """The number that the dataset itself gives to camera 0."""
    file: Path | None = None
    """The cache that the features were saved in."""


def encode_tests(
    weights: str | Path, config: Config, save: Path | None = None, *, side_information: bool = True
) -> list[Encoded]:
    """Encode the query and gallery of each test set of a configuration with a file's model.

    Size, colours and side information are the file's, whatever the configuration says of them.
    Cameras and views are looked up among those of the same dataset that the model was trained with;
    without `side_information`, the model encodes images without them. With `save`, features go to
    that cache (those of further test sets beside it), as `encode_to_file` does: an attempt that was
    killed goes on. Raises UserError as `load_model` and `load_datasets` do, and for a protocol that
    a test set cannot be ranked by.
    """
    model = load_model(weights, str(ranks.device()))
    with_side = side_information and model.image.side is not None
    log.info(
        "%s: %d x %d pixels, trained on %d identities", weights, model.height, model.width,
        model.identities,
    )
    if model.image.side is not None and not with_side:
        log.warning("%s: the weights have side information, which is not used", weights)
    datasets = load_datasets(config.data, Path(config.run.runs) / "cache" / "data")
    reader = Reader(
        model.height, model.width, config.evaluation.batch,
        config.data.threads or len(usable_cores()), str(ranks.device()),
        _precision(config), model.mean, model.std, staged(datasets.every, config.data.stage),
    )

    def encode(images: Tensor, camera: Tensor, view: Tensor) -> Tensor:
        return model.encode_image(images, *((camera, view) if with_side else ()))

    found = []
    for place, test in enumerate(datasets.test):
        pair, protocol = (test.query, test.gallery), test.ranked_by(config.evaluation.protocol)
        labels = labels_for(model, test)
        if with_side:
            _log_side(model, labels, test)

        def side(
            records: Records, labels: SideLabels = labels, test: Dataset = test
        ) -> tuple[Int64, Int64]:
            return labels.places(*test.side_columns(records))

        path = None
        if save is None:
            groups = feature_groups(encode_pair(*pair, reader, side, encode), *pair)
        else:
            path = save.with_name(f"{save.stem}.{test.name}{save.suffix}") if place else save
            dtype = config.evaluation.feature_dtype
            key = feature_key(
                test.fingerprint, _hash(weights), config, reader, reader.batch, with_side, dtype
            )
            target = FeatureTarget(
                path, test.name, str(weights), protocol, key, test.first_camera, dtype
            )
            encode_to_file(target, *pair, reader, side, encode)
            groups = read_features(path).groups
        found.append(Encoded(test.name, protocol, groups, test.first_camera, path))
    return found


def _hash(weights: str | Path) -> str:
    """What tells one set of weights from another: the bytes of the file, a run's own one."""
    path = Path(weights)
    return file_hash(Run(path).weights_file if path.is_dir() else path)


def _precision(config: Config) -> str:
    """Return the configured precision, or fp32 where the device would only imitate bf16."""
    wanted = config.engine.precision
    return "fp32" if wanted == "bf16" and not ranks.has_fast_bf16() else wanted


def labels_for(model: LoadedModel, dataset: Dataset) -> SideLabels:
    """Return a model's cameras and views, to be asked for those of a dataset.

    Published weights do not name the dataset they were trained on. They are taken to be of a
    benchmark that has as many cameras as they have vectors, and of no other.
    """
    known = describe(dataset.name) if dataset.name in names() else None
    cameras = known.published.cameras if known and known.published else 0
    if cameras == len(model.side_labels.cameras.get(UNNAMED, ())):
        return model.side_labels.of_dataset(dataset.name, dataset.first_camera)
    return model.side_labels


def _log_side(model: LoadedModel, labels: SideLabels, test: Dataset) -> None:
    """Say which of a test set's cameras have vectors in the model."""
    own = labels.cameras.get(owner(test.name), ())
    if own:
        log.info("%s: side information of cameras %s", test.name, list(own))
    elif labels.datasets:
        trained = ", ".join(name or "an unnamed set" for name in labels.datasets)
        log.warning(
            "%s: the weights were trained on cameras of %s, so no image has side information of "
            "its camera (model.sie_unseen of the weights: %s)",
            test.name, trained, getattr(model.image.side, "unseen", "none"),
        )
