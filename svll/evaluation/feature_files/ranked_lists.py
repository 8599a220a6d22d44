"""The ranked lists of selected queries."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.engine.feature_rows import JUNK
from svll.evaluation.feature_files.scores import score
from svll.evaluation.feature_files.sources import Source
from svll.evaluation.ranking import Options, RankingResult

TOP = 10  # gallery images in a list


@dataclass(frozen=True)
class Wanted:
    """Which queries to show: by default those with the worst average precision."""

    count: int = 50
    """The largest number of queries; named ones are all shown."""
    cameras: tuple[int, int] | None = None
    """The queries' camera and the gallery's camera, with the dataset's numbers; None: all."""
    queries: Sequence[str] = ()
    """Rows of queries, from 0, or their paths or ends of paths, such as a file name."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"{self.count} queries were requested; at least 1 is needed")
        if self.cameras and self.queries:
            raise UserError("queries by camera pair and queries by name: choose one")


@dataclass(frozen=True)
class Hit:
    """A gallery image in a list."""

    row: int
    identity: int
    camera: int
    """The dataset's number."""
    distance: float
    is_match: bool


@dataclass(frozen=True)
class RankedList:
    """A query and the gallery images nearest to it, the nearest first."""

    row: int
    identity: int
    camera: int
    average_precision: float | None
    """None if nothing in the gallery can match."""
    first_rank: int
    """The rank of the first match, from 1; 0 if there is none."""
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Lists:
    """The lists of the selected queries."""

    shown: list[RankedList]
    among: int
    """Number of queries that they were selected from."""


def ranked_lists(source: Source, result: RankingResult, wanted: Wanted) -> Lists:
    """Return the lists of the wanted queries.

    result: of the source's ranking, with nearest rows. Queries by camera pair are ranked again, in
    the gallery of one camera: worst rank of the first match first, then lowest average precision.
    Raises UserError as `check_wanted` does.
    """
    if wanted.queries:
        rows = [_row(source, word) for word in wanted.queries]
        return Lists([_list(source, result, row) for row in rows], len(source.asking.identities))
    if wanted.cameras:
        source = _between(source, *wanted.cameras)
        [scored] = score(source, options=Options(top_k=TOP))
        result = scored.result
    ranks = result.first_rank if wanted.cameras else np.zeros_like(result.first_rank)
    order = np.lexsort((result.average_precision, -ranks))  # equal ones in the order of the queries
    order = order[~np.isnan(result.average_precision[order])]
    shown = [_list(source, result, row) for row in order[: wanted.count].tolist()]
    return Lists(shown, result.queries)


def check_wanted(source: Source, wanted: Wanted) -> None:
    """Raise UserError for unknown queries, and for cameras without queries or common identities."""
    for word in wanted.queries:
        _row(source, word)
    if wanted.cameras:
        _between(source, *wanted.cameras)


def _list(source: Source, result: RankingResult, row: int) -> RankedList:
    asking, gallery = source.asking, source.gallery
    identity, precision = int(asking.identities[row]), float(result.average_precision[row])
    pairs = zip(result.nearest[row].tolist(), result.distances[row].tolist(), strict=True)
    hits = tuple(Hit(near, int(gallery.identities[near]), source.camera(int(gallery.cameras[near])),
                     distance, bool(gallery.identities[near] == identity))
                 for near, distance in pairs if near >= 0)
    return RankedList(row, identity, source.camera(int(asking.cameras[row])),
                      None if np.isnan(precision) else precision, int(result.first_rank[row]), hits)


def _row(source: Source, word: str) -> int:
    """Return the row of the query that a row number, a path, or the end of a path names."""
    paths, count = source.asking.paths, len(source.asking.identities)
    if re.fullmatch("[0-9]+", word):
        if len(word) < 19 and int(word) < count:
            return int(word)
        raise UserError(f"{source.where}: there is no query {word}; rows are 0 to {count - 1}")
    if paths is None:
        raise UserError(f"{source.where}: no query {word!r}: the file has no paths; give rows, "
                        f"0 to {count - 1}")
    found = [row for row, path in enumerate(paths) if path == word]
    found = found or [row for row, path in enumerate(paths) if path.endswith(f"/{word}")]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{source.where}: no query's path is or ends with {word!r}; they look like "
                        f"{paths[0]}")
    raise UserError(f"{source.where}: {len(found)} queries' paths end with {word!r}; give more of "
                    f"the path, as in {paths[found[0]]}")


def _between(source: Source, asking: int, asked: int) -> Source:
    """Return the queries of one camera and the gallery images of another; the rest is junk."""
    if source.protocol == "random_gallery":
        raise UserError(f"{source.where}: the protocol random_gallery has no cameras; leave out "
                        "the camera pair")
    query, gallery = source.query, source.gallery
    for name, group, camera in (("query", query, asking), ("gallery", gallery, asked)):
        known = np.unique(group.cameras[group.identities != JUNK]).tolist()
        if camera not in (numbers := [source.camera(one) for one in known]):
            raise UserError(f"{source.where}: no {name} image under camera {camera}; cameras of "
                            f"the {name} are {', '.join(map(str, numbers))}")
    if asking == asked and source.protocol != "all_gallery":
        raise UserError(f"{source.where}: queries under camera {asking} do not rank their identity "
                        "under the same camera; give two different cameras")
    asks = np.where(source.camera(query.cameras) == asking, query.identities, JUNK)
    there = np.where(source.camera(gallery.cameras) == asked, gallery.identities, JUNK)
    if not np.isin(asks[asks != JUNK], there).any():
        raise UserError(f"{source.where}: no identity of queries under camera {asking} is in the "
                        f"gallery under camera {asked}")
    return replace(source, query=replace(query, identities=asks),
                   gallery=replace(gallery, identities=there))
