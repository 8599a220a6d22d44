"""Labels of images as other programs store them: identities and cameras in any type of number.

A type that is too small changes numbers without a word: -1 (junk) becomes 255 in uint8, 300 becomes
44 or 255, 200 becomes -56 in int8, and float32 stores 16,777,217 as 16,777,216. So labels that
their type may have changed are refused.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError

SAVE = "save labels as int64"


def on_host(values: Any) -> Any:
    """Return values as numpy takes them: tensors on a GPU are copied, also those of a list. Raises
    UserError for tensors without numbers."""
    if isinstance(values, list | tuple):
        return [on_host(value) for value in values]
    if getattr(values, "is_meta", False):
        raise UserError("labels are on the device meta, which holds no numbers")
    return values.cpu() if hasattr(values, "cpu") else values


def whole_numbers(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return labels of any shape as int64. Raises ValueError, with the first wrong number, for
    values that are not integers, for those below -1, and for those that their type may have
    changed."""
    kind, flat = values.dtype.kind, values.reshape(-1)
    if kind == "f":
        size = np.abs(flat.astype(np.float64))
        _refuse(flat, ~((np.trunc(flat) == flat) & (size < 2.0**63)), "integers are needed")
        most = 2.0 ** min(np.finfo(values.dtype).nmant + 1, 53)
        _refuse(flat, size >= most,
                f"{values.dtype} holds integers exactly only below {most:,.0f}, so two labels may "
                f"have become one; {SAVE}")
    elif values.size:
        most = np.iinfo(values.dtype).max
        _refuse(flat, flat == most, f"the largest number of {values.dtype}, which may stand for -1 "
                f"(junk) or for any larger number; {SAVE}")
    whole = values.astype(np.int64)
    _refuse(flat, whole.reshape(-1) < -1, "labels are not negative, except -1 for junk; numbers "
            f"too large for their type become negative: {SAVE}")
    return whole


def _refuse(flat: NDArray[Any], is_wrong: NDArray[np.bool_], why: str) -> None:
    if is_wrong.any():
        first = int(np.argmax(is_wrong))
        raise ValueError(f"number {first} is {flat[first]}; {why}")
