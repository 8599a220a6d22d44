"""SVLL-ReID: self-supervised vision-language learning for image re-identification.

    svll.load(path)                 trained weights, to encode images with
    svll.evaluate(query, gallery, query_identities, gallery_identities, ...)
                                    mAP, mINP and CMC of features
    svll.rerank(query, gallery)     the nearest gallery images after k-reciprocal re-ranking
    svll.losses                     the losses of both stages
    svll.KReciprocal, svll.QueryExpansion
                                    settings of `evaluate`
    svll.__version__
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import named

if TYPE_CHECKING:  # torch and Numba: importing svll stays cheap
    from svll import losses as losses
    from svll.evaluation import KReciprocal, QueryExpansion, rerank
    from svll.evaluation import evaluate_ranking as evaluate
    from svll.models.extractor import Extractor

__version__ = "0.1.0"
__all__ = ["KReciprocal", "QueryExpansion", "__version__", "evaluate", "load", "losses", "rerank"]

MOVED = {
    "svll.preparing.prepare": "svll.runs.prepare.prepare",
    "svll.reporting.report_sweep": "svll.reports.report.report_sweep",
}
"""Functions that configurations of earlier runs name, and where they are now."""


def __getattr__(name: str) -> Any:
    """Import what is used only when it is first used."""
    if name == "losses":
        return importlib.import_module("svll.losses")
    if name in __all__:
        own_name = "evaluate_ranking" if name == "evaluate" else name
        return getattr(importlib.import_module("svll.evaluation"), own_name)
    raise AttributeError(f"module 'svll' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


@named
def load(
    path: str | Path, device: str = "cpu", *, batch: int = 64,
    height: int | None = None, width: int | None = None, stride: int | None = None,
) -> "Extractor":
    """Load trained weights for use: `svll.load(path).encode(images)`.

    Args:
        path: a weights file, the folder of a finished run, a published `.pth`, or `svll-tiny`, the
            shipped CLIP before any ReID training.
        device: where the model computes, such as `cuda`.
        batch: images encoded at a time.
        height, width, stride: input size and patch stride, if a published file lacks them.

    Loads no DeepSpeed or Ray. Raises UserError for other files.

    >>> model = svll.load("svll-tiny")
    >>> model
    Extractor('svll-tiny', 64x32 pixels, 256-d features, cpu)
    >>> model.encode([np.zeros((200, 90, 3), np.uint8)]).shape
    (1, 256)
    """
    from svll.models.extractor import Extractor
    from svll.models.weights.load import model_from_file

    model = model_from_file(path, device, height=height, width=width, stride=stride)
    return Extractor(model, batch=batch, name=str(path))
