"""Which gallery images are a query's own image, for the protocol that leaves out those alone.

A gallery image is a query's own where both have the same name (path). Files of other toolboxes may
have no names, and a dataset may hold copies of its queries, so for a query without such an image it
is the first gallery image of its identity and camera with the same features to the last bit. Where
that is wrong, one image too many is left out, and the score is not too good.

Letters: Q queries, G gallery images, D width.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.rows import JUNK, Integers, Rows

BLOCK = 4096
NOBODY = -1
"""The number of a query whose own image is not in the gallery."""
Names = Sequence[Hashable] | None


def image_numbers(
    query: Any, gallery: Any, labels: Sequence[Integers], names: tuple[Names, Names] = (None, None)
) -> tuple[Integers, Integers]:
    """Return numbers of queries [Q] and gallery images [G] that are equal for one image.

    query [Q, D], gallery [G, D]; labels: identities of both, then cameras; names: of images.
    """
    asking, known = _by_name(names, len(labels[0]), len(labels[1]))
    left = ~np.isin(asking, known)
    asking[left] = NOBODY
    if left.any():
        rows = _by_content(query, gallery, labels, left)
        found = rows[left & (rows >= 0)]
        # a row that is nobody's yet gets a number that no name has
        free = found[known[found] < 0]
        known[free] = len(labels[0]) + free
        asking[left & (rows >= 0)] = known[found]
    return asking, known


def _by_name(names: tuple[Names, Names], queries: int, images: int) -> tuple[Integers, Integers]:
    """Number names from 0 as queries have them; gallery images of other names have -2."""
    if names[0] is None or names[1] is None:
        return np.full(queries, NOBODY), np.full(images, -2)
    places: dict[Hashable, int] = {}
    asking = [places.setdefault(name, len(places)) for name in names[0]]
    return np.array(asking, np.int64), np.array([places.get(n, -2) for n in names[1]], np.int64)


def _by_content(
    query: Any, gallery: Any, labels: Sequence[Integers], wanted: NDArray[np.bool_]
) -> Integers:
    """Return the first gallery row with a wanted query's labels and features [Q], -1 for none."""
    q_ids, g_ids, q_cams, g_cams = labels
    q_ids = np.where(wanted, q_ids, JUNK)
    g_ids = np.where(np.isin(g_ids, q_ids), g_ids, JUNK)
    asking = dict(_marked(Rows("query", query, q_ids, q_cams, unit=False)))
    first: dict[tuple[int, int, int], int] = {}
    marks = set(asking.values())
    for row, mark in _marked(Rows("gallery", gallery, g_ids, g_cams, unit=False)):
        if mark in marks:
            first.setdefault(mark, row)
    found = np.full(len(q_ids), -1, np.int64)
    for row, mark in asking.items():
        found[row] = first.get(mark, -1)
    return found


def _marked(rows: Rows) -> Iterable[tuple[int, tuple[int, int, int]]]:
    """Yield each row and what stands for its identity, camera and features."""
    width = rows.features.shape[1]
    factors = np.random.default_rng(0).integers(0, 2**63, width, np.uint64) * np.uint64(2) + 1
    for start in range(0, len(rows), BLOCK):
        stop = min(start + BLOCK, len(rows))
        block = rows.lengths_apart(start, stop).features
        sums = (block.view(np.uint32).astype(np.uint64) * factors).sum(axis=1)
        columns = rows.identities[start:stop], rows.cameras[start:stop], sums
        labels = zip(*(column.tolist() for column in columns), strict=True)
        yield from zip(rows.kept[start:stop].tolist(), labels, strict=True)
