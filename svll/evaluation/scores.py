"""Scores of feature sources under several settings, and how they are written down."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Unpack

import numpy as np

from harness.errors import UserError
from svll.evaluation.bootstrap import interval
from svll.evaluation.camera_pairs import CameraPair, evaluate_camera_pairs
from svll.evaluation.protocols import drawn_labels, evaluate_protocol_settings
from svll.evaluation.ranking import Options, RankingResult
from svll.evaluation.reranking import KReciprocal
from svll.evaluation.sharing import Share
from svll.evaluation.sources import Source
from svll.evaluation.verification import Verification, verify

RANKS = (1, 5, 10)
ROC_POINTS = 100


@dataclass(frozen=True)
class Extra:
    """What is measured besides the ranking."""

    bootstrap: bool = False
    camera_pairs: bool = False
    verification: bool = False
    threshold: float | None = None
    """A similarity from which two images count as one identity, found elsewhere."""


@dataclass(frozen=True, eq=False)
class Score:
    """One source under one setting."""

    source: Source
    setting: KReciprocal | None
    result: RankingResult
    interval: tuple[float, float] | None = None
    """Between which the mAP lies with 95 % confidence."""
    camera_pairs: Sequence[CameraPair] = field(default_factory=list)
    verification: Verification | None = None
    threshold: float | None = None

    @property
    def columns(self) -> tuple[Any, Any, Any]:
        """k1, k2 and weight for a table, empty without re-ranking."""
        setting = self.setting
        return (setting.k1, setting.k2, setting.weight) if setting else ("", "", "")

    def as_json(self, *, several: bool = False) -> dict[str, Any]:
        """All numbers; of several scores each says which file and setting it is of."""
        about = {
            "file": self.source.where, "dataset": self.source.dataset,
            "rerank": asdict(self.setting) if self.setting else None,
        }
        numbers = self.result.as_json() | {"protocol": self.source.protocol}
        if self.interval:
            numbers["mAP_interval"] = list(self.interval)
        if self.camera_pairs:
            numbers["camera_pairs"] = [asdict(pair) for pair in self.camera_pairs]
        if self.verification:
            numbers["verification"] = self.verification.as_json()
            numbers["verification"]["roc"] = _curve(self.verification)
            if self.threshold is not None:
                applied = self.verification.at(self.threshold)
                numbers["verification"]["applied"] = asdict(applied)
        return about | numbers if several else numbers


def _curve(verification: Verification) -> dict[str, list[float]]:
    """Some points of the ROC curve, evenly apart in log FPR, and its ends."""
    roc = verification.roc
    rates = np.geomspace(1.0 / verification.impostor_pairs, 1.0, ROC_POINTS)
    places = np.unique([0, *np.searchsorted(roc.fpr, rates, "right") - 1, len(roc.fpr) - 1])
    curve = {"fpr": roc.fpr, "tpr": roc.tpr, "threshold": roc.thresholds}
    return {name: values[places].tolist() for name, values in curve.items()}


def score(
    source: Source, settings: Sequence[KReciprocal | None], extra: Extra,
    **options: Unpack[Options],
) -> list[Score]:
    """Score a source under each setting; what is wrong with it is told with its name."""
    query, gallery = source.query, source.gallery
    given = (
        query.features, gallery.features, query.identities, gallery.identities, query.cameras,
        gallery.cameras,
    )
    try:
        _refuse_without_cameras(source, extra, options)
        results = evaluate_protocol_settings(source.protocol, *given, settings, **options)
        pairs = evaluate_camera_pairs(*given, **options) if extra.camera_pairs else []
        verification = None
        if extra.verification:
            verification = verify_source(
                source, camera_filter=options.get("camera_filter", True), share=options.get("share")
            )
    except UserError as error:
        message = str(error).replace("camera_filter=False", "--no-camera-filter")
        raise UserError(f"{source.where}: {message}") from None
    return [
        Score(
            source, setting, result,
            interval(result.average_precision, source.asking.identities)
            if extra.bootstrap else None,
            pairs, verification, extra.threshold,
        )
        for setting, result in zip(settings, results, strict=True)
    ]


def verify_source(
    source: Source, *, camera_filter: bool = True, share: Share | None = None
) -> Verification:
    """Same identity or not, over the pairs that the source's protocol compares."""
    query, gallery = source.query, source.gallery
    if source.protocol == "random_gallery":  # the first draw
        labels = drawn_labels(gallery.identities)
        cameras = np.zeros_like(labels[0])
        return verify(
            gallery.features, gallery.features, *labels, cameras, cameras, camera_filter=False,
            share=share,
        )
    return verify(
        query.features, gallery.features, query.identities, gallery.identities, query.cameras,
        gallery.cameras, camera_filter=camera_filter and source.protocol == "cross_camera",
        share=share,
    )


def _refuse_without_cameras(source: Source, extra: Extra, options: Options) -> None:
    asked = {
        "--camera-pairs": extra.camera_pairs,
        "--cross-camera-only": options.get("cross_camera_only", False),
    }
    if source.protocol == "random_gallery" and (names := [n for n, v in asked.items() if v]):
        raise UserError(
            f"the protocol random_gallery knows no cameras; leave out {' and '.join(names)}"
        )


# ---- written down ----


def to_csv(scores: Sequence[Score]) -> Iterator[str]:
    """One line for each score, under a heading."""
    yield _line([
        "file", "dataset", "protocol", "k1", "k2", "weight", "mAP", "mINP",
        *(f"rank{rank}" for rank in RANKS), "queries", "skipped", "mAP_low", "mAP_high",
    ])
    for item in scores:
        result = item.result
        yield _line([
            item.source.where, item.source.dataset, item.source.protocol, *item.columns,
            result.mAP, result.mINP, *(result.as_json(RANKS)["cmc"].get(str(r)) for r in RANKS),
            result.queries, result.skipped, *(item.interval or ("", "")),
        ])


def per_query_csv(scores: Sequence[Score]) -> Iterator[str]:
    """Lines for each query of each score: its labels, its metrics, the rows ranked first."""
    most = max(item.result.nearest.shape[1] for item in scores)
    yield _line([
        "file", "k1", "k2", "weight", "query", "path", "identity", "camera", "average_precision",
        "first_rank", *(f"row{n}" for n in range(1, most + 1)),
        *(f"distance{n}" for n in range(1, most + 1)),
    ])
    for item in scores:
        result, asking = item.result, item.source.asking
        for row, precision in enumerate(result.average_precision.tolist()):
            yield _line([
                item.source.where, *item.columns, row, asking.paths[row] if asking.paths else "",
                asking.identities[row], asking.cameras[row],
                "" if precision != precision else precision,  # NaN: the query was skipped
                result.first_rank[row] or "",
                *("" if near < 0 else near for near in result.nearest[row].tolist()),
                *("" if far == float("inf") else far for far in result.distances[row].tolist()),
            ])


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
