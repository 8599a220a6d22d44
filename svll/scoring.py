"""Validation and test of a run's models: the features of a part, ranked by its protocol."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.training import ranks
from svll.base.feature_file import open_features
from svll.data.splits import Part
from svll.evaluation import KReciprocal, RankingResult, evaluate_ranking
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.feature_files.score_text import RANKS
from svll.features.extract import FeatureTarget, encode_pair, encode_to_file
from svll.features.feature_hashes import feature_key, file_hash
from svll.features.files import feature_paths
from svll.inputs import Inputs, starting_clip
from svll.models.reid import ReIDModel
from svll.reuse import cache

log = logging.getLogger(__name__)


def encode(inputs: Inputs, model: ReIDModel, part: Part) -> tuple[Tensor, Tensor]:
    """Return a part's test features [Q, W + D] and [G, W + D]."""
    side = partial(inputs.splits.places, dataset=part.dataset)
    return encode_pair(part.query, part.gallery, inputs.reader(), side, model.encode_image)


def rank(part: Part, query: Any, gallery: Any, rerank: KReciprocal | None = None) -> RankingResult:
    """Rank a part's gallery by its protocol; all ranks share the work."""
    return evaluate_ranking(
        query, gallery, part.query.identities, part.gallery.identities, part.query.cameras,
        part.gallery.cameras, protocol=part.protocol, rerank=rerank, share=Share.of_this_rank(),
        query_images=part.query.paths, gallery_images=part.gallery.paths,
    )


def final_metrics(inputs: Inputs, model: ReIDModel) -> dict[str, Any]:
    """Write the test features and return the result: test, validation and starting metrics.

    With several test sets, the first one's numbers are at the top, and all are under `tests`.
    """
    tests = {part.name: _test(inputs, model, part) for part in inputs.splits.tests}
    initial, first = initial_metrics(inputs), inputs.splits.tests[0].name
    result = dict(tests[first])
    validations = [m["validation"] for m in inputs.run.metrics() if "validation" in m]
    if validations:
        result["validation"] = validations[-1]
    result["initial"] = initial[first]
    if len(tests) > 1:
        result["tests"] = {name: {**tests[name], "initial": initial[name]} for name in tests}
    return result | {
        "trained_on": [dataset.name for dataset in inputs.datasets.train],
        "fingerprint": inputs.datasets.fingerprint, "signature": inputs.run.signature,
    }


def _test(inputs: Inputs, model: ReIDModel, part: Part) -> dict[str, Any]:
    """Write one test set's features, and return the metrics of the written features."""
    write_features(inputs, model, part)
    settings = inputs.config.evaluation
    with open_features(features_path(inputs, part), ("query", "gallery")) as file:
        query, gallery = (file.groups[name].features for name in ("query", "gallery"))
        result: dict[str, Any] = rank(part, query, gallery).as_json()
        if settings.rerank:
            rerank = KReciprocal(settings.k1, settings.k2, settings.weight)
            reranked = rank(part, query, gallery, rerank).as_json()
            result["reranked"] = {"rerank": asdict(rerank), **reranked}
    log.info("%s: test mAP %.4f, rank-1 %.4f", part.name, result["mAP"], result["cmc"]["1"])
    return result | {"dataset": part.name, "protocol": part.protocol}


def features_path(inputs: Inputs, part: Part) -> Path:
    """Return where a test set's features are."""
    place = [test.name for test in inputs.splits.tests].index(part.name)
    return feature_paths(inputs.run, inputs.config)[place]


def write_features(inputs: Inputs, model: ReIDModel, part: Part) -> None:
    """Write one test set's features unless they exist."""
    path, reader = features_path(inputs, part), inputs.reader()
    dtype = inputs.config.evaluation.feature_dtype
    key = ranks.on_leader(lambda: "" if path.exists() else feature_key(
        inputs.datasets.fingerprint, file_hash(inputs.run.weights_file), inputs.config, reader,
        part.name, reader.batch, dtype,
    ))
    if key:
        target = FeatureTarget(path, part.name, inputs.run.signature, part.protocol, key,
                               part.first_camera, dtype)
        side = partial(inputs.splits.places, dataset=part.dataset)
        encode_to_file(target, part.query, part.gallery, reader, side, model.encode_image)


def remove_features(inputs: Inputs) -> None:
    """Remove the features of earlier weights."""
    with ranks.leader_first() as acts:
        for part in inputs.splits.tests if acts else ():
            features_path(inputs, part).unlink(missing_ok=True)


def initial_metrics(inputs: Inputs) -> dict[str, Any]:
    """Return the starting encoder's test metrics by test set; cached for all runs with it."""
    config, reader = inputs.config, inputs.reader()
    key = feature_key(
        inputs.datasets.fingerprint, inputs.clip.weights_hash, config, reader,
        [part.name for part in inputs.splits.tests], config.evaluation.protocol or True,
    )

    def measure() -> dict[str, Any]:
        model = ReIDModel(starting_clip(config).image.to(ranks.device()).eval(), None)
        tests = inputs.splits.tests
        return {p.name: rank(p, *encode(inputs, model, p)).as_json(RANKS) for p in tests}

    return cache.shared_json(inputs.cache / "initial" / f"{key}.json", measure)
