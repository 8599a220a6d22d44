"""Scores as lines of text, a table, and CSV; cameras have the dataset's numbers."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.base.units import counted
from svll.base.protocol_names import PROTOCOLS
from svll.evaluation.feature_files.scores import Score, VerificationScore
from svll.evaluation.feature_files.sources import Source

RANKS = (1, 5, 10)
RERANKING = ("k1", "k2", "weight")
SETTINGS = ("protocol", "own_image", "metric", "normalise", "multi_query", "expand", "alpha",
            *RERANKING)
"""Columns of settings in CSV."""


def columns(settings: Mapping[str, Any]) -> list[Any]:
    """Return the values of SETTINGS, empty for settings that do not apply."""
    expand = settings["expand"] or {}
    flat = {**settings, **(settings["rerank"] or {}), "alpha": expand.get("alpha"),
            "expand": expand.get("count")}
    values = [flat.get(name, "") for name in SETTINGS]
    return [str(value).lower() if isinstance(value, bool) else value for value in values]


def settings_text(settings: Mapping[str, Any], *, rerank: bool = True) -> str:
    """Describe all settings but the protocol; without `rerank`, leave out re-ranking."""
    unit = "L2-normalised features" if settings["normalise"] else "features as stored"
    parts = [f"{settings['metric']} distance of {unit}"]
    if settings["own_image"]:
        parts.append(f"own images recognised by {settings['own_image']}")
    if settings["multi_query"]:
        parts.append("multi-query (mean of an identity's queries under a camera)")
    if expand := settings["expand"]:
        parts.append(f"query expansion (count={expand['count']}, alpha={expand['alpha']:g})")
    if rerank and (used := settings["rerank"]):
        parts.append(f"re-ranked (k1={used['k1']}, k2={used['k2']}, weight={used['weight']:g})")
    elif rerank:
        parts.append("not re-ranked")
    return ", ".join(parts)


def protocol_lines(sources: Iterable[Source]) -> Iterator[str]:
    """Yield what each protocol leaves out."""
    for name in dict.fromkeys(source.protocol for source in sources):
        yield f"{name}: {PROTOCOLS[name]}"


def score_lines(item: Score) -> Iterator[str]:
    """Yield the metrics of one score as fractions, and their settings."""
    result = item.result
    cmc = result.as_json(RANKS)["cmc"]
    numbers = {"mAP": result.mAP, "mINP": result.mINP} | {f"Rank-{r}": cmc[r] for r in cmc}
    low_high = [f"{bound:.4f}" for bound in item.interval or ()]
    interval = f"  (95 %: {' to '.join(low_high)})" if low_high else ""
    for name, value in numbers.items():
        yield f"{name:8}{value:.4f}{interval if name == 'mAP' else ''}"
    skipped = f", {result.skipped} without a match left out" if result.skipped else ""
    text = settings_text(item.settings)
    queries = counted(result.queries, "query", "queries")
    yield f"{queries}{skipped}; {item.source.protocol}, {text}"


def more_lines(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the camera pairs of each score and the notes on each source."""
    for item in scores:
        if item.camera_pairs:
            yield (f"\n{item.source.where}, camera pairs: {item.source.protocol}, "
                   f"{settings_text(item.settings)}")
            yield "query camera, gallery camera, queries, mAP, Rank-1"
        for pair in item.camera_pairs or ():
            yield (f"{pair.query_camera:6}{pair.gallery_camera:6}{pair.queries:8}  "
                   f"{pair.mAP:.4f}  {pair.rank1:.4f}")
    for item in {id(item.source): item for item in scores}.values():
        yield from (f"{item.source.where}: {note}" for note in item.notes)


def verification_lines(item: VerificationScore) -> Iterator[str]:
    """Yield the headline numbers of one verification, and their settings."""
    numbers, source = item.as_json()["verification"], item.source
    draw = " of the first draw" if source.protocol == "random_gallery" else ""
    pooled = ", multi-query" if source.is_multi_query else ""
    yield (f"{source.where}: verification of {numbers['genuine_pairs']:,} genuine and "
           f"{numbers['impostor_pairs']:,} impostor pairs{draw}: {source.protocol}{pooled}, cosine "
           "similarity")
    yield f"AUC {numbers['auc']:.4f}"
    equal = numbers["eer_threshold"]
    yield (f"EER {numbers['eer']:.4f} at similarity {equal['similarity']:.4f} "
           f"(distance {equal['distance']:.4f})")
    for rate, rates in numbers["tpr_at_fpr"].items():
        if rates is not None:
            yield _rates(f"FPR at most {rate}", rates)
    yield from numbers["notes"]
    if "applied" in numbers:
        yield _rates("threshold given", numbers["applied"])


def _rates(name: str, rates: Mapping[str, Any]) -> str:
    precision = "none" if rates["precision"] is None else f"{rates['precision']:.4f}"
    return (f"{name}: TPR {rates['tpr']:.4f} FPR {rates['fpr']:.2e} precision {precision} "
            f"accuracy {rates['accuracy']:.4f} at similarity {rates['threshold']:.4f}")


# ---- a table ----


def table_rows(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a table of several scores."""
    columns = ["file", "dataset", "protocol", *RERANKING, "mAP", "mINP",
               *(f"Rank-{rank}" for rank in RANKS)]
    rows = []
    for name, item in zip(_short(scores), scores, strict=True):
        numbers = item.result.as_json(RANKS)
        interval = f" [{item.interval[0]:.4f}, {item.interval[1]:.4f}]" if item.interval else ""
        rerank = item.settings["rerank"] or {}
        rows.append([name, item.source.dataset, item.source.protocol,
                     *(str(rerank.get(key, "")) for key in RERANKING),
                     f"{numbers['mAP']:.4f}{interval}", f"{numbers['mINP']:.4f}",
                     *(f"{value:.4f}" for value in numbers["cmc"].values())])
    return columns, rows


def table_remarks(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the settings without a column in the table, with their files."""
    files: dict[str, list[str]] = {}
    for name, item in zip(_short(scores), scores, strict=True):
        files.setdefault(settings_text(item.settings, rerank=False), []).append(name)
    for text, names in files.items():
        whose = "all" if len(files) == 1 else ", ".join(dict.fromkeys(names))
        yield f"{whose}: {text}; re-ranked where k1, k2 and weight are given"


def _short(scores: Sequence[Score]) -> list[str]:
    """Return the paths of the files without the folders that all of them share."""
    parts = [Path(item.source.where).parts for item in scores]
    shared = 0
    while len(set(parts)) > 1 and len({part[: shared + 1] for part in parts}) == 1:
        shared += 1
    return [str(Path(*part[shared:])) for part in parts]


# ---- CSV ----


def to_csv(scores: Sequence[Score]) -> str:
    """Return a heading and one line for each score."""
    lines: list[list[Any]] = [[
        "file", "dataset", *SETTINGS, "mAP", "mINP", *(f"rank{rank}" for rank in RANKS), "queries",
        "skipped", "mAP_low", "mAP_high",
    ]]
    for item in scores:
        result = item.result
        lines.append([item.source.where, item.source.dataset, *columns(item.settings), result.mAP,
                      result.mINP, *(result.as_json(RANKS)["cmc"].get(str(r)) for r in RANKS),
                      result.queries, result.skipped, *(item.interval or ("", ""))])
    return _csv(lines)


def per_query_csv(scores: Sequence[Score]) -> str:
    """Return a line for each query of each score: its labels, metrics, and rows ranked first."""
    places = range(1, max(item.result.nearest.shape[1] for item in scores) + 1)
    lines: list[list[Any]] = [[
        "file", *SETTINGS, "query", "path", "identity", "camera", "average_precision",
        "first_rank", *(f"row{n}" for n in places), *(f"distance{n}" for n in places),
    ]]
    for item in scores:
        result, asking = item.result, item.source.asking
        for row, precision in enumerate(result.average_precision.tolist()):
            lines.append([
                item.source.where, *columns(item.settings), row,
                asking.paths[row] if asking.paths else "", asking.identities[row],
                item.source.camera(int(asking.cameras[row])),
                "" if precision != precision else precision,  # NaN: the query was skipped
                result.first_rank[row] or "",
                *("" if near < 0 else near for near in result.nearest[row].tolist()),
                *("" if far == float("inf") else far for far in result.distances[row].tolist()),
            ])
    return _csv(lines)


def write_per_query(path: Path, scores: Sequence[Score]) -> None:
    """Write `per_query_csv`, names with their bytes; UserError if the file cannot be written."""
    try:
        write_text(path, per_query_csv(scores), errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
