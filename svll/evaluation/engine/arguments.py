"""What all comparisons of a query and a gallery ask of their arguments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.base.errors import UserError
from svll.evaluation.engine.feature_rows import Integers

LABELS = ("query identities", "gallery identities", "query cameras", "gallery cameras")


def integers(values: ArrayLike) -> Integers:
    """Labels from a list, an array or a tensor; a float or text stays as it is, for `faults`."""
    array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    return array.astype(np.int64) if array.dtype.kind in "iu" or not array.size else array


def faults(query: Any, gallery: Any, labels: Sequence[Integers]) -> list[str]:
    """What does not fit: features [Q, D] and [G, D], and labels in the order of LABELS."""
    sides = {"query": query, "gallery": gallery}
    if found := [
        f"{name} features are of type {type(side).__name__}; give an array or a tensor"
        for name, side in sides.items() if not hasattr(side, "shape")
    ]:
        return found
    shapes = {name: tuple(side.shape) for name, side in sides.items()}
    for name, shape in shapes.items():
        if len(shape) != 2 or 0 in shape:
            found.append(f"{name} features have shape {list(shape)}; expected [images, width]")
    if not found and shapes["query"][1] != shapes["gallery"][1]:
        widths = f"{shapes['query'][1]} numbers per row, gallery features {shapes['gallery'][1]}"
        found.append(f"query features have {widths}; both must come from one model")
    for name, values in zip(LABELS, labels, strict=True):
        rows = shapes[name.split()[0]][:1]
        if values.shape != rows:
            found.append(f"{name} have shape {list(values.shape)}; expected {list(rows)}")
        elif values.dtype.kind != "i":
            found.append(f"{name} are {values.dtype}; expected integers")
    return found


def is_integer(value: Any, least: int) -> bool:
    """Return whether a value is an integer, True and False being none, of at least `least`."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and bool(value >= least)


def checked(query: Any, gallery: Any, given: Sequence[ArrayLike]) -> list[Integers]:
    """Return labels in the order of LABELS as arrays; raises UserError for what `faults` finds."""
    labels = [integers(values) for values in given]
    if found := faults(query, gallery, labels):
        raise UserError("\n".join(found))
    return labels
