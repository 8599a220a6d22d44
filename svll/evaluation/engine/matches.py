"""Which gallery rows match each query, and which it does not rank, by labels alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from svll.evaluation.engine.feature_rows import Integers, Rows

CHUNK_QUERIES, CHUNK_MATCHES = 16_384, 4_000_000  # some 100 MB of lists at a time


@dataclass(frozen=True)
class Chunk:
    """Queries `first` to `last` with their lists: offsets [q + 1] into columns, ascending."""

    first: int
    last: int
    match_offsets: Integers
    match_columns: Integers
    removed_offsets: Integers
    removed_columns: Integers

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def owners(self) -> Integers:
        """The query of every true match [P], counted from `first`."""
        return np.repeat(np.arange(len(self)), np.diff(self.match_offsets))


class Matches:
    """The gallery rows of each query's identity, found in the gallery sorted by identity."""

    def __init__(self, queries: Rows, gallery: Rows, parts: int = 1) -> None:
        """`parts`: number of such lists held at a time, which makes chunks that much shorter."""
        self._most = max(1, CHUNK_QUERIES // parts), max(1, CHUNK_MATCHES // parts)
        self._order = np.argsort(gallery.identities, kind="stable")
        ids = gallery.identities[self._order]
        self._low = np.searchsorted(ids, queries.identities, "left")
        self._counts = np.searchsorted(ids, queries.identities, "right") - self._low
        self._query_cameras, self._gallery_cameras = queries.cameras, gallery.cameras
        self.found = any(len(chunk.match_columns) for chunk in self.chunks())

    def chunks(self) -> Iterator[Chunk]:
        """Yield runs of queries with up to CHUNK_MATCHES in their lists (one query may exceed)."""
        first, total = 0, np.r_[0, np.cumsum(self._counts)]
        while first < len(self._counts):
            fits = int(np.searchsorted(total, total[first] + self._most[1], "right")) - 1
            last = max(first + 1, min(fits, first + self._most[0]))
            yield self._chunk(first, last)
            first = last

    def _chunk(self, first: int, last: int) -> Chunk:
        counts = self._counts[first:last]
        owners = np.repeat(np.arange(last - first), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self._order[np.repeat(self._low[first:last], counts) + within]
        same = self._gallery_cameras[columns] == self._query_cameras[first:last][owners]
        lists: list[Integers] = []
        for part in (~same, same):
            lengths = np.bincount(owners[part], minlength=last - first)
            lists += np.r_[0, np.cumsum(lengths)], columns[part]
        return Chunk(first, last, *lists)
