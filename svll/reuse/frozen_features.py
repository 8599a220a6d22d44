"""The features of training images by the starting encoder, which runs of a sweep share."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base.errors import UserError
from harness.training import ranks
from svll.base.feature_file import read_features
from svll.base.records import Dataset
from svll.config import Config
from svll.features.extract import FeatureTarget, Reader, encode_groups
from svll.features.feature_hashes import feature_key
from svll.models.clip import Clip
from svll.reuse.cache import make_once


class FrozenFeatures:
    """Features [n, D] of all training images, encoded on first use, in files that runs share."""

    def __init__(
        self, datasets: Sequence[Dataset], clip: Clip, reader: Reader, config: Config, folder: Path
    ) -> None:
        self._datasets, self._clip, self._reader = datasets, clip, reader
        self._config, self._folder = config, folder

    def of(self, paths: Sequence[str]) -> Tensor | None:
        """Return features by path, None if some are not of the training sets; on every rank."""
        features, rows = self._all
        if any(path not in rows for path in paths):
            return None
        return features[torch.tensor([rows[path] for path in paths], dtype=torch.long)]

    @property
    def files(self) -> list[Path]:
        """The paths of the sets' files."""
        return [self._folder / f"{self._key(dataset)}.h5" for dataset in self._datasets]

    def _key(self, dataset: Dataset, *more: int) -> str:
        weights = self._clip.weights_hash
        return feature_key(dataset.fingerprint, weights, self._config, self._reader, *more)

    @cached_property
    def _all(self) -> tuple[Tensor, dict[str, int]]:
        """The features of all sets, and the row of each image."""
        features, rows = [], dict[str, int]()
        for dataset, file in zip(self._datasets, self.files, strict=True):
            make_once(file, partial(self._make, dataset, file))
            features.append(torch.from_numpy(_read(file)))
            rows |= {path: row for row, path in enumerate(dataset.train.paths, start=len(rows))}
        return torch.cat(features), rows

    def _make(self, dataset: Dataset, file: Path) -> None:
        encoder, images = self._clip.image.to(ranks.device()).eval(), dataset.train
        # other batches may round in another way, so parts of one attempt go on with its batches
        target = FeatureTarget(file, dataset.name, file.stem, "",
                               self._key(dataset, self._reader.batch))
        encode_groups(target, images, {"train": images}, {"train": np.arange(len(images))},
                      self._reader, lambda batch, _: encoder(batch).fp)


def _read(file: Path) -> NDArray[Any]:
    try:
        return read_features(file, ["train"]).groups["train"].features
    except UserError as error:
        raise UserError(f"{error}\n{file} only saves time: delete it, and the next attempt makes "
                        "it again") from None
