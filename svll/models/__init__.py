"""Models: CLIP's encoders, prompts, and what ReID adds to them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svll.models.trained_model import LoadedModel


def load_model(
    path: str | Path, device: str = "cpu", *,
    height: int | None = None, width: int | None = None, stride: int | None = None,
) -> "LoadedModel":
    """Load trained weights of ours or a published `.pth`; see `svll.models.weights.load`."""
    from svll.models.weights import load as checkpoints  # torch: importing this package stays cheap

    return checkpoints.load_model(path, device, height=height, width=width, stride=stride)
