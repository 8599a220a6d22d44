"""The features of training images by the starting encoder, which runs of a sweep share."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from harness.training import ranks
from svll.base.records import Dataset
from svll.config import Config
from svll.features.extract import Reader, encode_all
from svll.features.feature_hashes import feature_key
from svll.models.clip import Clip
from svll.reuse.cache import shared_features


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

    @cached_property
    def files(self) -> list[Path]:
        """The paths of the sets' files."""
        weights = self._clip.weights_hash
        keys = [
            feature_key(dataset.fingerprint, weights, self._config, self._reader)
            for dataset in self._datasets
        ]
        return [self._folder / f"{key}.h5" for key in keys]

    @cached_property
    def _all(self) -> tuple[Tensor, dict[str, int]]:
        """The features of all sets, and the row of each image."""
        encoder = self._clip.image.to(ranks.device()).eval()
        features, rows = [], dict[str, int]()
        for dataset, file in zip(self._datasets, self.files, strict=True):
            compute = partial(
                encode_all, dataset.train, self._reader, lambda batch, _: encoder(batch).fp
            )
            features.append(shared_features(file, dataset, compute))
            rows |= {path: row for row, path in enumerate(dataset.train.paths, start=len(rows))}
        return torch.cat(features), rows
