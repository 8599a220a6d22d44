"""Models: CLIP's encoders, prompts, and what ReID adds to them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svll.models.trained_model import LoadedModel


def load_model(
    path: str | Path, device: str = "cpu", *,
    height: int | None = None, width: int | None = None, stride: int | None = None,
) -> "LoadedModel":
    """Load our weights or a published `.pth`; see `svll.models.weights.load.model_from_file`."""
    from svll.models.weights.load import model_from_file  # torch: importing svll.models is cheap

    return model_from_file(path, device, height=height, width=width, stride=stride)
