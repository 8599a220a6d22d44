"""The floor of what is mostly matrix products: their operations at the speed of a bare product."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness import engine as ranks
from tests.benchmarks.timing import median_s

SIZE = 1536
KNOWN_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Operations per second of dense bf16 products, as the makers state them."""


def operations(work: Callable[[], Any]) -> float:
    """Return how many operations the matrix products of a call have, a multiply-add being two."""
    with FlopCounterMode(display=False) as counted:
        work()
    return float(counted.get_total_flops())


def speed(dtype: torch.dtype = torch.float32) -> float:
    """Return the operations per second of a bare product here."""
    a, b = (torch.randn(SIZE, SIZE, device=ranks.device(), dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    return 2 * SIZE**3 / median_s(lambda: torch.mm(a, b, out=out), repeats=9)


def utilisation(done: float, taken_s: float) -> str:
    """Return the share of a known GPU's stated speed that was reached, in words; else nothing."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((speed for kind, speed in KNOWN_PEAKS.items() if kind in name), None)
    return "" if peak is None else f"{done / taken_s / peak:.0%} MFU"
