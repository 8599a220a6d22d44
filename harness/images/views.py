"""Views of an image: what they are made of, and what is drawn at random for each.

Where to crop, whether to mirror and what to erase are drawn here (`harness.base.rng`) and not by
DALI, whose own random operators depend on batch size and history. B images of a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.base import rng
from harness.images import erasing

Rows = NDArray[np.int64]
Resize = Literal["bicubic", "bilinear"]
Colour = tuple[float, float, float]
"""A number for each of red, green and blue."""

_NOISE = 1
"""Sets the keys of the noise apart from those of the other draws."""


@dataclass(frozen=True)
class View:
    """What happens to an image after the resize. As it stands here, nothing: the test transform."""

    flip: float = 0.0
    """Probability of mirroring left and right."""
    pad: int = 0
    """Black pixels added on each side before a crop back to size at a random place."""
    erase: float = 0.0
    """Probability that a box of the normalised view becomes normal noise."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Least and largest share of the view that the box covers."""

    def __post_init__(self) -> None:
        assert 0 <= self.flip <= 1, self
        assert 0 <= self.erase <= 1, self
        assert self.pad >= 0, self
        assert 0 < self.erase_area[0] <= self.erase_area[1] < 1, self


@dataclass(frozen=True)
class Transform:
    """How the views of an image come about: one resize, then what each view asks for.

    From pixels (0 .. 1) `mean` is subtracted, and `std` divides what is left.
    """

    views: Mapping[str, View]
    height: int
    width: int
    resize: Resize
    mean: Colour
    std: Colour


@dataclass(frozen=True)
class Changes:
    """What was drawn for one view of a batch, in the order in which it is applied."""

    mirror: NDArray[np.bool_]  # [B]
    left: Rows  # [B], 0 .. 2 * pad, of the crop in the mirrored and padded image
    top: Rows  # [B]
    boxes: Rows  # [B, 4], see harness.images.erasing
    noise: rng.Words  # [B]


def draw_changes(
    view: View, height: int, width: int, key: tuple[int, int, Rows, int]
) -> Changes:
    """Draw one view of a batch; `key` is seed, epoch, positions [B], the view's index."""
    numbers = rng.uniform(*key, 3 + erasing.DRAWS)
    left, top = rng.below(numbers[:, 1:3], 2 * view.pad + 1).T
    boxes = erasing.draw_boxes(
        numbers[:, 3:], height=height, width=width, probability=view.erase, area=view.erase_area
    )
    return Changes(numbers[:, 0] < view.flip, left, top, boxes, rng.hash_words(*key, _NOISE))
