"""Features of the training images by the encoder that nothing has changed yet: stage 1's input."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from harness.training import ranks
from svll.base.records import Dataset
from svll.config import Config
from svll.features.extract import Reader, encode_all
from svll.features.keys import feature_key
from svll.models.clip import Clip
from svll.reuse import cache


class FrozenFeatures:
    """Features [n, D] of all images of the training sets, computed when they are first wanted.

    Once for each whole set per key, in files below `folder` that all runs share which agree on it.
    """

    def __init__(
        self, datasets: Sequence[Dataset], clip: Clip, reader: Reader, config: Config, folder: Path
    ) -> None:
        self._datasets, self._clip, self._reader = datasets, clip, reader
        self._config, self._folder = config, folder

    def of(self, paths: Sequence[str]) -> Tensor | None:
        """Return the features of images by path; every rank must ask.

        None when some are not of the training sets, as those of a validation part may be.
        """
        features, place = self._every
        if any(path not in place for path in paths):
            return None
        return features[torch.tensor([place[path] for path in paths], dtype=torch.long)]

    @cached_property
    def files(self) -> list[Path]:
        """Where the features of each set are kept, once they have been made."""
        weights = self._clip.weights_hash
        keys = [
            feature_key(dataset.fingerprint, weights, self._config, self._reader)
            for dataset in self._datasets
        ]
        return [self._folder / f"{key}.h5" for key in keys]

    @cached_property
    def _every(self) -> tuple[Tensor, dict[str, int]]:
        """The features of all sets, and the row of each image."""
        encoder = self._clip.image.to(ranks.device()).eval()
        reader, parts = self._reader, []
        place: dict[str, int] = {}
        for dataset, file in zip(self._datasets, self.files, strict=True):
            images = dataset.train
            parts.append(cache.shared_features(
                file, dataset,
                lambda images=images: encode_all(  # type: ignore[misc]
                    images, reader, lambda batch, rows: encoder(batch).fp
                ),
            ))
            place |= {path: row for row, path in enumerate(images.paths, start=len(place))}
        return torch.cat(parts), place
