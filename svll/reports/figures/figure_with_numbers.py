"""What functions that draw figures of runs return."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # matplotlib
    from matplotlib.figure import Figure


class FigureWithNumbers(NamedTuple):
    """A figure with its caption and numbers."""

    figure: "Figure"
    caption: str  # which images or identities, which feature, and how the numbers were computed
    numbers: Mapping[str, Mapping[str, float]]  # by the run's title and the number's name
