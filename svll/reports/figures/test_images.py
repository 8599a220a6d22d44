"""The test images of runs that are shown side by side."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from svll.base.feature_file import FeatureFile, FeatureGroup, open_features
from svll.base.records import usual_first_camera
from svll.evaluation.engine.feature_rows import JUNK, Rows, Stacked
from svll.features.files import features_file

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tested:
    """All images of a run's test set, gallery then query; those not counted have identity JUNK.

    Not counted are junk, images of persons whom no query shows (distractors, which may share one
    number), and a query that is in the gallery as well.
    """

    where: str
    dataset: str
    features: Any
    """[n, D] in their file."""
    identities: Int64
    cameras: Int64
    first_camera: int = 0
    """What the dataset calls the camera that has number 0."""

    def rows(self, wanted: NDArray[np.bool_] | None = None) -> Rows:
        """Return the counted images, or the wanted ones [n] of them, at unit length."""
        labels = self.identities
        if wanted is not None:
            labels = np.where(wanted, labels, JUNK)
        return Rows(self.where, self.features, labels, self.cameras, unit=True)


@contextmanager
def open_tested(folder: Path) -> Iterator[Tested]:
    """The test images of a run while its features are open; UserError when it has none."""
    path = features_file(folder)
    with open_features(path, ("query", "gallery")) as file:
        query, gallery = file.groups["query"], file.groups["gallery"]
        identities = np.concatenate([gallery.identities, query.identities])
        asked = np.isin(identities, query.identities[query.identities != JUNK])
        counted = asked & np.concatenate([
            np.ones(len(gallery.identities), np.bool_), ~_is_in(query, gallery),
        ])
        yield Tested(
            str(path), file.dataset or path.stem, Stacked([gallery.features, query.features]),
            np.where(counted, identities, JUNK),
            np.concatenate([gallery.cameras, query.cameras]), first_camera_of(file) or 0,
        )


def first_camera_of(file: FeatureFile) -> int | None:
    """Return how a file's dataset numbers camera 0, None where that is not known."""
    known = file.first_camera
    return usual_first_camera(file.dataset) if known is None else known


def _is_in(query: FeatureGroup, gallery: FeatureGroup) -> NDArray[np.bool_]:
    """Tell which queries [Q] are gallery images too, by their paths; none where these are unknown.
    """
    if query.paths is None or gallery.paths is None:
        return np.zeros(len(query.identities), np.bool_)
    known = set(gallery.paths)
    return np.array([path in known for path in query.paths], np.bool_)


def check_same(labels: Mapping[Path, tuple[Int64, ...]]) -> None:
    """Refuse runs, by folder, that were not tested on the same images in the same order."""
    (first, expected), *others = labels.items()
    for folder, found in others:
        if not all(map(np.array_equal, expected, found)):
            raise UserError(
                f"{folder}: was tested on other images than {first}; only runs of one test set "
                "can be shown side by side"
            )
