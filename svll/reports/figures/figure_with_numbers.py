"""What a function that draws gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawn:
    """A figure with what must stand beside it."""

    figure: "Figure"
    caption: str
    """Of which images or identities, of which feature, and how the numbers were made."""
    numbers: Mapping[str, Mapping[str, float]]
    """Of each run, by its title and then by the name of the number."""
