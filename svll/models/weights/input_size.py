"""Input size and patch stride of published weights, told from the number of their positions."""

from dataclasses import dataclass
from itertools import product

from harness.base.errors import UserError

USUAL_SIZES = ((256, 128), (256, 256), (384, 128), (384, 192), (224, 224))
"""Height and width in pixels that ReID models are published with."""
USUAL_STRIDES = (16, 14, 12)
"""Strides they are published with, for patches of 16 pixels."""


@dataclass(frozen=True)
class Size:
    """Input size in pixels and the stride of the patches."""

    height: int
    width: int
    stride: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width} with stride {self.stride}"

    def tokens(self, patch: int) -> int:
        """Return how many patches there are."""
        down, across = ((side - patch) // self.stride + 1 for side in (self.height, self.width))
        return down * across


@dataclass(frozen=True)
class Wanted:
    """What the user says about a weights file; None: read it from the file."""

    where: str
    height: int | None = None
    width: int | None = None
    stride: int | None = None

    def size(self, tokens: int, *, patch: int, fixed_stride: int | None = None) -> Size:
        """Return the one usual size whose grid has as many patches as the file has positions.

        Usual strides come first, for 256x256 at stride 12 has the patches of 224x224 at stride 10.
        Raises UserError with the count and all that fit, when that is not one.
        """
        strides = [self.stride or fixed_stride] if self.stride or fixed_stride else None
        usual = strides or [stride * patch // 16 for stride in USUAL_STRIDES]
        fitting = self._fitting(tokens, patch, usual)
        if not fitting:
            fitting = self._fitting(tokens, patch, strides or list(range(1, patch + 1)))
        if len(fitting) == 1:
            return fitting[0]
        raise UserError(
            f"{self.where}: has positions for {tokens} patches of {patch} pixels, which fit "
            f"{' and '.join(map(str, fitting)) or f'none of {self._asked()}'}; give height, width "
            "and stride"
        )

    def _fitting(self, tokens: int, patch: int, strides: list[int | None]) -> list[Size]:
        sizes = [Size(h, w, s or patch) for (h, w), s in product(self._sizes(), strides)]
        return [
            size for size in sizes
            if min(size.height, size.width) >= patch and size.tokens(patch) == tokens
        ]

    def _sizes(self) -> list[tuple[int, int]]:
        if self.height and self.width:
            return [(self.height, self.width)]
        return [
            (h, w) for h, w in USUAL_SIZES
            if self.height in (None, h) and self.width in (None, w)
        ]

    def _asked(self) -> str:
        listed = ", ".join(f"{h}x{w}" for h, w in self._sizes()) or "the usual sizes"
        return f"{listed} with {f'stride {self.stride}' if self.stride else 'any stride'}"
