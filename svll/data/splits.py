"""What is trained on, selected on and tested on; labels and cameras as the model wants them.

Several training sets become one: identities and cameras of each are numbered behind those of the
one before. A test set keeps its own numbers, for the test protocol. For side information, `places`
leads from either numbers to the vectors.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.rng import generator
from svll.base.records import Dataset, Records
from svll.data.datasets import Datasets
from svll.data.side_labels import SideLabels

Int64 = NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A query and gallery of their own."""

    name: str
    protocol: str
    query: Records
    gallery: Records
    dataset: Dataset | None = None
    """Whose cameras the images have; None: they are numbered as in the joined training part."""

    @property
    def first_camera(self) -> int:
        """The number by which people know camera 0."""
        return self.dataset.first_camera if self.dataset else 0


@dataclass(frozen=True)
class Splits:
    """The parts of a run."""

    train: Records
    labels: Int64
    """[n] identities of `train` as 0..N-1, in sorted order."""
    validation: Part
    """Empty when nothing is held back."""
    tests: tuple[Part, ...]
    side_labels: SideLabels
    """Cameras and views of `train`, which have vectors of side information."""
    joined: Mapping[int, Dataset]
    """The training sets by what their cameras were moved by when they were joined, rising."""

    @property
    def identities(self) -> int:
        return int(self.labels.max()) + 1

    def places(self, records: Records, dataset: Dataset | None = None) -> tuple[Int64, Int64]:
        """Return the places of images' cameras [n] and views [n]; see `SideLabels.places`.

        dataset: whose numbers the records have; None: those of the joined training part.
        """
        if dataset is not None:
            return self.side_labels.places(*dataset.side_columns(records))
        found = np.empty((2, len(records)), dtype=np.int64)
        for rows, moved, own in self.by_dataset(records):
            found[:, rows] = self.places(moved, own)
        return found[0], found[1]

    def by_dataset(self, records: Records) -> Iterator[tuple[NDArray[np.bool_], Records, Dataset]]:
        """Yield which of the joined training part's images [n] are of each training set.

        With them these images, by the cameras of the set, and the set.
        """
        firsts = np.array(list(self.joined))
        owners = np.searchsorted(firsts, records.cameras, side="right") - 1
        for owner, (first, own) in enumerate(self.joined.items()):
            rows = owners == owner
            yield rows, records.take(rows).moved(identities=0, cameras=-first), own


def split(
    datasets: Datasets, *, validation: float, seed: int, protocol: str | None = None
) -> Splits:
    """Put the training sets together and hold back a seeded share of their identities.

    `protocol` stands in for the datasets' own, in validation and test. Where a dataset brings a
    validation part, that is used, and no share of the identities is held back. Raises UserError
    when fewer than 2 identities would be left on either side, and for a protocol that a test set
    cannot be ranked by.
    """
    whole, joined = join(datasets.train)
    known = np.unique(whole.identities)
    own = [dataset for dataset in datasets.train if len(dataset.validation)]
    if own and validation:
        log.info(
            "%s has a validation part of %d images, which is used: data.validation=%s holds no "
            "identities back", own[0].title, len(own[0].validation), validation,
        )
        validation = 0.0
    count = round(validation * len(known))
    if (validation > 0 and count < 2) or len(known) - count < 2:
        share = f" or data.validation={_two_of(len(known))}" if len(known) >= 4 else ""
        raise UserError(
            f"data.validation={validation}: of {len(known)} training identities {count} would be "
            f"held back and {len(known) - count} trained on; each part needs at least 2"
            + (f"; add data.validation=0{share}" if len(known) >= 2 else "")
        )
    held = generator(seed, 3).permutation(known)[:count]
    is_held = np.isin(whole.identities, held)
    train = whole.take(~is_held)
    _, labels = np.unique(train.identities, return_inverse=True)
    sizes = [len(dataset.train) for dataset in datasets.train]
    kept = np.split(~is_held, np.cumsum(sizes)[:-1])
    return Splits(
        train=train,
        labels=labels.astype(np.int64),
        validation=_validation(datasets.train, whole.take(is_held), seed, protocol),
        tests=tuple(
            Part(d.name, d.ranked_by(protocol), d.query, d.gallery, d) for d in datasets.test
        ),
        side_labels=SideLabels.of([
            (dataset, dataset.train.take(rows))
            for dataset, rows in zip(datasets.train, kept, strict=True)
        ]),
        joined=joined,
    )


def _two_of(identities: int) -> str:
    """Return the smallest whole-percent share that holds back at least 2 identities."""
    share = next(share for share in range(1, 100) if round(share / 100 * identities) >= 2)
    return f"{share / 100:g}"


def join(datasets: tuple[Dataset, ...]) -> tuple[Records, dict[int, Dataset]]:
    """Return the training parts as one, and each dataset by what its cameras were moved by."""
    first_identity = first_camera = 0
    parts, joined = [], {}
    for dataset in datasets:
        own = dataset.train
        parts.append(own.moved(identities=first_identity, cameras=first_camera))
        joined[first_camera] = dataset
        first_identity += int(own.identities.max(initial=-1)) + 1
        # of all its parts: a camera of the test part alone must not be another dataset's
        cameras = [part.cameras.max() for part in dataset.parts().values()]
        first_camera += int(max(cameras)) + 1
    return Records.concatenate(parts), joined


def _validation(
    datasets: tuple[Dataset, ...], held: Records, seed: int, protocol: str | None
) -> Part:
    """Return the query and gallery for selection: held back identities, or the dataset's own."""
    own = [dataset for dataset in datasets if len(dataset.validation)]
    protocols = {protocol or dataset.protocol for dataset in datasets}
    if len(own) > 1 or (len(held) and len(protocols) > 1):
        raise UserError("the training sets have validation parts that cannot be ranked together; "
                        "set data.validation=0 and train without one")
    gallery = own[0].validation if own else held
    protocol = protocol or (own[0].protocol if own else datasets[0].protocol)
    query = gallery
    if protocol in ("cross_camera", "other_cameras"):
        # the gallery is all the images: the protocol leaves out the query with its camera
        query = gallery.take(_one_of_each(gallery.identities, gallery.cameras, seed=seed))
    elif protocol == "all_gallery":
        rows = _one_of_each(gallery.identities, seed=seed)
        query, gallery = gallery.take(rows), gallery.take(np.delete(np.arange(len(gallery)), rows))
    return Part("validation", protocol, query, gallery, own[0] if own else None)


def _one_of_each(*columns: Int64, seed: int) -> Int64:
    """Return rows that hold one image of each combination of labels, drawn by seed."""
    order = generator(seed, 4).permutation(len(columns[0]))
    labels = np.stack([column[order] for column in columns], axis=1)
    if not len(labels):
        return np.empty(0, dtype=np.int64)
    _, first = np.unique(labels, axis=0, return_index=True)
    return np.sort(order[first])
