"""Views of an image: their settings and what is drawn at random for each.

Crops, mirroring and erased boxes are drawn here (`harness.base.rng`), not by DALI, whose random
operators depend on batch size and history. B images of a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.base import rng
from harness.images import erasing

Rows = NDArray[np.int64]
Resize = Literal["bicubic", "bilinear"]
Colour = tuple[float, float, float]
"""A number for each of red, green and blue."""
_NOISE = 1
"""Separates the keys of the noise from those of the other draws."""


@dataclass(frozen=True)
class View:
    """What happens to an image after the resize; the defaults change nothing (for tests)."""

    flip: float = 0.0  # probability of mirroring left and right
    pad: int = 0  # black pixels added on each side before a random crop back to size
    erase: float = 0.0  # probability that a box of the normalised view becomes normal noise
    erase_area: tuple[float, float] = (0.02, 1 / 3)  # smallest and largest share of the box


@dataclass(frozen=True)
class Transform:
    """From a decoded image to views: one resize, then each view's changes, then normalisation."""

    height: int
    width: int
    resize: Resize
    mean: Colour = (0.5, 0.5, 0.5)  # per-channel mean of pixels (0 to 1)
    std: Colour = (0.5, 0.5, 0.5)  # and standard deviation
    views: Mapping[str, View] = field(default_factory=lambda: {"image": View()})
    """The views by name; by default the unchanged image."""


Take = Callable[[], list[Tensor]]
"""Waits for a batch that was begun: [B, 3, H, W] per view, owned by the caller. Raises RuntimeError
when one of its files cannot be decoded; its maker is unusable from then on."""


@dataclass(frozen=True)
class Changes:
    """What was drawn for the V views of a batch, in the order of application."""

    mirror: NDArray[np.bool_]  # [V, B]
    left: Rows  # [V, B], 0 .. 2 * pad, of the crop in the mirrored and padded image
    top: Rows  # [V, B]
    boxes: Rows  # [V, B, 4], see harness.images.erasing
    noise: rng.Words  # [V, B]


def draw_changes(transform: Transform, seed: int, epoch: int, positions: Rows) -> Changes:
    """Draw the changes of a batch; positions [B]: its images' places in the epoch's order."""
    drawn = []
    for index, view in enumerate(transform.views.values()):
        key = seed, epoch, positions, index
        numbers = rng.uniform(*key, 3 + erasing.DRAWS)
        left, top = rng.below(numbers[:, 1:3], 2 * view.pad + 1).T
        boxes = erasing.draw_boxes(numbers[:, 3:], height=transform.height, width=transform.width,
                                   probability=view.erase, area=view.erase_area)
        drawn.append((numbers[:, 0] < view.flip, left, top, boxes, rng.hash_words(*key, _NOISE)))
    return Changes(*map(np.stack, zip(*drawn, strict=True)))
