"""The cameras and views that a model was trained with, and the vector that each of them has.

Side information is a learned vector per camera, view or both. A label belongs to its dataset:
camera 3 of one is not camera 3 of another. Everything that needs a vector (training, tests,
attention maps, users' images, export) asks `SideLabels.places`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from svll.base.records import Dataset, Records

Int64 = NDArray[np.int64]
UNSEEN = -1
"""The place of a camera or view that training never saw."""
UNNAMED = ""
"""Stands for the dataset of published weights, which do not name it."""


def owner(dataset: str) -> str:
    """Return whose cameras and views a test set has: VehicleID's three lists are of one dataset."""
    return "vehicleid" if dataset.startswith("vehicleid_") else dataset


def known_sie(wanted: str, *, cameras: int, views: int) -> str:
    """Return the kind of side information that so many known cameras and views allow.

    That is `model.sie` as it is where any camera is known; where none is, what it says of views.
    """
    if cameras or wanted == "none":
        return wanted
    return "view" if "view" in wanted and views > 1 else "none"


@dataclass(frozen=True)
class SideLabels:
    """Cameras and views of training by their `owner`, sorted, as the dataset numbers them.

    Vectors stand in this order, dataset after dataset. A dataset without view labels has the single
    view 0.
    """

    cameras: Mapping[str, Sequence[int]]
    views: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, trained: Sequence[tuple[Dataset, Records]]) -> "SideLabels":
        """Collect the labels of datasets, each with those of its images that are trained on.

        A list without cameras has none: its images are not of one camera. VehicleID's single one
        is its authors'.
        """
        return cls(
            {
                owner(one.name): np.unique(part.cameras + one.first_camera).tolist()
                if one.protocol != "all_gallery" else []
                for one, part in trained
            },
            {owner(one.name): np.unique(part.views).tolist() for one, part in trained},
        )

    @property
    def camera_count(self) -> int:
        """Number of cameras of all datasets."""
        return sum(map(len, self.cameras.values()))

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that have vectors."""
        return tuple(name for name, cameras in self.cameras.items() if cameras)

    @property
    def view_count(self) -> int:
        """Number of views of all datasets."""
        return sum(map(len, self.views.values()))

    def places(
        self, dataset: str, cameras: ArrayLike, views: ArrayLike | None = None
    ) -> tuple[Int64, Int64]:
        """Return the place of each image's camera [n] and view [n] among the vectors.

        cameras [n], views [n]: as the dataset numbers them; views None: unknown. UNSEEN stands for
        labels that training did not see, and for all of a dataset that it did not see. Where
        training had a single view, an unknown view is that one.
        """
        dataset = owner(dataset)
        camera = _places(self.cameras, dataset, np.asarray(cameras, dtype=np.int64))
        if views is None and len(self.views.get(dataset, ())) == 1:
            views = np.full(len(camera), self.views[dataset][0])
        if views is None:
            return camera, np.full(len(camera), UNSEEN)
        return camera, _places(self.views, dataset, np.asarray(views, dtype=np.int64))

    def of_dataset(self, name: str, first_camera: int = 1) -> "SideLabels":
        """Return these labels with UNNAMED replaced by a dataset's name, and its first camera."""
        if UNNAMED not in self.cameras:
            return self
        cameras = [camera - 1 + first_camera for camera in self.cameras[UNNAMED]]
        return SideLabels({owner(name): cameras}, {owner(name): self.views[UNNAMED]})

    def to_json(self) -> str:
        """Return the labels as text, for a weights file."""
        return json.dumps({
            kind: {name: list(labels) for name, labels in known.items()}
            for kind, known in (("cameras", self.cameras), ("views", self.views))
        })

    @classmethod
    def from_json(cls, text: str) -> "SideLabels":
        """Read what `to_json` wrote; raises ValueError or KeyError for anything else."""
        found = json.loads(text)
        cameras, views = (
            {str(name): [int(label) for label in labels] for name, labels in found[kind].items()}
            for kind in ("cameras", "views")
        )
        return cls(cameras, views)


def _places(known: Mapping[str, Sequence[int]], dataset: str, wanted: Int64) -> Int64:
    """Return the place of each label [n] of a dataset in the labels of all datasets."""
    found = np.full(len(wanted), UNSEEN, dtype=np.int64)
    first = 0
    for name, labels in known.items():
        if name == dataset and len(labels):
            sorted_labels = np.asarray(labels, dtype=np.int64)
            place = np.searchsorted(sorted_labels, wanted).clip(max=len(labels) - 1)
            found = np.where(sorted_labels[place] == wanted, first + place, UNSEEN)
        first += len(labels)
    return found.astype(np.int64)
