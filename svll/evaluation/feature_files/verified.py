"""Verification of feature sources: what is measured, as JSON and in lines for people."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.engine.ranks import Share
from svll.evaluation.feature_files.scores import verify_source
from svll.evaluation.feature_files.sources import Source, open_source
from svll.evaluation.verification import Verification

ROC_POINTS = 100


@dataclass(frozen=True, eq=False)
class Verified:
    """One source: how well a threshold on the similarity tells its identities apart."""

    source: Source
    verification: Verification
    threshold: float | None = None
    """A similarity from which two images count as one identity, found elsewhere."""

    def as_json(self) -> dict[str, Any]:
        """All numbers, with the file and the settings that they are of."""
        source = self.source
        numbers = self.verification.as_json() | {"roc": _curve(self.verification)}
        if self.threshold is not None:
            numbers["applied"] = asdict(self.verification.at(self.threshold))
        settings = {
            "protocol": source.protocol, "own_image": source.own_image,
            "multi_query": source.is_pooled,
        }
        return {
            "file": source.where, "dataset": source.dataset, "settings": settings,
            "verification": numbers,
        }

    def lines(self) -> Iterator[str]:
        """Yield the headline numbers, and what they are of."""
        numbers, source = self.as_json()["verification"], self.source
        draw = " of the first draw" if source.protocol == "random_gallery" else ""
        pooled = ", multi-query" if source.is_pooled else ""
        yield (
            f"{source.where}: same identity or not, {numbers['genuine_pairs']:,} genuine and "
            f"{numbers['impostor_pairs']:,} impostor pairs{draw}: {source.protocol}{pooled}, "
            "cosine similarity"
        )
        equal = numbers["eer_threshold"]
        yield f"AUC {numbers['auc']:.4f}"
        yield (
            f"EER {numbers['eer']:.4f} at similarity {equal['similarity']:.4f} "
            f"(distance {equal['distance']:.4f})"
        )
        for rate, found in numbers["tpr_at_fpr"].items():
            if found is not None:
                yield _rates(f"FPR at most {rate}", found)
        yield from numbers["notes"]
        if "applied" in numbers:
            yield _rates("threshold given", numbers["applied"])


def verified(
    source: Source, threshold: float | None = None, *, share: Share | None = None
) -> Verified:
    """Verify a source by its protocol; raises UserError, with its name, where that cannot be."""
    try:
        return Verified(source, verify_source(source, share=share), threshold)
    except UserError as error:
        raise UserError(f"{source.where}: {error}") from None


def found_threshold(
    path: Path, at_fpr: float | None = None, protocol: str | None = None, *,
    share: Share | None = None,
) -> float:
    """Return the similarity that tells the identities of a feature file apart.

    It is where both error rates are equal, or where the FPR is at most `at_fpr`. Raises UserError,
    with the file, where there is none.
    """
    with open_source(path, protocol=protocol) as source:
        found = verified(source, share=share).verification
    try:
        return found.threshold(at_fpr)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _curve(verification: Verification) -> dict[str, list[float]]:
    """Return some points of the ROC curve, evenly apart in log FPR, and its ends."""
    roc = verification.roc
    rates = np.geomspace(1.0 / verification.impostor_pairs, 1.0, ROC_POINTS)
    places = np.unique([0, *np.searchsorted(roc.fpr, rates, "right") - 1, len(roc.fpr) - 1])
    curve = {"fpr": roc.fpr, "tpr": roc.tpr, "threshold": roc.thresholds}
    return {name: values[places].tolist() for name, values in curve.items()}


def _rates(name: str, found: Mapping[str, Any]) -> str:
    precision = "none" if found["precision"] is None else f"{found['precision']:.4f}"
    return (
        f"{name}: TPR {found['tpr']:.4f} FPR {found['fpr']:.2e} precision {precision} "
        f"accuracy {found['accuracy']:.4f} at similarity {found['threshold']:.4f}"
    )
