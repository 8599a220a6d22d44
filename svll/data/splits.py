"""What of a dataset is trained on, selected on and tested on; labels as the losses want them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.rng import generator
from svll.data.records import Dataset, Records


@dataclass(frozen=True)
class Splits:
    """The parts of a run; `validation_*` are empty when nothing is held back."""

    train: Records
    labels: NDArray[np.int64]
    """[n] identities of `train` as 0..N-1, in sorted order."""
    validation_query: Records
    validation_gallery: Records
    query: Records
    gallery: Records
    cameras: NDArray[np.int64]
    """Sorted cameras of the training part: a camera's place here is its side information index."""
    views: int
    """Number of view labels of the training part."""

    @property
    def identities(self) -> int:
        return int(self.labels.max()) + 1


def split(dataset: Dataset, *, validation: float, seed: int) -> Splits:
    """Hold back a seeded share of the training identities, with all their images.

    Each held back identity gives one query per camera; the gallery is all their images, of which
    the test protocol leaves out those of the query's own identity and camera, so the query too.
    Raises UserError when fewer than 2 identities would be left on either side.
    """
    known = np.unique(dataset.train.identities)
    count = round(validation * len(known))
    if (validation > 0 and count < 2) or len(known) - count < 2:
        raise UserError(
            f"data.validation={validation}: of {len(known)} training identities {count} would be "
            f"held back and {len(known) - count} trained on; each part needs at least 2"
        )
    held = generator(seed, 3).permutation(known)[:count]
    is_held = np.isin(dataset.train.identities, held)
    train, gallery = dataset.train.take(~is_held), dataset.train.take(is_held)
    _, labels = np.unique(train.identities, return_inverse=True)
    return Splits(
        train=train,
        labels=labels.astype(np.int64),
        validation_query=gallery.take(_one_per_camera(gallery, seed)),
        validation_gallery=gallery,
        query=dataset.query,
        gallery=dataset.gallery,
        cameras=np.unique(train.cameras),
        views=int(train.views.max(initial=0)) + 1,
    )


def _one_per_camera(records: Records, seed: int) -> NDArray[np.int64]:
    """Return rows that hold one image of each identity and camera, drawn by seed."""
    order = generator(seed, 4).permutation(len(records))
    pairs = np.stack([records.identities[order], records.cameras[order]], axis=1)
    if not len(pairs):
        return np.empty(0, dtype=np.int64)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return np.sort(order[first])


def camera_index(cameras: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each camera's place in the training cameras [known].

    Raises UserError for a camera that training never saw: it has no side information.
    """
    missing = np.setdiff1d(cameras, known)
    if len(missing):
        raise UserError(
            f"cameras {(missing + 1).tolist()} are not in the training part, so they have no side "
            "information; use model.sie=none"
        )
    return np.searchsorted(known, cameras).astype(np.int64)
