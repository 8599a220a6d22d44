"""Sources of features to score: feature caches, shards of a gallery, files of other toolboxes."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from harness.base.errors import UserError, WrongUsage
from svll.base.feature_file import FeatureGroup, open_features, write_features
from svll.base.protocol_names import protocol_in_force
from svll.base.records import usual_first_camera
from svll.evaluation.engine.feature_rows import Integers, Stacked
from svll.evaluation.multi_query import average_queries
from svll.evaluation.own_images import image_numbers
from svll.evaluation.pair import Pair
from svll.features.files import feature_files

log = logging.getLogger(__name__)

Number = TypeVar("Number", int, Integers)
OURS = (".h5", ".hdf5")
MORE = "multi_query"
"""The group of further images of the queries' identities and cameras."""


@dataclass(frozen=True, eq=False)
class Source:
    """Features to be scored; those of a cache are read from their file when needed."""

    where: str
    dataset: str
    protocol: str
    query: FeatureGroup
    gallery: FeatureGroup
    more: FeatureGroup | None = None
    first_camera: int | None = None
    """The dataset's number of camera 0; None: unknown, shown as 0."""
    multi_query_names: tuple[Sequence[str] | None, Sequence[str] | None] | None = None
    """Names of averaged queries, which have no paths, and of gallery images."""
    model: str = ""
    """What made the features, if the file says so."""

    @property
    def asking(self) -> FeatureGroup:
        """The images that results per query belong to."""
        return self.gallery if self.protocol == "random_gallery" else self.query

    @property
    def pair(self) -> Pair:
        """Query and gallery to be compared; their paths identify images."""
        if self.multi_query_names is None:
            return Pair(self.query, self.gallery)
        query, gallery = self.multi_query_names
        return Pair(replace(self.query, paths=query), replace(self.gallery, paths=gallery))

    @property
    def is_multi_query(self) -> bool:
        """Whether queries are means of an identity's images under a camera."""
        return self.multi_query_names is not None

    @property
    def own_image(self) -> str | None:
        """How a query's own image is recognised in the gallery; None unless only it is left out."""
        if self.protocol != "all_gallery":
            return None
        named = self.is_multi_query or self.query.paths is not None
        return "path" if named and self.gallery.paths is not None else "features"

    def camera(self, number: Number) -> Number:
        """Return the dataset's number of a camera, or of several."""
        return number + (self.first_camera or 0)

    def summary(self) -> str:
        """Describe the source in one line."""
        (queries, width), images = self.query.features.shape, len(self.gallery.identities)
        return (f"{self.where}: {self.dataset}, {queries:,} query and {images:,} gallery images, "
                f"{width:,} numbers each; {self.protocol}")

    def save(self, path: Path) -> None:
        """Write a feature cache of the source; UserError if the disk is full."""
        groups = {}
        for name, group in (("query", self.query), ("gallery", self.gallery), (MORE, self.more)):
            if group is not None:
                rows = group.features[:]
                stored = rows if rows.dtype == np.float16 else rows.astype(np.float32, copy=False)
                groups[name] = replace(group, features=stored)
        write_features(path, groups, dataset=self.dataset, model=self.model or self.where,
                       protocol=self.protocol, first_camera=self.first_camera)

    def multi_query(self) -> "Source":
        """Average the queries of each identity and camera; UserError for random_gallery."""
        if self.protocol == "random_gallery":
            raise UserError(f"{self.where}: the protocol random_gallery draws its queries one by "
                            "one; they cannot be averaged (multi-query)")
        query = average_queries(self.query, self.more)
        if self.protocol != "all_gallery":
            return replace(self, query=query, multi_query_names=(None, None))
        # name each averaged query, and the gallery images that are in it, by its row
        one = _stacked([self.query] if self.more is None else [self.query, self.more])
        numbers, known = image_numbers(Pair(one, self.gallery))
        places = enumerate(zip(query.identities, query.cameras, strict=True))
        names = {label: str(place) for place, label in places}
        labels = zip(numbers.tolist(), one.identities, one.cameras, strict=True)
        owner = {number: names[i, c] for number, i, c in labels if (i, c) in names}
        of_gallery = [owner.get(number, "") for number in known.tolist()]
        return replace(self, query=query, multi_query_names=(list(names.values()), of_gallery))


@contextmanager
def open_source(
    path: Path, kind: str | None = None, shards: Sequence[Path] = (), protocol: str | None = None
) -> Iterator[Source]:
    """Open a feature cache or a file of another toolbox (of `kind`, by default from its suffix).

    With `shards`, the gallery is that of these caches, in turn; path gives the queries. `protocol`
    replaces the file's (cross_camera if it names none). Raises UserError as `open_features`,
    `read_foreign` and `protocol_in_force` do.
    """
    with ExitStack() as stack:
        model = ""
        if kind is None and path.suffix.lower() in OURS:
            names = ["query"] if shards else ["query", "gallery"]
            file = stack.enter_context(open_features(path, names, optional=(MORE,)))
            groups, dataset, named = dict(file.groups), file.dataset or path.stem, file.protocol
            model = file.model
            if (first_camera := file.first_camera) is None:
                first_camera = usual_first_camera(dataset)
        else:
            from svll.evaluation.feature_files.imported_features import read_foreign  # scipy

            groups, dataset, named, first_camera = read_foreign(path, kind), path.stem, "", None
        if shards:
            files = [stack.enter_context(open_features(shard, ["gallery"])) for shard in shards]
            groups["gallery"] = _stacked([file.groups["gallery"] for file in files])
            warn_of_models([model, *(shard.model for shard in files)], str(path))
        if missing := [name for name in ("query", "gallery") if name not in groups]:
            raise UserError(f"{path}: holds {', '.join(groups)} but no "
                            f"{' and no '.join(missing)}; give the file that has them")
        query, known = groups["query"], groups["gallery"]
        is_one_set = (
            np.array_equal(query.identities, known.identities)
            and np.array_equal(query.cameras, known.cameras) and query.paths == known.paths
        )
        where, own = str(path), named or "cross_camera"
        protocol = protocol_in_force(protocol, own, where, is_one_set=is_one_set)
        yield Source(where, dataset, protocol, query, known, groups.get(MORE), first_camera,
                     model=model)


@contextmanager
def open_sources(
    places: Sequence[str], gallery: Sequence[str] = (), protocol: str | None = None
) -> Iterator[list[Source]]:
    """Open feature files, and those of run folders; see `open_source`.

    gallery: names and patterns of shards that replace the gallery; UserError for several files.
    """
    files = [file for place in places for file in feature_files(Path(place))]
    if gallery and len(files) > 1:
        raise WrongUsage("--gallery goes with one feature file, which gives the queries")
    shards = find_shards(gallery)
    with ExitStack() as stack:
        yield [stack.enter_context(open_source(file, shards=shards, protocol=protocol))
               for file in files]


def _stacked(groups: Sequence[FeatureGroup]) -> FeatureGroup:
    """Return several groups as one, without reading their features."""
    paths = [group.paths for group in groups]
    return FeatureGroup(features=Stacked([group.features for group in groups]),
                        identities=np.concatenate([group.identities for group in groups]),
                        cameras=np.concatenate([group.cameras for group in groups]),
                        paths=None if None in paths else [p for part in paths for p in part or ()])


def find_shards(patterns: Sequence[str]) -> list[Path]:
    """Return the files of names and patterns ('shards/*.h5'); UserError for one without files."""
    found = []
    for pattern in patterns:
        path = Path(pattern)
        here = [path] if path.is_file() else sorted(path.parent.glob(path.name))
        if not here:
            raise UserError(f"{pattern}: no such file")
        found += here
    return found


def warn_of_models(models: Sequence[str], where: str) -> None:
    """Log that features which are compared name several models; names may differ for one model."""
    if len(names := sorted({*models} - {""})) > 1:
        log.warning("%s: compared features name several models: %s; only features of one model can "
                    "be compared", where, ", ".join(names))
