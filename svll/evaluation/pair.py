"""A query and a gallery to be compared, and the checks that every comparison needs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup
from svll.base.labels import on_host
from svll.evaluation.engine.feature_rows import JUNK, Integers, Rows

SIDES = ("query", "gallery")
ONE_CAMERA = "with one camera only, set protocol to all_gallery"
"""Advice where a protocol of several cameras leaves nothing."""


class Pair(NamedTuple):
    """The features of a query [Q, D] and a gallery [G, D], with labels and, if known, paths."""

    query: FeatureGroup
    gallery: FeatureGroup
    numbers: tuple[Integers, Integers] | None = None
    """The result of `image_numbers`, if it is known already."""

    def labelled(self, query: Integers, gallery: Integers) -> "Pair":
        """Return the pair with other identities [Q] and [G]."""
        return self._replace(query=replace(self.query, identities=query),
                             gallery=replace(self.gallery, identities=gallery))

    def rows(self, *, unit: bool) -> tuple[Rows, Rows]:
        """Return both sides as rows to be compared, at unit length if `unit`."""
        query, gallery = (Rows(name, side.features, side.identities, side.cameras, unit=unit)
                          for name, side in zip(SIDES, self[:2], strict=True))
        return query, gallery


def group_of(
    features: Any, identities: ArrayLike, cameras: ArrayLike | None = None,
    names: Sequence[Any] | None = None,
) -> FeatureGroup:
    """Return features [n, D] with labels of any kind; cameras default to 0; names such as paths."""
    if cameras is None:
        cameras = np.zeros(len(features), np.int64)
    return FeatureGroup(features, integers(identities), integers(cameras), paths=names)


def integers(values: ArrayLike) -> Integers:
    """Return labels as int64; floats and text stay as they are, for `faults`."""
    array = np.asarray(on_host(values))
    return array.astype(np.int64) if array.dtype.kind in "iu" or not array.size else array


def faults(pair: Pair) -> list[str]:
    """Return what is wrong with the shapes and types of features and labels."""
    sides = dict(zip(SIDES, pair[:2], strict=True))
    found = [f"{name} features are of type {type(side.features).__name__}; give an array or tensor"
             for name, side in sides.items() if not hasattr(side.features, "shape")]
    if found:
        return found
    shapes = {name: tuple(side.features.shape) for name, side in sides.items()}
    for name, shape in shapes.items():
        if len(shape) != 2 or 0 in shape:
            found.append(f"{name} features have shape {list(shape)}; expected [images, width]")
    if not found and shapes["query"][1] != shapes["gallery"][1]:
        widths = f"{shapes['query'][1]} numbers per row, gallery features {shapes['gallery'][1]}"
        found.append(f"query features have {widths}; both must come from one model")
    for kind in ("identities", "cameras"):
        for name, side in sides.items():
            values, rows = getattr(side, kind), list(shapes[name][:1])
            if list(values.shape) != rows:
                found.append(f"{name} {kind} have shape {list(values.shape)}; expected {rows}")
            elif values.dtype.kind != "i":
                found.append(f"{name} {kind} are {values.dtype}; expected integers")
    return found


def check_pair(pair: Pair) -> None:
    """Raise UserError for what `faults` finds."""
    if found := faults(pair):
        raise UserError("\n".join(found))


def why_no_match(query: Integers, gallery: Integers, protocol: str) -> str:
    """Say why no query has a match, given identities [Q] and [G], and what to do."""
    queries, known = (np.unique(ids[ids != JUNK]) for ids in (query, gallery))
    for name, ids in zip(SIDES, (queries, known), strict=True):
        if not len(ids):
            return f"every {name} image has identity {JUNK} (junk)"
    shared, total = int(np.isin(queries, known).sum()), len(queries)
    has_cameras = protocol in ("cross_camera", "other_cameras")
    where = "under the query's own camera only" if has_cameras else "as the query's own image only"
    if not shared:
        advice = "check that query and gallery are labelled by the same list of identities"
    else:
        advice = ONE_CAMERA if has_cameras else "add further images"
    return (f"{total - shared} of {total} query identities are absent from the gallery, {shared} "
            f"are there {where}; {advice}")


def is_integer(value: Any, least: int) -> bool:
    """Return whether a value is an integer (no bool) of at least `least`."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and bool(value >= least)
