"""A query and a gallery to be compared, and the checks that every comparison needs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup
from svll.base.labels import on_host
from svll.evaluation.engine.feature_rows import JUNK, Integers, Rows

NUMBERS = re.compile(r"(b?float|longdouble|u?int)\d*(_e\w+)?|bool")
"""Names of types that can be compared as float32."""
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
        cameras = np.zeros(row_count(features), np.int64)
    return FeatureGroup(features, integers(identities), integers(cameras), paths=names)


def row_count(features: Any) -> int:
    """Return the number of rows; 0 for what `faults` refuses."""
    shape = getattr(features, "shape", ())
    return int(shape[0]) if shape else 0


def integers(values: ArrayLike) -> Integers:
    """Return labels as int64; floats and text stay as they are, for `faults`."""
    array = np.asarray(on_host(values))
    return array.astype(np.int64) if array.dtype.kind in "iu" or not array.size else array


def faults(pair: Pair) -> list[str]:
    """Return what is wrong with the shapes and types of features and labels."""
    sides = dict(zip(SIDES, pair[:2], strict=True))
    found = [f"{name} features {why}" for name, side in sides.items()
             if (why := _why_no_rows(side.features))]
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
            if not rows:
                continue
            if list(values.shape) != rows:
                found.append(f"{name} {kind} have shape {list(values.shape)}; expected {rows}")
            elif values.dtype.kind != "i":
                found.append(f"{name} {kind} are {values.dtype}; expected integers")
    return found


def _why_no_rows(features: Any) -> str:
    """Say why a value is no array or tensor of numbers; "" if it is one."""
    if not hasattr(features, "shape"):
        return f"are of type {type(features).__name__}; give an array or tensor"
    if getattr(features, "is_meta", False):
        return "are on the device meta, which holds no numbers"
    if str(getattr(features, "layout", "torch.strided")) != "torch.strided":
        return "are sparse; give features.to_dense()"
    dtype = getattr(features, "dtype", np.dtype(float))
    name = np.dtype(dtype).name if isinstance(dtype, np.dtype) else str(dtype)
    if not NUMBERS.fullmatch(name.removeprefix("torch.")):
        return f"are {name}; give real numbers, such as float32"
    return ""


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
