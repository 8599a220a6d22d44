"""Scores of feature sources under several settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.bootstrap import interval
from svll.evaluation.camera_pairs import CameraPair, evaluate_camera_pairs
from svll.evaluation.engine.feature_rows import JUNK
from svll.evaluation.engine.ranks import Share
from svll.evaluation.feature_files.sources import Source
from svll.evaluation.own_images import image_numbers
from svll.evaluation.pair import Pair, check_pair
from svll.evaluation.protocols import drawn_pair, evaluate_protocol
from svll.evaluation.ranking import USUAL, Options, RankingResult
from svll.evaluation.reranking import KReciprocal
from svll.evaluation.verification import Verification, verify


@dataclass(frozen=True)
class Extra:
    """What is measured besides the ranking."""

    bootstrap: bool = False
    camera_pairs: bool = False
    verification: bool = False


@dataclass(frozen=True, eq=False)
class Score:
    """One source under one setting."""

    source: Source
    settings: dict[str, Any]
    """All that is in force, by name; see `in_force`."""
    result: RankingResult
    interval: tuple[float, float] | None = None
    """Between which the mAP lies with 95 % confidence."""
    camera_pairs: Sequence[CameraPair] | None = None
    """With cameras as the dataset numbers them; None where they were not asked for."""
    verification: Verification | None = None
    """Not in the JSON; see `svll.evaluation.feature_files.verified`."""
    notes: Sequence[str] = field(default_factory=list)
    """Why something that was asked for is not there."""

    def as_json(self) -> dict[str, Any]:
        """All numbers, with the file and the settings that they are of."""
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
    source: Source, settings: Sequence[KReciprocal | None], extra: Extra, options: Options = USUAL
) -> list[Score]:
    """Score a source by its protocol under each setting of re-ranking.

    Raises UserError, with the source's name, for what is wrong with it.
    """
    notes = []
    try:
        pair = _numbered(source)
        results = evaluate_protocol(source.protocol, pair, settings, options)
        pairs: list[list[CameraPair]] | list[None] = [None for _ in settings]
        if extra.camera_pairs:
            notes = _without_pairs(source)
            pairs = [[] for _ in settings] if notes else _pairs(source, pair, settings, options)
        verification = None
        if extra.verification:
            verification = verify_source(source, pair, share=options.share)
    except UserError as error:
        raise UserError(f"{source.where}: {error}") from None
    return [
        Score(
            source, in_force(source, setting, options), result,
            _interval(source, result) if extra.bootstrap else None, own, verification, notes,
        )
        for setting, result, own in zip(settings, results, pairs, strict=True)
    ]


def in_force(source: Source, setting: KReciprocal | None, options: Options) -> dict[str, Any]:
    """Return every setting that a ranking depends on, by name.

    own_image: how the query's own image is recognised (path, or labels and features).
    """
    return {
        "protocol": source.protocol, "own_image": source.own_image, "metric": options.metric,
        "normalise": options.is_unit, "multi_query": source.is_pooled,
        "expand": None if options.expand is None else asdict(options.expand),
        "rerank": None if setting is None else asdict(setting),
    }


def _interval(source: Source, result: RankingResult) -> tuple[float, float]:
    """Return the 95 % interval of the mAP; under random_gallery, over the queries of all draws."""
    draws = result.average_precision[None] if result.draws is None else result.draws
    return interval(draws.reshape(-1), np.tile(source.asking.identities, len(draws)))


def _without_pairs(source: Source) -> list[str]:
    """Why there are no camera pairs, where there are none."""
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
    """The camera pairs under each setting, with the dataset's numbers."""
    found = evaluate_camera_pairs(
        pair, settings, replace(options, top_k=0), protocol=source.protocol
    )
    return [
        [
            replace(
                one, query_camera=source.camera(one.query_camera),
                gallery_camera=source.camera(one.gallery_camera),
            )
            for one in pairs
        ]
        for pairs in found
    ]


def _numbered(source: Source) -> Pair:
    """Return the source's pair, with numbers of images, found once, where the protocol needs them.
    """
    pair = source.pair
    if source.protocol != "all_gallery":
        return pair
    check_pair(pair)
    return pair._replace(numbers=image_numbers(pair))


def verify_source(
    source: Source, pair: Pair | None = None, *, share: Share | None = None
) -> Verification:
    """Same identity or not, over the pairs that the source's protocol compares.

    Of random_gallery, over those of the first draw.
    """
    if source.protocol == "random_gallery":
        gallery = source.gallery
        return verify(drawn_pair(gallery.features, gallery.identities), share=share)
    return verify(pair or source.pair, protocol=source.protocol, share=share)
