"""Rows of what is mostly matrix products: their floor is a bare product's speed."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.training import ranks
from harness.training.engine import Precision
from tests.benchmarks.timing import Row, in_turns, row

SIZE, COUNT = (8192, 20) if torch.cuda.is_available() else (1536, 9)
"""Of bare products, and how many are timed together: on a GPU a start must not count."""
KNOWN_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Operations per second of dense bf16 products, as the makers state them."""


def products_row(
    name: str, unit: str, ours: Callable[[], Any], baseline: Callable[[], Any], *,
    precision: Precision, images: int, per: float = 1.0, repeats: int = 3,
    told: Sequence[str] = (),
) -> Row:
    """Time two ways and the bare product in turns; a call handles `images`, and `per` units."""
    done = operations(ours)
    bare = _bare(torch.bfloat16 if precision == "bf16" else torch.float32)
    our, other, least = in_turns(ours, baseline, bare, repeats=repeats)
    floor = done * least.median / (COUNT * 2 * SIZE**3)
    notes = [
        *told, f"bare products (+-{least.spread:.0%}) are {floor / our.median:.0%} of ours",
        f"{images / our.median:.3g} images/s", _utilisation(done, our.median),
    ]
    return row(name, unit, our, other, floor=floor, per=per, note=", ".join(filter(None, notes)))


def operations(work: Callable[[], Any]) -> float:
    """Return how many operations the matrix products of a call have, a multiply-add being two."""
    with FlopCounterMode(display=False) as counted:
        work()
    return float(counted.get_total_flops())


def _bare(dtype: torch.dtype) -> Callable[[], None]:
    """Return products and nothing else: COUNT of them, of SIZE in each direction."""
    a, b = (torch.randn(SIZE, SIZE, device=ranks.device(), dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def work() -> None:
        for _ in range(COUNT):
            torch.mm(a, b, out=out)

    return work


def _utilisation(done: float, taken_s: float) -> str:
    """Return the share of a known GPU's stated speed that was reached, in words; else nothing."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((speed for kind, speed in KNOWN_PEAKS.items() if kind in name), None)
    return "" if peak is None else f"{done / taken_s / peak:.0%} MFU"
