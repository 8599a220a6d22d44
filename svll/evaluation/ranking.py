"""Retrieval metrics: CMC, mAP and mINP, exact for any size, without a Q x G matrix.

A metric needs only the rank of each true match, and that rank is one plus the number of gallery
images nearer to the query. So the product of queries and gallery is made block by block, the nearer
ones are counted, and the block is forgotten. What float32 cannot tell apart (see `rows.rounding`)
is compared again exactly. Results are therefore the same to the last digit for any block size,
number of threads, and device; equal distances rank by gallery index.

Letters: Q queries, G gallery images, D width, P true matches of all queries of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import UserError
from svll.evaluation import kernels
from svll.evaluation.reranking import KReciprocal, Reranking, rerank_rows
from svll.evaluation.rows import Block, Floats, Integers, Products, Rows, rounding, spread

QUERY_BLOCK, GALLERY_BLOCK = 1024, 4096  # 16 MB of products at a time
CHUNK_QUERIES, CHUNK_MATCHES = 16_384, 4_000_000  # some 100 MB of lists at a time


@dataclass(frozen=True)
class RankingResult:
    """Metrics as fractions, over the queries that have a match."""

    mAP: float
    mINP: float
    cmc: Floats
    """[max_rank]: share of queries whose first match is at rank r + 1 or better."""
    queries: int
    skipped: int
    """Queries left out because nothing in the gallery can match them."""
    average_precision: Floats
    """[Q], in the order of the queries; NaN for those skipped."""
    first_rank: Integers
    """[Q], the rank of the first match, from 1; 0 for queries skipped."""

    def as_json(self, ranks: tuple[int, ...] = (1, 5, 10)) -> dict[str, Any]:
        """The headline numbers, as written to result files and printed."""
        cmc = {str(r): float(self.cmc[r - 1]) for r in ranks if r <= len(self.cmc)}
        counts = {"queries": self.queries, "skipped": self.skipped}
        return {"mAP": self.mAP, "mINP": self.mINP, "cmc": cmc, **counts}


def evaluate_ranking(
    query: Any,
    gallery: Any,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    *,
    max_rank: int = 50,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    normalise: bool = True,
    camera_filter: bool = True,
    rerank: KReciprocal | None = None,
) -> RankingResult:
    """Rank the gallery [G, D] for every query [Q, D] and score the ranking.

    Features are numpy arrays, tensors (the products run where they are) or sliceable files, in
    float16 to float64; compared as float32 rows, of unit length unless `normalise` is off. Labels
    are integers [Q] and [G]. Identity -1 is junk: never a match, never ranked. Gallery images of
    the query's own identity and camera are not ranked either, unless `camera_filter` is off.
    Raises UserError for shapes that do not fit, rows that are not finite, and when no query has a
    match.
    """
    unit = normalise or metric == "cosine"
    labels = [query_identities, query_cameras, gallery_identities, gallery_cameras]
    q_ids, q_cams, g_ids, g_cams = (_integers(values) for values in labels)
    _check(query, gallery, [q_ids, q_cams, g_ids, g_cams], metric, max_rank)
    queries = Rows("query", query, q_ids, q_cams, unit=unit)
    candidates = Rows("gallery", gallery, g_ids, g_cams, unit=unit)
    matches = _Matches(queries, candidates, camera_filter)
    if not matches.found:
        raise UserError(_no_match(queries, candidates, camera_filter))
    products = Products(query, gallery)
    reranking = rerank_rows(queries, candidates, rerank, products) if rerank else None
    precision, first, penalty = (np.full(len(q_ids), np.nan) for _ in range(3))
    for chunk in matches.chunks():
        if not len(chunk.match_columns):
            continue
        owners, ranks = _ranks(chunk, queries, candidates, products, reranking)
        rows = queries.kept[chunk.first + np.unique(owners)]
        precision[rows], first[rows], penalty[rows] = _per_query(owners, ranks)
    return _summary(precision, first, penalty, max_rank)


def _summary(precision: Floats, first: Floats, penalty: Floats, max_rank: int) -> RankingResult:
    used = ~np.isnan(precision)
    hits = np.bincount(first[used].astype(np.int64).clip(max=max_rank + 1), minlength=max_rank + 2)
    return RankingResult(
        mAP=float(precision[used].mean()),
        mINP=float(penalty[used].mean()),
        cmc=np.cumsum(hits[1 : max_rank + 1]) / used.sum(),
        queries=int(used.sum()),
        skipped=int((~used).sum()),
        average_precision=precision,
        first_rank=np.where(used, first, 0).astype(np.int64),
    )


def _per_query(owners: Integers, ranks: Integers) -> tuple[Floats, Floats, Floats]:
    """Average precision, first rank and inverse penalty of each query in `owners` [P].

    AP is the mean, over a query's matches in the order of their ranks, of i / rank_i; mINP's
    inverse penalty is the number of matches over the rank of the last (Ye et al., 2021, sec. 4).
    """
    order = np.lexsort((ranks, owners))
    owners, ranks = owners[order], ranks[order]
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    counts = np.diff(np.r_[starts, len(owners)])
    place = np.arange(len(owners)) - np.repeat(starts, counts) + 1
    precision = np.add.reduceat(place / ranks, starts) / counts
    return precision, ranks[starts].astype(float), counts / ranks[starts + counts - 1]


# ---- who matches whom ----


@dataclass(frozen=True)
class _Chunk:
    """Queries `first` to `last` with their lists: offsets [q + 1] into columns, ascending."""

    first: int
    last: int
    match_offsets: Integers
    match_columns: Integers
    removed_offsets: Integers
    removed_columns: Integers


class _Matches:
    """For each query the gallery rows of its identity, by way of the gallery sorted by identity."""

    def __init__(self, queries: Rows, gallery: Rows, camera_filter: bool) -> None:
        self._order = np.argsort(gallery.identities, kind="stable")
        ids = gallery.identities[self._order]
        self._low = np.searchsorted(ids, queries.identities, "left")
        self._counts = np.searchsorted(ids, queries.identities, "right") - self._low
        self._query_cameras, self._gallery_cameras = queries.cameras, gallery.cameras
        self._camera_filter = camera_filter
        self.found = any(len(chunk.match_columns) for chunk in self.chunks())

    def chunks(self) -> Iterator[_Chunk]:
        """Runs of queries whose lists together stay within CHUNK_MATCHES (one query may exceed)."""
        first, total = 0, np.r_[0, np.cumsum(self._counts)]
        while first < len(self._counts):
            fits = int(np.searchsorted(total, total[first] + CHUNK_MATCHES, "right")) - 1
            last = max(first + 1, min(fits, first + CHUNK_QUERIES))
            yield self._chunk(first, last)
            first = last

    def _chunk(self, first: int, last: int) -> _Chunk:
        counts = self._counts[first:last]
        owners = np.repeat(np.arange(last - first), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self._order[np.repeat(self._low[first:last], counts) + within]
        same = self._gallery_cameras[columns] == self._query_cameras[first:last][owners]
        removed = same & self._camera_filter
        return _Chunk(
            first,
            last,
            *_lists(owners[~removed], columns[~removed], last - first),
            *_lists(owners[removed], columns[removed], last - first),
        )


def _lists(owners: Integers, columns: Integers, count: int) -> tuple[Integers, Integers]:
    return np.r_[0, np.cumsum(np.bincount(owners, minlength=count))], columns


# ---- ranks ----


@dataclass(frozen=True)
class _Extras:
    """What re-ranking adds: score = scale * plain score + bonus, the bonus in sparse lists."""

    scale: Floats
    offsets: Integers
    columns: NDArray[np.int32]
    values: Floats

    @staticmethod
    def of(chunk: _Chunk, reranking: Reranking | None) -> "_Extras":
        count = chunk.last - chunk.first
        if reranking is None:
            empty = np.zeros(0, np.int32), np.zeros(0)
            return _Extras(np.ones(count), np.zeros(count + 1, np.int64), *empty)
        scale = reranking.scale[chunk.first : chunk.last]
        return _Extras(scale, *reranking.bonus(chunk.first, chunk.last))


def _ranks(
    chunk: _Chunk, queries: Rows, gallery: Rows, products: Products, reranking: Reranking | None
) -> tuple[Integers, Integers]:
    """The query (counted from chunk.first) and the rank, from 1, of every true match: [P], [P]."""
    block = queries.block(chunk.first, chunk.last)
    extras = _Extras.of(chunk, reranking)
    owners = np.repeat(np.arange(chunk.last - chunk.first), np.diff(chunk.match_offsets))
    scores, largest = _match_scores(chunk, owners, block, gallery, extras)
    slack = _slack(block, largest, extras)
    sent = products.send(block.features)
    counts = np.ones(len(owners), np.int64)
    for first, part in gallery.blocks(GALLERY_BLOCK):
        part_sent = products.send(part.features)
        for base in range(0, len(sent), QUERY_BLOCK):
            product = products(sent[base : base + QUERY_BLOCK], part_sent)
            if not gallery.unit:
                product -= part.half.astype(np.float32)
            spread(
                kernels.count_better, len(product), product, base, first,
                block.features, part.features, part.half, extras.scale, slack,
                chunk.match_offsets, chunk.match_columns, scores,
                chunk.removed_offsets, chunk.removed_columns,
                extras.offsets, extras.columns, extras.values, counts,
            )  # fmt: skip
    return owners, counts


def _match_scores(
    chunk: _Chunk, owners: Integers, block: Block, gallery: Rows, extras: _Extras
) -> tuple[Floats, tuple[float, float]]:
    """The exact score of every true match [P], and the largest norm and half in the gallery."""
    columns = chunk.match_columns
    bonuses, scores = np.zeros(len(columns)), np.empty(len(columns))
    sparse = extras.offsets, extras.columns, extras.values
    spread(kernels.look_up, len(columns), owners, columns, *sparse, bonuses)
    by_column = np.argsort(columns, kind="stable")
    norm = half = 0.0
    for first, part in gallery.blocks(GALLERY_BLOCK):
        norm, half = max(norm, part.norms.max()), max(half, part.half.max())
        edges = np.searchsorted(columns[by_column], [first, first + len(part.half)])
        here = by_column[edges[0] : edges[1]]
        out = np.empty(len(here))
        spread(
            kernels.score_pairs, len(here), block.features, part.features, part.half,
            extras.scale, owners[here], columns[here] - first, bonuses[here], out,
        )  # fmt: skip
        scores[here] = out
    return scores, (norm, half)


def _slack(block: Block, largest: tuple[float, float], extras: _Extras) -> Floats:
    """[q]: how far a float32 score may be from the exact one, all roundings together."""
    norm, half = largest
    size = block.norms * norm
    product = rounding(block.features.shape[1]) * size
    later = 2.0**-22 * (size + half)  # subtracting, scaling, comparing
    bonus = 2.0**-22 * extras.values.max(initial=0.0)
    return extras.scale * (product + later) + bonus + 1e-36


# ---- checks ----


def _integers(values: ArrayLike) -> Integers:
    """Labels from a list, an array or a tensor; a float or text stays as it is, for `_check`."""
    array = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    return array.astype(np.int64) if array.dtype.kind in "iu" or not array.size else array


def _check(query: Any, gallery: Any, labels: list[Integers], metric: str, max_rank: int) -> None:
    """Name every fault of the arguments in one UserError."""
    faults = []
    shapes = {"query": tuple(query.shape), "gallery": tuple(gallery.shape)}
    for name, shape in shapes.items():
        if len(shape) != 2 or 0 in shape:
            faults.append(f"{name} features have shape {list(shape)}; expected [images, width]")
    if not faults and shapes["query"][1] != shapes["gallery"][1]:
        widths = f"{shapes['query'][1]} numbers per row, gallery features {shapes['gallery'][1]}"
        faults.append(f"query features have {widths}; both must come from one model")
    names = ["query identities", "query cameras", "gallery identities", "gallery cameras"]
    for name, values in zip(names, labels, strict=True):
        rows = shapes[name.split()[0]][:1]
        if values.shape != rows:
            faults.append(f"{name} have shape {list(values.shape)}; expected {list(rows)}")
        elif values.dtype.kind != "i":
            faults.append(f"{name} are {values.dtype}; expected integers")
    if metric not in ("euclidean", "cosine"):
        faults.append(f"metric {metric!r} is unknown; choose euclidean or cosine")
    if max_rank < 1:
        faults.append(f"max_rank is {max_rank}; at least 1 is needed")
    if faults:
        raise UserError("\n".join(faults))


def _no_match(queries: Rows, gallery: Rows, camera_filter: bool) -> str:
    ids = np.unique(queries.identities)
    absent = ids[~np.isin(ids, gallery.identities)]
    if not len(ids):
        return "no query has a match: every query has identity -1 (junk)"
    message = (
        f"no query has a match: {len(absent)} of {len(ids)} query identities are absent from the "
        f"gallery, {len(ids) - len(absent)} are there under the query's own camera only"
    )
    if len(absent) < len(ids) and camera_filter:
        return f"{message}; with one camera only, turn the camera filter off (camera_filter=False)"
    return f"{message}; check that query and gallery are labelled by the same list of identities"
