"""Which gallery images are a query's own image, for the protocol that leaves out those alone.

A gallery image is a query's own where both have the same name (path). Files of other toolboxes may
have no names, and a dataset may hold copies of its queries, so for a query without such an image it
is the first gallery image of its identity and camera with the same features to the last bit. If
this is wrong, one extra match is left out and the score is too low.

Letters: Q queries, G gallery images, D width.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine.feature_rows import JUNK, Integers, Rows
from svll.evaluation.pair import Numbers, Pair

BLOCK = 4096
NOBODY = -1
"""The number of a query whose own image is not in the gallery."""
Names = Sequence[Hashable] | None
Content = tuple[int, int, bytes]
"""A row's identity, camera and features."""


def image_numbers(pair: Pair) -> Numbers:
    """Return the numbers of a pair's images, by their paths, features and labels."""
    if pair.numbers is not None:
        return pair.numbers
    asking, known = _by_name(pair)
    left = ~np.isin(asking, known)
    asking[left] = NOBODY
    if left.any():
        rows = _by_content(pair, left)
        found = rows[left & (rows >= 0)]
        # a row that is nobody's yet gets a number that no name has
        free = found[known[found] < 0]
        known[free] = len(asking) + free
        asking[left & (rows >= 0)] = known[found]
    return Numbers(asking, known)


def _by_name(pair: Pair) -> tuple[Integers, Integers]:
    """Number names from 0 as queries have them; gallery images of other names have -2."""
    query, gallery = pair.query.paths, pair.gallery.paths
    if query is None or gallery is None:
        asking, known = (len(group.identities) for group in pair[:2])
        return np.full(asking, NOBODY), np.full(known, -2)
    places: dict[Hashable, int] = {}
    numbers = [places.setdefault(name, len(places)) for name in query]
    return np.array(numbers, np.int64), np.array([places.get(n, -2) for n in gallery], np.int64)


def _by_content(pair: Pair, wanted: NDArray[np.bool_]) -> Integers:
    """Return the first gallery row with a wanted query's labels and features [Q], -1 for none."""
    q_ids = np.where(wanted, pair.query.identities, JUNK)
    g_ids = pair.gallery.identities
    g_ids = np.where(np.isin(g_ids, q_ids), g_ids, JUNK)
    asking, known = pair.labelled(q_ids, g_ids).rows(unit=False)
    of_query = dict(_contents(asking))
    wanted_contents, firsts = set(of_query.values()), _first_numbers(asking)
    found: dict[Content, int] = {}
    for row, content in _contents(known, firsts):
        if content in wanted_contents:
            found.setdefault(content, row)
    rows = np.full(len(q_ids), -1, np.int64)
    for row, content in of_query.items():
        rows[row] = found.get(content, -1)
    return rows


def _contents(
    rows: Rows, firsts: NDArray[np.float32] | None = None
) -> Iterator[tuple[int, Content]]:
    """Yield rows with their content; with `firsts`, those whose first number is one of them."""
    for start, features in _blocks(rows):
        kept = np.arange(len(features))
        if firsts is not None:  # few rows pass, and the others cost little more than being read
            kept = np.flatnonzero(np.isin(features[:, 0], firsts))
        for n in kept.tolist():
            at = start + n
            labels = int(rows.identities[at]), int(rows.cameras[at])
            yield int(rows.kept[at]), (*labels, features[n].tobytes())


def _first_numbers(rows: Rows) -> NDArray[np.float32]:
    """The first number of every row."""
    found = [features[:, 0].copy() for _, features in _blocks(rows)]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _blocks(rows: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield features as they are stored, with the place of the first."""
    for start in range(0, len(rows), BLOCK):
        yield start, rows.lengths_apart(start, min(start + BLOCK, len(rows))).features
