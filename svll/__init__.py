"""SVLL-ReID: self-supervised vision-language learning for image re-identification."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svll.models.extractor import Extractor


def load(
    path: str | Path, device: str = "cpu", *, batch: int = 64,
    height: int | None = None, width: int | None = None, stride: int | None = None,
) -> "Extractor":
    """Load trained weights (file, run folder, published `.pth`) for use: `.encode(images)`.

    The other arguments are those of `svll.models.load_model`. Loads no DeepSpeed or Ray.
    """
    from svll.models import load_model
    from svll.models.extractor import Extractor  # torch: importing svll stays cheap

    model = load_model(path, device, height=height, width=width, stride=stride)
    return Extractor(model, batch=batch)
