"""Which gallery images are a query's own image, for the protocol that leaves out those alone.

A gallery image is a query's own where both have the same name (path). Files of other toolboxes may
have no names, and a dataset may hold copies of its queries, so for a query without such an image it
is the first gallery image of its identity and camera with the same features to the last bit. If
this is wrong, one extra match is left out and the score is too low.

Letters: Q queries, G gallery images, D width.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from svll.evaluation.engine.feature_rows import JUNK, Integers, Rows

BLOCK = 4096
NOBODY = -1
"""The number of a query whose own image is not in the gallery."""
Names = Sequence[Hashable] | None


class Numbers(NamedTuple):
    """Numbers of queries [Q] and gallery images [G] that are equal for one image."""

    query: Integers
    gallery: Integers


Known = tuple[Names, Names] | Numbers
"""What tells images of query and gallery apart: their names, or numbers found before."""
Content = tuple[int, int, bytes]
"""A row's identity, camera and features."""


def image_numbers(
    query: Any, gallery: Any, labels: Sequence[Integers], names: Known = (None, None)
) -> Numbers:
    """Return the numbers of images.

    query [Q, D], gallery [G, D]; labels: identities of both, then cameras; names: of images.
    """
    if isinstance(names, Numbers):
        return names
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
    return Numbers(asking, known)


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
    asking = Rows("query", query, q_ids, q_cams, unit=False)
    of_query = dict(_contents(asking))
    wanted_contents, firsts = set(of_query.values()), _first_numbers(asking)
    found: dict[Content, int] = {}
    for row, content in _contents(Rows("gallery", gallery, g_ids, g_cams, unit=False), firsts):
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
