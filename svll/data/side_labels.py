"""The cameras and views that a model was trained with, and the place of each one's vector.

Side information is a learned vector per camera, view or both. A label belongs to its dataset:
camera 3 of one is not camera 3 of another. All users of the vectors (training, tests, attention
maps, `encode`, export) call `SideLabels.places`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import ArrayLike

from svll.base.records import Dataset, Int64, Records

UNSEEN = -1
"""The place of a camera or view that training did not have."""
UNNAMED = ""
"""The dataset of published weights, which do not name it."""


def owner(dataset: str) -> str:
    """Return the dataset whose labels a test set has: VehicleID's three lists share theirs."""
    return "vehicleid" if dataset.startswith("vehicleid_") else dataset


def known_sie(wanted: str, *, cameras: int, views: int) -> str:
    """Return the kind of side information for these numbers of known cameras and views.

    wanted: `model.sie`. Without known cameras only its views remain.
    """
    if cameras or wanted == "none":
        return wanted
    return "view" if "view" in wanted and views > 1 else "none"


@dataclass(frozen=True)
class SideLabels:
    """Cameras and views of training by their `owner`, sorted, by the dataset's own numbers.

    Vectors have this order, dataset after dataset. A dataset without view labels has the single
    view 0.
    """

    cameras: Mapping[str, Sequence[int]]
    views: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, trained: Sequence[tuple[Dataset, Records]]) -> "SideLabels":
        """Collect the labels of datasets, each given with its training images.

        A list without a camera column has no cameras; VehicleID has a single one.
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

        cameras [n], views [n]: the dataset's own numbers; views None: unknown. UNSEEN is the place
        of labels and datasets that training did not have. Where training had a single view, an
        unknown view is that one.
        """
        dataset = owner(dataset)
        camera = _places(self.cameras, dataset, np.asarray(cameras, dtype=np.int64))
        if views is None:
            known = self.views.get(dataset, ())
            views = np.full(len(camera), known[0] if len(known) == 1 else UNSEEN)
        return camera, _places(self.views, dataset, np.asarray(views, dtype=np.int64))

    def of_dataset(self, name: str, first_camera: int = 1) -> "SideLabels":
        """Return these labels with UNNAMED replaced by a dataset's name and camera numbers."""
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
        content = json.loads(text)
        return cls(*(
            {str(name): [int(label) for label in labels] for name, labels in content[kind].items()}
            for kind in ("cameras", "views")
        ))


def _places(known: Mapping[str, Sequence[int]], dataset: str, wanted: Int64) -> Int64:
    """Return the place of each label [n] of a dataset in the labels of all datasets."""
    labels = np.asarray(known.get(dataset, ()), dtype=np.int64)
    if not len(labels):
        return np.full(len(wanted), UNSEEN, dtype=np.int64)
    first = sum(len(known[name]) for name in takewhile(lambda name: name != dataset, known))
    place = np.searchsorted(labels, wanted).clip(max=len(labels) - 1)
    return np.where(labels[place] == wanted, first + place, UNSEEN).astype(np.int64)
