"""Float32 computed in full, where torch or its caller allows less: on CUDA, torch by default
convolves in TF32, which has 10 bits of a mantissa's 23."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TORCH: Any = torch.backends
_LEVELS = (_TORCH, _TORCH.cudnn, _TORCH.cuda.matmul, _TORCH.cudnn.conv, _TORCH.mkldnn.matmul,
           _TORCH.mkldnn.conv)
"""Where torch keeps the precision. A level without its own value has that of the one above it."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply and convolve float32 in full in the body, whatever the caller has set."""
    changed: list[tuple[Any, str]] = []
    try:
        for level in _LEVELS:  # from above: one that still differs has its own value
            if (precision := level.fp32_precision) != "ieee":
                changed.append((level, precision))
                level.fp32_precision = "ieee"
        yield
    finally:
        for level, precision in reversed(changed):
            level.fp32_precision = precision


def use_full_precision() -> None:
    """Multiply and convolve float32 in full from now on.

    Through torch's older settings: while the newer ones differ from them, torch.export and other
    parts of torch, which read the older ones, raise RuntimeError.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
