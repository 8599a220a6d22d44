"""Retrieval metrics: CMC, mAP and mINP, exact for any size, without a Q x G matrix.

How the ranks are found is in `streaming`. Results are the same to the last digit for any block
size, number of threads, and number of processes that share the work; equal distances rank by
gallery index.

What it costs, beside the 2 Q G D operations of the product: for the counts 2 comparisons for each
pair and true match of its query, 8 at a time; an exact comparison of D numbers for each pair that
float32 cannot decide; and for each gallery row two readings and two passes over its D numbers. So
time = a Q G + b G. Measured on two cores, D = 1,280: a = 20 s per 10^9 pairs, b = 10 us of float16
rows in HDF5 (0.25, 0.5 and 1 million rows, 1,000 queries: 28 to 37 s per million, in 40 to 101 MB
of memory). 10 million images for 3,368 queries are then some 13 minutes on two cores, and the
processes of a `share` divide both terms. Memory: 100 MB of blocks and lists, 128 MB more where that
saves preparing a small gallery twice, 4 Q D bytes of queries, and 16 bytes of labels for each
image; re-ranking alone holds all features, compares all images with each other, and keeps the
products of queries and gallery where they take less than 1 GB.

Letters: Q queries, G gallery images, D width, P true matches of all queries of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from harness.errors import UserError
from svll.evaluation import arguments
from svll.evaluation.expansion import QueryExpansion, expanded
from svll.evaluation.machine import Products
from svll.evaluation.matches import Chunk, Matches
from svll.evaluation.reranking import KReciprocal, Neighbours, Reranking
from svll.evaluation.rows import Floats, Integers, Rows
from svll.evaluation.sharing import Share
from svll.evaluation.streaming import Compared, Comparison, Extras

Metric = Literal["euclidean", "cosine"]


class Options(TypedDict, total=False):
    """What `evaluate_ranking` takes besides features, labels and re-ranking; explained there.

    Their defaults are those of `evaluate_settings`.
    """

    max_rank: int
    metric: Metric
    normalise: bool
    camera_filter: bool
    cross_camera_only: bool
    expand: QueryExpansion | None
    top_k: int
    share: Share | None


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
    nearest: Integers
    """[Q, top_k], the gallery rows ranked first; -1 where fewer are ranked, and for junk."""
    distances: Floats
    """[Q, top_k], of those: Euclidean, cosine, or the final one of re-ranking; inf where none."""

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
    rerank: KReciprocal | None = None,
    **options: Unpack[Options],
) -> RankingResult:
    """Rank the gallery [G, D] for every query [Q, D] and score the ranking.

    Features are numpy arrays, tensors (the products run where they are) or sliceable files, in
    float16 to float64; compared as float32 rows, of unit length unless `normalise` is off. Labels
    are integers [Q] and [G]. Identity -1 is junk: never a match, never ranked. Gallery images of
    the query's own identity and camera are not ranked either, unless `camera_filter` is off; with
    `cross_camera_only`, nothing under the query's own camera is. The `top_k` nearest of each query
    are told on request. With `share`, the processes of it call this with the same arguments, each
    looks at its part of the gallery, and all get the result.
    Raises UserError for shapes that do not fit, rows that are not finite, and when no query has a
    match.
    """
    return evaluate_settings(
        query, gallery, query_identities, gallery_identities, query_cameras, gallery_cameras,
        [rerank], **options,
    )[0]  # fmt: skip


def evaluate_settings(
    query: Any,
    gallery: Any,
    query_identities: ArrayLike,
    gallery_identities: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    settings: Sequence[KReciprocal | None],
    *,
    max_rank: int = 50,
    metric: Metric = "euclidean",
    normalise: bool = True,
    camera_filter: bool = True,
    cross_camera_only: bool = False,
    expand: QueryExpansion | None = None,
    top_k: int = 0,
    share: Share | None = None,
) -> list[RankingResult]:
    """Rank under several settings of re-ranking (None: without) at once; see `evaluate_ranking`.

    All of them share one comparison of queries and gallery, and one search for neighbours.
    """
    unit, share = normalise or metric == "cosine", share or Share()
    given = query_identities, gallery_identities, query_cameras, gallery_cameras
    labels = [arguments.integers(values) for values in given]
    _check(query, gallery, labels, metric, max_rank, top_k)
    q_ids, g_ids, q_cams, g_cams = labels
    queries = Rows("query", query, q_ids, q_cams, unit=unit)
    candidates = Rows("gallery", gallery, g_ids, g_cams, unit=unit)
    # no more than the usual memory, however many settings there are
    matches = Matches(queries, candidates, camera_filter or cross_camera_only, len(settings))
    if not matches.found:
        raise UserError(_no_match(queries, candidates, camera_filter))
    products = Products(query, gallery)
    if expand is not None:
        features = expanded(queries, candidates, products, expand, share)
        queries = Rows("query", features, q_ids, q_cams, unit=unit)
    wanted = [options for options in settings if options is not None]
    neighbours = Neighbours.of(queries, candidates, wanted, products, share) if wanted else None
    rerankings = [
        neighbours.rerank(options) if neighbours and options else None for options in settings
    ]
    comparison = Comparison(
        queries, candidates, products, hide=cross_camera_only, nearest=top_k, share=share,
        known=neighbours.products if neighbours else None,
    )
    tables = [_Table(len(q_ids), comparison.count) for _ in settings]
    for chunk in matches.chunks():
        if not len(chunk.match_columns) and not top_k:
            continue
        extras = [_extras(chunk, reranking) for reranking in rerankings]
        for table, reranking, found in zip(
            tables, rerankings, comparison(chunk, extras), strict=True
        ):
            table.fill(chunk, found, queries, candidates, reranking, metric)
    return [table.result(max_rank) for table in tables]


def _extras(chunk: Chunk, reranking: Reranking | None) -> Extras:
    if reranking is None:
        return Extras.none(len(chunk))
    scale = reranking.scale[chunk.first : chunk.last]
    return Extras(scale, *reranking.bonus(chunk.first, chunk.last))


class _Table:
    """What is known of each query under one setting."""

    def __init__(self, queries: int, count: int) -> None:
        self._precision, self._first, self._penalty = (np.full(queries, np.nan) for _ in range(3))
        self._nearest = np.full((queries, count), -1, np.int64)
        self._distances = np.full((queries, count), np.inf)

    def fill(
        self, chunk: Chunk, found: Compared, queries: Rows, gallery: Rows,
        reranking: Reranking | None, metric: Metric,
    ) -> None:
        """Enter a chunk's results in the places of its queries."""
        if len(found.ranks):
            owners = chunk.owners
            rows = queries.kept[chunk.first + np.unique(owners)]
            values = _per_query(owners, found.ranks)
            self._precision[rows], self._first[rows], self._penalty[rows] = values
        rows, none = queries.kept[chunk.first : chunk.last], found.nearest < 0
        self._nearest[rows] = np.where(none, -1, gallery.kept[found.nearest])
        if none.size:
            distances = _distances(chunk, found.scores, queries, reranking, metric)
            self._distances[rows] = np.where(none, np.inf, distances)

    def result(self, max_rank: int) -> RankingResult:
        """The means over all queries with a match."""
        used = ~np.isnan(self._precision)
        first = np.where(used, self._first, 0).astype(np.int64)
        hits = np.bincount(first[used].clip(max=max_rank + 1), minlength=max_rank + 2)
        return RankingResult(
            mAP=float(self._precision[used].mean()),
            mINP=float(self._penalty[used].mean()),
            cmc=np.cumsum(hits[1 : max_rank + 1]) / used.sum(),
            queries=int(used.sum()),
            skipped=int((~used).sum()),
            average_precision=self._precision,
            first_rank=first,
            nearest=self._nearest,
            distances=self._distances,
        )


def _distances(
    chunk: Chunk, scores: Floats, queries: Rows, reranking: Reranking | None, metric: Metric
) -> Floats:
    """The distances that scores [q, k] stand for."""
    if reranking is not None:
        return reranking.offset[chunk.first : chunk.last, None] - scores
    if metric == "cosine":
        return 1.0 - scores
    squares = queries.block(chunk.first, chunk.last).norms ** 2
    return np.sqrt(np.maximum(squares[:, None] + (1.0 if queries.unit else 0.0) - 2 * scores, 0.0))


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


# ---- checks ----


def _check(
    query: Any, gallery: Any, labels: Sequence[Integers], metric: str, max_rank: int, top_k: int
) -> None:
    """Name every fault of the arguments in one UserError."""
    faults = arguments.faults(query, gallery, labels)
    if metric not in ("euclidean", "cosine"):
        faults.append(f"metric {metric!r} is unknown; choose euclidean or cosine")
    if max_rank < 1:
        faults.append(f"max_rank is {max_rank}; at least 1 is needed")
    if top_k < 0:
        faults.append(f"top_k is {top_k}; at least 0 is needed")
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
