"""Rows of what is mostly matrix products: their floor is a bare product's speed."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities
from torch.utils.flop_counter import FlopCounterMode

from harness.training import ranks
from harness.training.engine import Precision
from tests.benchmarks.peaks import UNKNOWN_PEAK, peak
from tests.benchmarks.sizes import Sizes
from tests.benchmarks.timing import Row, in_turns, row, seconds

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def products_row(
    name: str, unit: str, ours: Callable[[], Any], baseline: Callable[[], Any], sizes: Sizes, *,
    precision: Precision, images: int, repeats: int, per: float = 1.0, calls: int = 1,
    notes: Sequence[str] = (),
) -> Row:
    """Time two ways and the bare product in turns; a call handles `images`, and `per` units.

    calls: how many are timed together.
    """
    if sizes.compiles:
        ours()  # compiles, which it does not while operations are counted
    done = operations(ours)
    ways = _several(ours, calls), _several(baseline, calls), _bare(TYPES[precision], sizes)
    our, other, least = in_turns(*ways, repeats=repeats)
    floor = calls * done * least.median / (sizes.products * 2 * sizes.product**3)
    speed = calls * images / our.median
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    stated = peak(gpu, precision)
    mfu = None if stated is None else calls * done / our.median / stated
    unknown = f"{UNKNOWN_PEAK}: the peak of {gpu}" if gpu else ""
    notes = [
        *notes, f"bare products (+-{least.spread:.0%}) are {floor / our.median:.0%} of ours",
        f"{speed:.3g} images/s", unknown if mfu is None else f"{mfu:.0%} MFU",
    ]
    return row(
        name, unit, our, other, floor=floor, per=calls * per, note=", ".join(filter(None, notes)),
        images_per_s=speed, mfu=mfu, idle=idle_share(ways[0], our.median),
    )


def operations(work: Callable[[], Any]) -> float:
    """Return how many operations the matrix products of a call have, a multiply-add being two."""
    # of compiled code nothing would be counted
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counted:
        work()
    return float(counted.get_total_flops())


def idle_share(work: Callable[[], Any], taken_s: float) -> float | None:
    """Return the share of a call's time in which a GPU does nothing; None: unknown.

    taken_s: the time of a call, measured before: recording slows the host, and not the kernels.
    """
    if ProfilerActivity.CUDA not in supported_activities() or not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        seconds(work)
    spans = [
        (event.time_range.start, event.time_range.end) for event in recorded.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return max(0.0, 1 - covered(spans) / 1e6 / taken_s) if spans else None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of all that spans cover; streams compute at the same time."""
    total, end = 0.0, -math.inf
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def _several(work: Callable[[], Any], calls: int) -> Callable[[], None]:
    def every() -> None:
        for _ in range(calls):
            work()

    return every


def _bare(dtype: torch.dtype, sizes: Sizes) -> Callable[[], None]:
    """Return products and nothing else."""
    shape = sizes.product, sizes.product
    a, b = (torch.randn(shape, device=ranks.device(), dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return _several(lambda: torch.mm(a, b, out=out), sizes.products)

