"""Scores of feature sources: ranking under several settings, and verification."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.bootstrap import interval
from svll.evaluation.camera_pairs import CameraPair, evaluate_camera_pairs
from svll.evaluation.engine.feature_rows import JUNK
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.feature_files.sources import Source
from svll.evaluation.own_images import image_numbers
from svll.evaluation.pair import Pair, check_pair
from svll.evaluation.protocols import draw_pair, evaluate_protocol, warn_of_zeros
from svll.evaluation.ranking import USUAL, Options, RankingResult
from svll.evaluation.reranking import KReciprocal
from svll.evaluation.verification import Verification, verify

ROC_POINTS = 100


@dataclass(frozen=True, eq=False)
class Score:
    """One source under one setting."""

    source: Source
    settings: dict[str, Any]
    """All settings by name; see `settings_of`."""
    result: RankingResult
    interval: tuple[float, float] | None = None
    """The 95 % confidence interval of the mAP."""
    camera_pairs: Sequence[CameraPair] | None = None
    """With the dataset's camera numbers; None unless requested."""
    verification: Verification | None = None
    """Not in the JSON; see `VerificationScore`."""
    notes: Sequence[str] = field(default_factory=list)
    """Why a requested measurement is missing."""

    def as_json(self) -> dict[str, Any]:
        """Return all numbers, with their file and settings."""
        numbers = {
            "file": self.source.where, "dataset": self.source.dataset, "settings": self.settings,
        } | self.result.as_json()
        if self.interval:
            numbers["mAP_interval"] = list(self.interval)
        if self.camera_pairs is not None:
            numbers["camera_pairs"] = [asdict(pair) for pair in self.camera_pairs]
        if self.notes:
            numbers["notes"] = list(self.notes)
        return numbers


def score(
    source: Source, settings: Sequence[KReciprocal | None] = (None,), options: Options = USUAL, *,
    bootstrap: bool = False, camera_pairs: bool = False, verification: bool = False,
) -> list[Score]:
    """Score a source under each setting of re-ranking; UserErrors begin with its name."""
    notes = _why_no_pairs(source) if camera_pairs else []
    pairs: list[list[CameraPair]] | list[None] = [None for _ in settings]
    verified = None
    try:
        pair = source.pair
        if source.protocol == "all_gallery":  # find own images once for all measurements
            check_pair(pair)
            pair = pair._replace(numbers=image_numbers(pair))
        results = evaluate_protocol(source.protocol, pair, settings, options)
        warn_of_zeros(results[0], f"{source.where}: ")
        if camera_pairs:
            pairs = [[] for _ in settings] if notes else _pairs(source, pair, settings, options)
        if verification:
            verified = verify_source(source, pair, share=options.share)
    except UserError as error:
        raise UserError(f"{source.where}: {error}") from None
    return [Score(source, settings_of(source, setting, options), result,
                  _interval(source, result) if bootstrap else None, own, verified, notes)
            for setting, result, own in zip(settings, results, pairs, strict=True)]


def settings_of(source: Source, setting: KReciprocal | None, options: Options) -> dict[str, Any]:
    """Return all settings of a ranking; own_image: how it is recognised (path, or all features)."""
    return {"protocol": source.protocol, "own_image": source.own_image, "metric": options.metric,
            "normalise": options.is_unit, "multi_query": source.is_multi_query,
            "expand": None if options.expand is None else asdict(options.expand),
            "rerank": None if setting is None else asdict(setting)}


def _interval(source: Source, result: RankingResult) -> tuple[float, float]:
    """Return the 95 % interval of the mAP; under random_gallery, over the queries of all draws."""
    draws = np.atleast_2d(result.average_precision if result.draws is None else result.draws)
    return interval(draws.reshape(-1), np.tile(source.asking.identities, len(draws)))


def _why_no_pairs(source: Source) -> list[str]:
    """Return the reason if there are no camera pairs."""
    if source.protocol == "random_gallery":
        return ["no camera pairs: the protocol random_gallery has no cameras"]
    cameras = np.concatenate([
        group.cameras[group.identities != JUNK] for group in (source.query, source.gallery)
    ])
    if len(found := np.unique(cameras)) == 1:
        return [f"no camera pairs: all images are of camera {source.camera(int(found[0]))}, so "
                "there is one camera or cameras are unknown"]
    return []


def _pairs(
    source: Source, pair: Pair, settings: Sequence[KReciprocal | None], options: Options
) -> list[list[CameraPair]]:
    """Return the camera pairs under each setting, with the dataset's camera numbers."""
    def named(one: CameraPair) -> CameraPair:
        return replace(one, query_camera=source.camera(one.query_camera),
                       gallery_camera=source.camera(one.gallery_camera))

    options = replace(options, top_k=0)
    found = evaluate_camera_pairs(pair, settings, options, protocol=source.protocol)
    return [list(map(named, pairs)) for pairs in found]


# ---- verification ----


def verify_source(
    source: Source, pair: Pair | None = None, *, share: Share | None = None
) -> Verification:
    """Verify over the pairs of the source's protocol; of random_gallery, those of the first draw.
    """
    if source.protocol == "random_gallery":
        gallery = source.gallery
        return verify(draw_pair(gallery.features, gallery.identities), share=share)
    return verify(pair or source.pair, protocol=source.protocol, share=share)


@dataclass(frozen=True, eq=False)
class VerificationScore:
    """How well a threshold on the similarity separates the identities of one source."""

    source: Source
    verification: Verification
    threshold: float | None = None
    """A similarity threshold from another file, to be applied to this one."""

    def as_json(self) -> dict[str, Any]:
        """Return all numbers, with their file and settings."""
        source, roc = self.source, self.verification.roc
        # points evenly apart in log FPR, and both ends
        rates = np.geomspace(1.0 / self.verification.impostor_pairs, 1.0, ROC_POINTS)
        places = np.unique([0, *np.searchsorted(roc.fpr, rates, "right") - 1, len(roc.fpr) - 1])
        curve = {"fpr": roc.fpr, "tpr": roc.tpr, "threshold": roc.thresholds}
        numbers = self.verification.as_json()
        numbers["roc"] = {name: values[places].tolist() for name, values in curve.items()}
        if self.threshold is not None:
            numbers["applied"] = asdict(self.verification.at(self.threshold))
        settings = {"protocol": source.protocol, "own_image": source.own_image,
                    "multi_query": source.is_multi_query}
        return {"file": source.where, "dataset": source.dataset, "settings": settings,
                "verification": numbers}


def verification_score(
    source: Source, threshold: float | None = None, *, share: Share | None = None
) -> VerificationScore:
    """Verify a source by its protocol; UserError, with its name, if that is not possible."""
    try:
        return VerificationScore(source, verify_source(source, share=share), threshold)
    except UserError as error:
        raise UserError(f"{source.where}: {error}") from None
