"""Which gallery image is a query's own image, for the protocol that leaves out only that one.

A gallery image is a query's own if both have the same name (path). Files of other toolboxes may
have no names, and a dataset may hold copies of its queries. So for a query without such an image,
it is the first gallery image of its identity and camera with the same features to the last bit. If
this is wrong, one extra match is left out and the score is too low.

Letters: Q queries, G gallery images, D width.
"""

from collections.abc import Hashable, Iterator

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine.feature_rows import JUNK, Integers, Rows
from svll.evaluation.pair import Pair

BLOCK = 4096
NOBODY = -1
"""The number of a query whose own image is not in the gallery."""
Content = tuple[int, int, bytes]
"""A row's identity, camera and features."""


def image_numbers(pair: Pair) -> tuple[Integers, Integers]:
    """Return numbers of queries [Q] and gallery images [G], equal for one image."""
    if pair.numbers is not None:
        return pair.numbers
    asking, known = _by_name(pair)
    left = ~np.isin(asking, known)
    asking[left] = NOBODY
    if left.any():
        rows = _by_content(pair, left)
        found = rows[left & (rows >= 0)]
        # a row without a query so far gets a number that no name has
        free = found[known[found] < 0]
        known[free] = len(asking) + free
        asking[left & (rows >= 0)] = known[found]
    return asking, known


def _by_name(pair: Pair) -> tuple[Integers, Integers]:
    """Number the queries' names from 0; gallery images of other names get -2."""
    query, gallery = pair.query.paths, pair.gallery.paths
    if query is None or gallery is None:
        asking, known = (len(group.identities) for group in pair[:2])
        return np.full(asking, NOBODY), np.full(known, -2)
    places: dict[Hashable, int] = {}
    numbers = [places.setdefault(name, len(places)) for name in query]
    return np.array(numbers, np.int64), np.array([places.get(n, -2) for n in gallery], np.int64)


def _by_content(pair: Pair, wanted: NDArray[np.bool_]) -> Integers:
    """Return the first gallery row with a wanted query's labels and features [Q], -1 for none."""
    q_ids, g_ids = np.where(wanted, pair.query.identities, JUNK), pair.gallery.identities
    g_ids = np.where(np.isin(g_ids, q_ids), g_ids, JUNK)
    asking, known = pair.labelled(q_ids, g_ids).rows(unit=False)
    of_query = dict(_contents(asking))
    contents = set(of_query.values())
    firsts = np.array([np.frombuffer(features, np.float32)[0] for _, _, features in contents])
    found: dict[Content, int] = {}
    for row, content in _contents(known, firsts):
        if content in contents:
            found.setdefault(content, row)
    rows = np.full(len(q_ids), -1, np.int64)
    for row, content in of_query.items():
        rows[row] = found.get(content, -1)
    return rows


def _contents(
    rows: Rows, firsts: NDArray[np.float32] | None = None
) -> Iterator[tuple[int, Content]]:
    """Yield rows with their content; with `firsts`, only rows whose first number is one of them."""
    for start in range(0, len(rows), BLOCK):
        features = rows.stored_block(start, min(start + BLOCK, len(rows))).features
        kept = np.arange(len(features))
        if firsts is not None:  # few rows pass, and the others cost little more than being read
            kept = np.flatnonzero(np.isin(features[:, 0], firsts))
        for at, row in zip((start + kept).tolist(), features[kept], strict=True):
            labels = int(rows.identities[at]), int(rows.cameras[at])
            yield int(rows.kept[at]), (*labels, row.tobytes())
