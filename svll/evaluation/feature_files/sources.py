"""Where features to be scored come from: feature caches, shards of a gallery, other toolboxes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup, open_features, write_features
from svll.base.protocols import protocol_in_force
from svll.base.records import usual_first_camera
from svll.evaluation.engine.feature_rows import Integers, Stacked
from svll.evaluation.multi_query import pooled
from svll.evaluation.own_images import image_numbers
from svll.evaluation.pair import Pair
from svll.features.files import feature_files

Number = TypeVar("Number", int, Integers)
OURS = (".h5", ".hdf5")
MORE = "multi_query"
"""Group of further images of the queries' identities and cameras."""


@dataclass(frozen=True, eq=False)
class Source:
    """Features to be scored; those of a cache stay in their file until they are needed."""

    where: str
    dataset: str
    protocol: str
    query: FeatureGroup
    gallery: FeatureGroup
    more: FeatureGroup | None = None
    first_camera: int | None = None
    """What the dataset calls the camera that has number 0 here; None: unknown, shown as 0."""
    pooled_names: tuple[Sequence[str] | None, Sequence[str] | None] | None = None
    """Of the images, where queries were averaged and have no paths any more."""

    @property
    def asking(self) -> FeatureGroup:
        """The images that results of single queries are of."""
        return self.gallery if self.protocol == "random_gallery" else self.query

    @property
    def pair(self) -> Pair:
        """Query and gallery to be compared, their paths being what tells images apart."""
        if self.pooled_names is None:
            return Pair(self.query, self.gallery)
        query, gallery = self.pooled_names
        return Pair(replace(self.query, paths=query), replace(self.gallery, paths=gallery))

    @property
    def is_pooled(self) -> bool:
        """Whether queries are means over an identity's images under a camera."""
        return self.pooled_names is not None

    @property
    def own_image(self) -> str | None:
        """By what a query's own image is known in the gallery, where it alone is left out."""
        if self.protocol != "all_gallery":
            return None
        named = self.is_pooled or self.query.paths is not None
        return "path" if named and self.gallery.paths is not None else "features"

    def camera(self, number: Number) -> Number:
        """Return the dataset's number of a camera, or of several."""
        return number + (self.first_camera or 0)

    def groups(self) -> dict[str, FeatureGroup]:
        """All that there is, read, as a cache keeps it."""
        there = {"query": self.query, "gallery": self.gallery}
        if self.more is not None:
            there[MORE] = self.more
        return {name: replace(group, features=_read(group)) for name, group in there.items()}

    def summary(self) -> str:
        """Say in a line what there is."""
        (queries, width), images = self.query.features.shape, len(self.gallery.identities)
        return (
            f"{self.where}: {self.dataset}, {queries:,} query and {images:,} gallery images, "
            f"{width:,} numbers each; {self.protocol}"
        )

    def save(self, path: Path) -> None:
        """Write a feature cache of the source; raises UserError where the disk cannot take it."""
        write_features(
            path, self.groups(), dataset=self.dataset, model=self.where, protocol=self.protocol,
            first_camera=self.first_camera,
        )

    def pooled(self) -> "Source":
        """Return the source with all queries of one identity and camera made one.

        Raises UserError where the protocol draws the queries.
        """
        if self.protocol == "random_gallery":
            raise UserError(
                f"{self.where}: the protocol random_gallery draws its queries one by one; they "
                "cannot be averaged (multi-query)"
            )
        query = pooled(self.query, self.more)
        is_named = self.protocol == "all_gallery"
        names = self._names_pooled(query) if is_named else (None, None)
        return replace(self, query=query, pooled_names=names)

    def _names_pooled(self, query: FeatureGroup) -> tuple[list[str], list[str]]:
        """Name each averaged query by its place, and so the gallery images that are in it."""
        groups = [self.query] if self.more is None else [self.query, self.more]
        one = _stacked(groups)
        numbers, known = image_numbers(Pair(one, self.gallery))
        places = enumerate(zip(query.identities, query.cameras, strict=True))
        names = {label: str(place) for place, label in places}
        labels = zip(numbers.tolist(), one.identities, one.cameras, strict=True)
        owner = {number: names[i, c] for number, i, c in labels if (i, c) in names}
        return list(names.values()), [owner.get(number, "") for number in known.tolist()]


@contextmanager
def open_source(
    path: Path, kind: str | None = None, shards: Sequence[Path] = (), protocol: str | None = None
) -> Iterator[Source]:
    """A feature cache, or a dump of another toolbox (`kind`, or by its suffix).

    With `shards`, the gallery is what these caches hold, one after another; path gives the queries.
    `protocol` stands in for the one that the file names (cross_camera where it names none).
    Raises UserError that names the file, as `open_features`, `read_foreign` and
    `protocol_in_force` do.
    """
    with ExitStack() as stack:
        if kind is None and path.suffix.lower() in OURS:
            names = ["query"] if shards else ["query", "gallery"]
            file = stack.enter_context(open_features(path, names, optional=(MORE,)))
            groups, dataset = dict(file.groups), file.dataset or path.stem
            named = file.protocol
            first_camera = file.first_camera
            if first_camera is None:
                first_camera = usual_first_camera(dataset)
        else:
            # scipy: not for our own files
            from svll.evaluation.feature_files.imported_features import read_foreign

            groups, dataset, named = read_foreign(path, kind), path.stem, ""
            first_camera = None
        if shards:
            files = [stack.enter_context(open_features(shard, ["gallery"])) for shard in shards]
            groups["gallery"] = _stacked([file.groups["gallery"] for file in files])
        if missing := [name for name in ("query", "gallery") if name not in groups]:
            raise UserError(
                f"{path}: holds {', '.join(groups)} but no {' and no '.join(missing)}; give the "
                "file that has them"
            )
        query, known = groups["query"], groups["gallery"]
        used = protocol_in_force(
            protocol, named or "cross_camera", str(path), is_one_set=_is_one_set(query, known)
        )
        yield Source(str(path), dataset, used, query, known, groups.get(MORE), first_camera)


@contextmanager
def open_sources(
    places: Sequence[str], gallery: Sequence[str] = (), protocol: str | None = None
) -> Iterator[list[Source]]:
    """Open feature files, and those of the folders of runs; see `open_source`.

    gallery: names and patterns ('shards/*.h5') of the shards that stand in for the one file's
    gallery. Raises UserError also where there are several files to go with it.
    """
    files = [file for place in places for file in feature_files(Path(place))]
    if gallery and len(files) > 1:
        raise UserError("--gallery goes with one feature file, which gives the queries")
    shards = find_shards(gallery)
    with ExitStack() as stack:
        yield [
            stack.enter_context(open_source(file, shards=shards, protocol=protocol))
            for file in files
        ]


def _is_one_set(query: FeatureGroup, gallery: FeatureGroup) -> bool:
    """Whether query and gallery are the same images, by their paths and labels."""
    return (
        np.array_equal(query.identities, gallery.identities)
        and np.array_equal(query.cameras, gallery.cameras)
        and query.paths == gallery.paths
    )


def _read(group: FeatureGroup) -> NDArray[Any]:
    """Features in a number type that a cache may have."""
    features = group.features[:]
    return features if features.dtype == np.float16 else features.astype(np.float32, copy=False)


def _stacked(groups: Sequence[FeatureGroup]) -> FeatureGroup:
    """Several groups as one, their features unread."""
    paths = [group.paths for group in groups]
    return FeatureGroup(
        features=Stacked([group.features for group in groups]),
        identities=np.concatenate([group.identities for group in groups]),
        cameras=np.concatenate([group.cameras for group in groups]),
        paths=None if None in paths else [p for part in paths for p in part or ()],
    )


def find_shards(patterns: Sequence[str]) -> list[Path]:
    """The files that names and patterns such as 'shards/*.h5' mean, in order of their names.

    Raises UserError for one that means none.
    """
    found = []
    for pattern in patterns:
        path = Path(pattern)
        here = [path] if path.is_file() else sorted(path.parent.glob(path.name))
        if not here:
            raise UserError(f"{pattern}: no such file")
        found += here
    return found
