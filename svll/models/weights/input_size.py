"""Input size and patch stride of published weights, found by the number of their positions."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from harness.base.errors import UserError

USUAL_SIZES = ((256, 128), (256, 256), (384, 128), (384, 192), (224, 224))
"""Height and width in pixels of published ReID models."""
USUAL_STRIDES = (16, 14, 12)
"""Their strides, for patches of 16 pixels."""


class InputSize(NamedTuple):
    """Input size in pixels and the stride of the patches."""

    height: int
    width: int
    stride: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width} with stride {self.stride}"

    def patches(self, patch: int) -> int:
        """Return the number of patches of `patch` pixels; 0 for images smaller than a patch."""
        down, across = ((side - patch) // self.stride + 1 for side in (self.height, self.width))
        return max(0, down) * max(0, across)


@dataclass(frozen=True)
class GivenSize:
    """The size that the user gives for the weights file `where`; None: read it from the file."""

    where: str
    height: int | None = None
    width: int | None = None
    stride: int | None = None

    def match(self, positions: int, *, patch: int, fixed_stride: int | None = None) -> InputSize:
        """Return the one usual size whose grid has as many patches as the file has positions.

        Usual strides come first, for 256x256 at stride 12 has the patches of 224x224 at stride 10.
        Raises UserError with the count and all that fit unless exactly one fits.
        """
        stride = self.stride or fixed_stride
        usual = [stride] if stride else [max(1, step * patch // 16) for step in USUAL_STRIDES]
        every = [stride] if stride else range(1, patch + 1)
        for strides in (usual, every):
            sizes = [InputSize(h, w, s) for (h, w), s in product(self._sizes(), strides)]
            fitting = [size for size in sizes if size.patches(patch) == positions]
            if fitting:
                break
        if len(fitting) == 1:
            return fitting[0]
        asked = ", ".join(f"{h}x{w}" for h, w in self._sizes()) or "the usual sizes"
        none = f"none of {asked} with {f'stride {self.stride}' if self.stride else 'any stride'}"
        raise UserError(f"{self.where}: has positions for {positions} patches of {patch} pixels, "
                        f"which fit {' and '.join(map(str, fitting)) or none}; give height, width "
                        "and stride")

    def _sizes(self) -> list[tuple[int, int]]:
        if self.height and self.width:
            return [(self.height, self.width)]
        given = self.height, self.width
        return [(h, w) for h, w in USUAL_SIZES if given[0] in (None, h) and given[1] in (None, w)]
