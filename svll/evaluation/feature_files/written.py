"""How scores are written down: lines for people, and CSV. Cameras are the dataset's numbers."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from svll.evaluation.feature_files.scores import Score
from svll.protocols import PROTOCOLS

RANKS = (1, 5, 10)
SETTINGS = (
    "protocol", "own_image", "metric", "normalise", "multi_query", "expand", "alpha", "k1", "k2",
    "weight",
)
"""Columns of a table that say what is in force."""


def columns(settings: Mapping[str, Any]) -> list[Any]:
    """Return the values of SETTINGS, empty where something is not in force."""
    expand, rerank = settings["expand"] or {}, settings["rerank"] or {}
    values = {
        **settings, "normalise": str(settings["normalise"]).lower(),
        "multi_query": str(settings["multi_query"]).lower(), "expand": expand.get("count"),
        "alpha": expand.get("alpha"), **{name: rerank.get(name) for name in ("k1", "k2", "weight")},
    }
    return ["" if values[name] is None else values[name] for name in SETTINGS]


def settings_words(settings: Mapping[str, Any], *, rerank: bool = True) -> str:
    """Say all that is in force but the protocol; without `rerank`, leave out re-ranking."""
    unit = "L2-normalised features" if settings["normalise"] else "features as stored"
    parts = [f"{settings['metric']} distance of {unit}"]
    if settings["own_image"]:
        parts.append(f"own images known by {settings['own_image']}")
    if settings["multi_query"]:
        parts.append("multi-query (mean of an identity's queries under a camera)")
    if expand := settings["expand"]:
        parts.append(f"query expansion (count={expand['count']}, alpha={expand['alpha']:g})")
    if rerank:
        parts.append(reranking_words(settings))
    return ", ".join(parts)


def reranking_words(settings: Mapping[str, Any]) -> str:
    """Return the re-ranking settings in words, or 'not re-ranked'."""
    used = settings["rerank"]
    if not used:
        return "not re-ranked"
    return f"re-ranked (k1={used['k1']}, k2={used['k2']}, weight={used['weight']:g})"


def protocol_lines(scores: Sequence[Score]) -> Iterator[str]:
    """Yield what each protocol leaves out."""
    for name in dict.fromkeys(item.source.protocol for item in scores):
        yield f"{name}: {PROTOCOLS[name]}"


def score_lines(item: Score) -> Iterator[str]:
    """Yield the metrics of one score as fractions, and what they are of."""
    result = item.result
    cmc = result.as_json(RANKS)["cmc"]
    numbers = {"mAP": result.mAP, "mINP": result.mINP} | {f"Rank-{r}": cmc[r] for r in cmc}
    for name, value in numbers.items():
        interval = ""
        if name == "mAP" and item.interval:
            interval = f"  (95 %: {item.interval[0]:.4f} to {item.interval[1]:.4f})"
        yield f"{name:8}{value:.4f}{interval}"
    skipped = f", {result.skipped} without a match left out" if result.skipped else ""
    said = settings_words(item.settings)
    yield f"{result.queries} queries{skipped}; {item.source.protocol}, {said}"


def more_lines(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the camera pairs of each score and the verification of each source."""
    told = set()
    for item in scores:
        where, protocol = item.source.where, item.source.protocol
        if item.camera_pairs:
            yield f"\n{where}, camera pairs: {protocol}, {settings_words(item.settings)}"
            yield "query camera, gallery camera, queries, mAP, Rank-1"
            for pair in item.camera_pairs:
                yield (
                    f"{pair.query_camera:6}{pair.gallery_camera:6}{pair.queries:8}  "
                    f"{pair.mAP:.4f}  {pair.rank1:.4f}"
                )
        if id(item.source) in told:
            continue
        told.add(id(item.source))
        yield from (f"{where}: {note}" for note in item.notes)
        if item.verification:
            yield from _verification_lines(item)


def _verification_lines(item: Score) -> Iterator[str]:
    numbers = item.as_json()["verification"]
    equal = numbers["eer_threshold"]
    draw = " of the first draw" if item.source.protocol == "random_gallery" else ""
    pooled = ", multi-query" if item.settings["multi_query"] else ""
    yield (
        f"\n{item.source.where}: same identity or not, {numbers['genuine_pairs']:,} genuine and "
        f"{numbers['impostor_pairs']:,} impostor pairs{draw}: {item.source.protocol}{pooled}, "
        "cosine similarity"
    )
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


def _rates(name: str, found: Mapping[str, Any]) -> str:
    precision = "none" if found["precision"] is None else f"{found['precision']:.4f}"
    return (
        f"{name}: TPR {found['tpr']:.4f} FPR {found['fpr']:.2e} precision {precision} "
        f"accuracy {found['accuracy']:.4f} at similarity {found['threshold']:.4f}"
    )


# ---- CSV ----


def to_csv(scores: Sequence[Score]) -> Iterator[str]:
    """Yield a heading and one line for each score."""
    yield _line([
        "file", "dataset", *SETTINGS, "mAP", "mINP", *(f"rank{rank}" for rank in RANKS), "queries",
        "skipped", "mAP_low", "mAP_high",
    ])
    for item in scores:
        result = item.result
        yield _line([
            item.source.where, item.source.dataset, *columns(item.settings), result.mAP,
            result.mINP, *(result.as_json(RANKS)["cmc"].get(str(r)) for r in RANKS),
            result.queries, result.skipped, *(item.interval or ("", "")),
        ])


def per_query_csv(scores: Sequence[Score]) -> Iterator[str]:
    """Yield lines for each query of each score: its labels, its metrics, the rows ranked first."""
    most = max(item.result.nearest.shape[1] for item in scores)
    yield _line([
        "file", *SETTINGS, "query", "path", "identity", "camera", "average_precision",
        "first_rank", *(f"row{n}" for n in range(1, most + 1)),
        *(f"distance{n}" for n in range(1, most + 1)),
    ])
    for item in scores:
        result, asking = item.result, item.source.asking
        for row, precision in enumerate(result.average_precision.tolist()):
            yield _line([
                item.source.where, *columns(item.settings), row,
                asking.paths[row] if asking.paths else "", asking.identities[row],
                item.source.camera(int(asking.cameras[row])),
                "" if precision != precision else precision,  # NaN: the query was skipped
                result.first_rank[row] or "",
                *("" if near < 0 else near for near in result.nearest[row].tolist()),
                *("" if far == float("inf") else far for far in result.distances[row].tolist()),
            ])


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
