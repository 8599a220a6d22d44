"""What curves say of a run, in addition to its log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class About:
    """How a run is named and described where many runs are shown side by side."""

    config: Mapping[str, Any]
    """All settings: W&B's config, TensorBoard's hyperparameters."""
    label: str = ""
    """Settings that tell the run from others of its folder, such as `lr=0.1 seed=2`."""
    tags: Sequence[str] = ()
