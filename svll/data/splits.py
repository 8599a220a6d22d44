"""The training, validation and test parts of a run, with the model's numbering of labels.

Several training sets become one: identities and cameras of each are numbered after those of the
previous one. A test set keeps its own numbers, for the test protocol. `places` maps either numbers
to the vectors of side information.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.rng import generator
from svll.base.records import Dataset, Int64, Records
from svll.data.datasets import Datasets
from svll.data.side_labels import SideLabels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A query and a gallery to rank."""

    name: str
    protocol: str
    query: Records
    gallery: Records
    dataset: Dataset | None = None
    """The dataset whose numbers the cameras have; None: those of the joined training part."""

    @property
    def first_camera(self) -> int:
        """The dataset's own number for camera 0."""
        return self.dataset.first_camera if self.dataset else 0


@dataclass(frozen=True)
class Splits:
    """The parts of a run."""

    train: Records
    labels: Int64
    """[n] identities of `train` as 0..N-1, in sorted order."""
    validation: Part
    """Empty when nothing is held out."""
    tests: tuple[Part, ...]
    side_labels: SideLabels
    """Cameras and views of `train`, which have vectors of side information."""
    joined: Mapping[int, Dataset]
    """The training sets by the offset of their cameras in the joined part, ascending."""

    @property
    def identities(self) -> int:
        return int(self.labels.max()) + 1

    def places(self, records: Records, dataset: Dataset | None = None) -> tuple[Int64, Int64]:
        """Return the places of images' cameras [n] and views [n]; see `SideLabels.places`.

        dataset: the set whose numbers the records have; None: the joined training part.
        """
        if dataset is not None:
            return self.side_labels.places(*dataset.side_columns(records))
        places = np.empty((2, len(records)), dtype=np.int64)
        for rows, moved, own in self.by_dataset(records):
            places[:, rows] = self.places(moved, own)
        return places[0], places[1]

    def by_dataset(self, records: Records) -> Iterator[tuple[NDArray[np.bool_], Records, Dataset]]:
        """Split images of the joined training part by training set.

        Yields a mask [n], the images with the cameras of their set, and the set.
        """
        firsts = np.array(list(self.joined))
        owners = np.searchsorted(firsts, records.cameras, side="right") - 1
        for owner, (first, own) in enumerate(self.joined.items()):
            rows = owners == owner
            yield rows, records.take(rows).moved(identities=0, cameras=-first), own


def split(
    datasets: Datasets, *, validation: float, seed: int, protocol: str | None = None
) -> Splits:
    """Join the training sets and hold out a seeded share of their identities.

    `protocol` replaces the datasets' own in validation and test. A dataset's own validation part is
    used instead of held-out identities. Raises UserError when either side would have fewer than 2
    identities, and for a protocol that does not fit a test set.
    """
    whole, joined = join(datasets.train)
    identities = np.unique(whole.identities)
    own = [dataset for dataset in datasets.train if len(dataset.validation)]
    if own and validation:
        log.info("%s has a validation part of %d images, which is used: data.validation=%s holds "
                 "no identities out", own[0].title, len(own[0].validation), validation)
        validation = 0.0
    count = _held_out(validation, len(identities))
    is_held = np.isin(whole.identities, generator(seed, 3).permutation(identities)[:count])
    train = whole.take(~is_held)
    sizes = [len(dataset.train) for dataset in datasets.train]
    kept = np.split(~is_held, np.cumsum(sizes)[:-1])
    return Splits(
        train=train,
        labels=np.unique(train.identities, return_inverse=True)[1].astype(np.int64),
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


def _held_out(share: float, identities: int) -> int:
    """Return the number of held-out identities; UserError where either side would be too small."""
    count = round(share * identities)
    if (count >= 2 or share == 0) and identities - count >= 2:
        return count
    advice = "; add data.validation=0" if identities >= 2 else ""
    if identities >= 4:
        least = next(n for n in range(1, 100) if round(n / 100 * identities) >= 2)
        advice += f" or data.validation={least / 100:g}"
    raise UserError(f"data.validation={share}: of {identities} training identities {count} would "
                    f"be held out and {identities - count} trained on; each part needs at least "
                    f"2{advice}")


def join(datasets: tuple[Dataset, ...]) -> tuple[Records, dict[int, Dataset]]:
    """Return the training parts as one, and each dataset by the offset of its cameras."""
    first_identity = first_camera = 0
    parts, joined = [], {}
    for dataset in datasets:
        own = dataset.train
        parts.append(own.moved(identities=first_identity, cameras=first_camera))
        joined[first_camera] = dataset
        first_identity += int(own.identities.max(initial=-1)) + 1
        # a camera of the test part alone must not become another dataset's
        first_camera += int(max(part.cameras.max() for part in dataset.parts().values())) + 1
    return Records.concatenate(parts), joined


def _validation(
    datasets: tuple[Dataset, ...], held: Records, seed: int, protocol: str | None
) -> Part:
    """Return the query and gallery for selection: held-out identities, or the dataset's own."""
    own = [dataset for dataset in datasets if len(dataset.validation)]
    protocols = {protocol or dataset.protocol for dataset in datasets}
    if len(own) > 1 or (len(held) and len(protocols) > 1):
        raise UserError("the training sets have validation parts that cannot be ranked together; "
                        "set data.validation=0 to train without one")
    gallery = own[0].validation if own else held
    protocol = protocol or (own[0].protocol if own else datasets[0].protocol)
    query = gallery
    if protocol in ("cross_camera", "other_cameras"):
        # the gallery has all images: the protocol leaves out those of the query's camera
        query = gallery.take(_one_of_each(gallery.identities, gallery.cameras, seed=seed))
    elif protocol == "all_gallery":
        rows = _one_of_each(gallery.identities, seed=seed)
        query, gallery = gallery.take(rows), gallery.take(np.delete(np.arange(len(gallery)), rows))
    return Part("validation", protocol, query, gallery, own[0] if own else None)


def _one_of_each(*columns: Int64, seed: int) -> Int64:
    """Return the rows [k] of one random image of each combination of labels, sorted."""
    order = generator(seed, 4).permutation(len(columns[0]))
    labels = np.stack([column[order] for column in columns], axis=1)
    _, first = np.unique(labels, axis=0, return_index=True)
    return np.sort(order[first])
