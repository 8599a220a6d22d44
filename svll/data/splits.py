"""What is trained on, selected on and tested on; labels and cameras as the model wants them.

Several training sets become one: identities and cameras of each are numbered behind those of the
one before. A test set keeps its own numbers, for the test protocol, and has its cameras as places
in the training cameras beside them, for side information.
"""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.rng import generator
from svll.data.datasets import Datasets
from svll.data.records import Dataset, Records

Int64 = NDArray[np.int64]
UNSEEN = -1
"""The place of a camera that training never saw."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A query and gallery of their own."""

    name: str
    protocol: str
    query: Records
    gallery: Records
    camera_offset: int | None
    """What leads from its cameras to those of the training part; None: it was not trained on."""


@dataclass(frozen=True)
class Splits:
    """The parts of a run."""

    train: Records
    labels: Int64
    """[n] identities of `train` as 0..N-1, in sorted order."""
    validation: Part
    """Empty when nothing is held back."""
    tests: tuple[Part, ...]
    cameras: Int64
    """Sorted cameras of the training part: a camera's place here is its side information index."""
    views: int
    """Number of view labels of the training part."""

    @property
    def identities(self) -> int:
        return int(self.labels.max()) + 1

    def camera_index(self, records: Records, offset: int | None) -> Int64:
        """Return each image's camera as a place in `cameras`, UNSEEN for those not among them."""
        if offset is None:
            return np.full(len(records), UNSEEN, dtype=np.int64)
        wanted = records.cameras + offset
        place = np.searchsorted(self.cameras, wanted).clip(max=len(self.cameras) - 1)
        return np.where(self.cameras[place] == wanted, place, UNSEEN).astype(np.int64)


def split(datasets: Datasets, *, validation: float, seed: int) -> Splits:
    """Put the training sets together and hold back a seeded share of their identities.

    A dataset that brings a validation part of its own keeps it, with `validation` 0. Raises
    UserError when fewer than 2 identities would be left on either side.
    """
    whole, offsets = join(datasets.train)
    known = np.unique(whole.identities)
    count = round(validation * len(known))
    if (validation > 0 and count < 2) or len(known) - count < 2:
        raise UserError(
            f"data.validation={validation}: of {len(known)} training identities {count} would be "
            f"held back and {len(known) - count} trained on; each part needs at least 2"
        )
    held = generator(seed, 3).permutation(known)[:count]
    is_held = np.isin(whole.identities, held)
    train = whole.take(~is_held)
    _, labels = np.unique(train.identities, return_inverse=True)
    return Splits(
        train=train,
        labels=labels.astype(np.int64),
        validation=_validation(datasets.train, whole.take(is_held), seed),
        tests=tuple(
            Part(d.name, d.protocol, d.query, d.gallery, offsets.get(d.name)) for d in datasets.test
        ),
        cameras=np.unique(train.cameras),
        views=int(train.views.max(initial=0)) + 1,
    )


def join(datasets: tuple[Dataset, ...]) -> tuple[Records, dict[str, int]]:
    """Return the training parts as one, and by how much each dataset's cameras were moved."""
    first_identity = first_camera = 0
    parts, offsets = [], {}
    for dataset in datasets:
        own = dataset.train
        parts.append(own.moved(identities=first_identity, cameras=first_camera))
        offsets[dataset.name] = first_camera
        first_identity += int(own.identities.max(initial=-1)) + 1
        # of all its parts: a camera of the test part alone must not be another dataset's
        cameras = [part.cameras.max() for part in dataset.parts().values()]
        first_camera += int(max(cameras)) + 1
    return Records.concatenate(parts), offsets


def _validation(datasets: tuple[Dataset, ...], held: Records, seed: int) -> Part:
    """Return the query and gallery for selection: held back identities, or the dataset's own."""
    own = [dataset for dataset in datasets if len(dataset.validation)]
    protocols = {dataset.protocol for dataset in datasets}
    if len(held) and own:
        raise UserError(
            f"{own[0].name} has a validation part of its own; set data.validation=0 to use it"
        )
    if len(own) > 1 or (len(held) and len(protocols) > 1):
        raise UserError("the training sets have validation parts that cannot be ranked together; "
                        "set data.validation=0 and train without one")
    gallery = own[0].validation if own else held
    protocol = own[0].protocol if own else datasets[0].protocol
    query = gallery
    if protocol == "cross_camera":
        # the gallery is all the images: the protocol leaves out the query with its camera
        query = gallery.take(_one_of_each(gallery.identities, gallery.cameras, seed=seed))
    elif protocol == "all_gallery":
        rows = _one_of_each(gallery.identities, seed=seed)
        query, gallery = gallery.take(rows), gallery.take(np.delete(np.arange(len(gallery)), rows))
    return Part("validation", protocol, query, gallery, camera_offset=0)


def _one_of_each(*columns: Int64, seed: int) -> Int64:
    """Return rows that hold one image of each combination of labels, drawn by seed."""
    order = generator(seed, 4).permutation(len(columns[0]))
    labels = np.stack([column[order] for column in columns], axis=1)
    if not len(labels):
        return np.empty(0, dtype=np.int64)
    _, first = np.unique(labels, axis=0, return_index=True)
    return np.sort(order[first])
