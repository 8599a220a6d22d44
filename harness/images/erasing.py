"""Random erasing: a box of normal noise in some images (Zhong et al., arXiv 1708.04896).

Boxes are drawn as in timm (`RandomErasing`, mode "pixel"). The noise of a pixel depends only on its
image's key and its place, so the CPU's kernel and torch agree to the bit, in any batch. B images, C
channels, H rows, W columns; a box is (top, left, height, width).
"""

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base.compiled import kernel
from harness.base.rng import GOLDEN, MULTIPLIERS, SHIFTS, Words, below
from harness.images.transfer import to_device

TRIES = 10
ASPECT = (0.3, 1 / 0.3)
"""Height over width of a box, drawn uniformly in its logarithm."""
DRAWS = 1 + 4 * TRIES
"""Uniform numbers per image: whether to erase; then area, aspect, top and left of each try."""
_LANES = 4
_LANE_BITS = 16
# 64-bit words: Numba's type for a Python number of more than 63 bits varies.
_GOLDEN, _FIRST, _SECOND = (np.uint64(number) for number in (GOLDEN, *MULTIPLIERS))
_S0, _S1, _S2 = (np.uint64(shift) for shift in SHIFTS)
_ONE, _MASK = np.uint64(1), np.uint64((1 << _LANE_BITS) - 1)


def draw_boxes(
    numbers: NDArray[np.float64], *, height: int, width: int, probability: float,
    area: tuple[float, float],
) -> NDArray[np.int64]:
    """Return a box [B, 4] for each image, all zeros where nothing is erased.

    `numbers` [B, DRAWS] are uniform in [0, 1); `area` is the smallest and the largest share of the
    image. A box as high or as wide as the image is drawn again, `TRIES` times in all.
    """
    erased = numbers[:, 0] < probability
    areas, aspects, tops, lefts = numbers[:, 1:].reshape(-1, TRIES, 4).transpose(2, 0, 1)
    target = (area[0] + areas * (area[1] - area[0])) * height * width
    low, high = (math.log(bound) for bound in ASPECT)
    aspect = np.exp(low + aspects * (high - low))
    heights = np.rint(np.sqrt(target * aspect)).astype(np.int64)
    widths = np.rint(np.sqrt(target / aspect)).astype(np.int64)
    fits = (heights < height) & (widths < width)
    boxes = np.stack(
        [below(tops, height - heights + 1), below(lefts, width - widths + 1), heights, widths], -1
    )
    first = boxes[np.arange(len(boxes)), fits.argmax(axis=1)]
    return np.where((erased & fits.any(axis=1))[:, None], first, 0)


def erase(images: Tensor, boxes: NDArray[np.int64], keys: Words) -> Tensor:
    """Return `images` [B, C, H, W] with noise in the boxes [B, 4]; `keys` [B] choose the noise. For
    GPUs: it computes the noise of every pixel, so that shapes are the same for every batch."""
    _, channels, height, width = images.shape
    device = images.device
    sent = to_device(torch.from_numpy(boxes), device)
    top, left, tall, wide = sent.T[:, :, None, None, None]
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    blocks = -(-width // _LANES)
    planes = torch.arange(channels, device=device)[:, None, None]
    counters = (planes * height + rows) * blocks + columns // _LANES  # [C, H, W]
    first = to_device(torch.from_numpy(keys.view(np.int64)), device)
    words = _mix(first[:, None, None, None] + (counters + 1) * _signed(GOLDEN))
    levels = (words >> (columns % _LANES * _LANE_BITS)) & int(_MASK)
    return torch.where(inside, _table_on(device)[levels], images)


@functools.cache
def _table_on(device: torch.device) -> Tensor:
    return torch.from_numpy(normal_table()).to(device)


@functools.cache
def normal_table() -> NDArray[np.float32]:
    """Return the standard normal distribution's quantiles at the middles of 2^16 equal parts.
    Values end at +-4.3. A look-up takes 1.4 ns, a Box-Muller transform 9.9 ns."""
    parts = 1 << _LANE_BITS
    middles = (torch.arange(parts, dtype=torch.float64) + 0.5) / parts
    return torch.special.ndtri(middles).to(torch.float32).numpy()


@kernel
def erase_box(image, box, key, table):  # type: ignore[no-untyped-def]
    """Erase the box [4] of one image [C, H, W] in place, on a CPU; `table`: `normal_table()`."""
    channels, height, width = image.shape
    blocks = (width + _LANES - 1) // _LANES
    top, left, tall, wide = box
    for c in range(channels):
        for y in range(top, top + tall):
            row = image[c, y]
            start = np.uint64((c * height + y) * blocks)
            for block in range(left // _LANES, (left + wide + _LANES - 1) // _LANES):
                word = key + (start + np.uint64(block) + _ONE) * _GOLDEN
                word = (word ^ (word >> _S0)) * _FIRST
                word = (word ^ (word >> _S1)) * _SECOND
                word = word ^ (word >> _S2)
                for lane in range(_LANES):
                    x = block * _LANES + lane
                    if left <= x < left + wide:
                        row[x] = table[(word >> np.uint64(lane * _LANE_BITS)) & _MASK]


def _mix(words: Tensor) -> Tensor:
    """Compute `harness.base.rng.mix` on int64, since torch cannot multiply uint64."""
    for shift, multiplier in zip(SHIFTS, MULTIPLIERS, strict=False):
        words = _xor_shift(words, shift) * _signed(multiplier)
    return _xor_shift(words, SHIFTS[-1])


def _xor_shift(words: Tensor, by: int) -> Tensor:
    """Return words ^ (words >> by), filled with zeros; torch's own shift repeats the sign."""
    return words ^ ((words >> by) & ((1 << (64 - by)) - 1))


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
