"""How scores are written down: lines for people, a table, and CSV.

Cameras are the dataset's numbers.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import write_text
from svll.base.protocols import PROTOCOLS
from svll.evaluation.feature_files.scores import Score
from svll.evaluation.feature_files.sources import Source

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


def protocol_lines(sources: Iterable[Source]) -> Iterator[str]:
    """Yield what each protocol leaves out."""
    for name in dict.fromkeys(source.protocol for source in sources):
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
    """Yield the camera pairs of each score and the notes on each source."""
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


# ---- a table ----


def table_rows(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a table of several scores."""
    columns = ["file", "dataset", "protocol", "k1", "k2", "weight", "mAP", "mINP",
               *(f"Rank-{rank}" for rank in RANKS)]
    rows = []
    for name, item in zip(_short(scores), scores, strict=True):
        numbers = item.result.as_json(RANKS)
        interval = f" [{item.interval[0]:.4f}, {item.interval[1]:.4f}]" if item.interval else ""
        rerank = item.settings["rerank"] or {}
        rows.append([
            name, item.source.dataset, item.source.protocol,
            *(str(rerank.get(key, "")) for key in ("k1", "k2", "weight")),
            f"{numbers['mAP']:.4f}{interval}", f"{numbers['mINP']:.4f}",
            *(f"{value:.4f}" for value in numbers["cmc"].values()),
        ])
    return columns, rows


def table_remarks(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the settings that the table has no column for, with the files that have them."""
    said: dict[str, list[str]] = {}
    for name, item in zip(_short(scores), scores, strict=True):
        said.setdefault(settings_words(item.settings, rerank=False), []).append(name)
    for words, which in said.items():
        whose = "all" if len(said) == 1 else ", ".join(dict.fromkeys(which))
        yield f"{whose}: {words}; re-ranked where k1, k2 and weight are given"


def _short(scores: Sequence[Score]) -> list[str]:
    """Return the paths of the files without the folders that all of them share."""
    parts = [Path(item.source.where).parts for item in scores]
    shared = 0
    while len(set(parts)) > 1 and len({part[: shared + 1] for part in parts}) == 1:
        shared += 1
    return [str(Path(*part[shared:])) for part in parts]


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


def write_per_query(path: Path, scores: Sequence[Score]) -> None:
    """Write `per_query_csv` to a file; names that are not UTF-8 keep their bytes.

    Raises UserError where the file cannot be written.
    """
    try:
        write_text(path, "".join(per_query_csv(scores)), errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
