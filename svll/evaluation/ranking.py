"""Retrieval metrics: CMC, mAP and mINP, exact for any size, without a Q x G matrix.

`engine.comparison` finds the ranks. Results are the same to the last digit for any block size,
number of threads, and number of processes that share the work; equal distances rank by gallery
index.

Costs, besides the product's 2 Q G D operations: 2 comparisons, 8 at a time, for each pair and true
match of its query; D exact multiplications for each pair that float32 cannot decide; two readings
of each gallery row. So time = a Q G + b G. Measured on two cores, D = 1,280: a = 20 s per 10^9
pairs, b = 10 us with float16 rows in HDF5 (0.25 to 1 million rows, 1,000 queries: 28 to 37 s per
million, in 40 to 101 MB). 10 million images for 3,368 queries then take some 13 minutes, and the
processes of a `share` divide both terms. Memory: 100 MB of blocks and lists, 128 MB more if the
gallery fits, 4 Q D bytes of queries, 16 bytes of labels per image. Only re-ranking holds all
features, compares all images with each other, and keeps up to 1 GB of products.

Letters: Q queries, G gallery images, D width, P true matches of all queries of a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness.base.errors import UserError, named
from harness.base.units import counted
from svll.evaluation.engine.comparison import ChunkResult, Comparison
from svll.evaluation.engine.feature_rows import STRANGER, Floats, Integers, Rows
from svll.evaluation.engine.kernels import Extras, Float32
from svll.evaluation.engine.matches import Chunk, Matches
from svll.evaluation.engine.products import Products
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.expansion import QueryExpansion, expand_queries
from svll.evaluation.pair import Pair, faults, group_of, is_integer, row_count, why_no_match
from svll.evaluation.reranking import KReciprocal, Neighbours, Reranking

Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Options:
    """How features are compared and what is reported; explained at `evaluate_ranking`."""

    max_rank: int = 50
    metric: Metric = "euclidean"
    normalise: bool = True
    expand: QueryExpansion | None = None
    top_k: int = 0
    share: Share | None = None

    @property
    def is_unit(self) -> bool:
        """Whether features are compared at unit length."""
        return self.normalise or self.metric == "cosine"


USUAL = Options()
NO_ROWS = np.zeros(0, np.int64)


class NoMatch(UserError):
    """Nothing in the gallery can match any query."""


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
    draws: Floats | None = None
    """[draws, Q], the average precision in each draw of a gallery, if the metrics are means over
    draws; NaN where an image was no query. Other values per query are those of the first draw."""
    zero_rows: tuple[Integers, Integers] = (NO_ROWS, NO_ROWS)
    """Rows of query and gallery whose features are all zero; of draws, those of the first."""

    def __repr__(self) -> str:
        scores = f"mAP {self.mAP:.4f}, mINP {self.mINP:.4f}, Rank-1 {self.cmc[0]:.4f}"
        return f"RankingResult({scores}, {counted(self.queries, 'query', 'queries')})"

    @property
    def mean_precision(self) -> Floats:
        """[Q], the average precision, over the draws in which an image was a query; NaN if none."""
        if self.draws is None:
            return self.average_precision
        counts = (~np.isnan(self.draws)).sum(axis=0)
        sums = np.nansum(self.draws, axis=0)
        return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)

    def as_json(self, ranks: Sequence[int] | None = None) -> dict[str, Any]:
        """Return the numbers of result files and printed JSON; CMC at all ranks by default."""
        every = range(1, len(self.cmc) + 1) if ranks is None else ranks
        cmc = {str(r): float(self.cmc[r - 1]) for r in every if r <= len(self.cmc)}
        counts = {"queries": self.queries, "skipped": self.skipped}
        return {"mAP": self.mAP, "mINP": self.mINP, "cmc": cmc, **counts}


def evaluate_settings(
    pair: Pair, settings: Sequence[KReciprocal | None], options: Options = USUAL, *,
    protocol: str = "cross_camera",
) -> list[RankingResult]:
    """Rank under several settings of re-ranking (None: without) at once; see `evaluate_ranking`.

    All settings share one comparison of queries and gallery, and one search for neighbours. A query
    does not rank images of its identity under its camera and, under `other_cameras`, no image of
    its camera; other protocols put image numbers in the place of cameras (`protocol_pair`).
    """
    _check(pair, options)
    tables, zero_rows = _tables(pair, settings, options, protocol)
    return [replace(table.result(options.max_rank), zero_rows=zero_rows) for table in tables]


@dataclass(frozen=True, eq=False)
class Reranked:
    """The nearest gallery images of each query after re-ranking."""

    nearest: Integers
    """[Q, top_k], gallery rows, the nearest first; -1 where there are no more."""
    distances: Floats
    """[Q, top_k], the final distances; inf where there is none."""

    def __repr__(self) -> str:
        queries, nearest = self.nearest.shape
        return f"Reranked({counted(queries, 'query', 'queries')}, {nearest} nearest of each)"


@named
def rerank(
    query: Any, gallery: Any, *, k1: int = 20, k2: int = 6, weight: float = 0.3, top_k: int = 50,
    normalise: bool = True,
) -> Reranked:
    """Rank a gallery [G, D] for every query [Q, D] by k-reciprocal re-ranking, without labels.

    query, gallery: arrays or tensors, L2-normalised first unless `normalise` is off. k1, k2, weight
    are those of `KReciprocal`; `top_k` is the number of gallery images returned per query. Raises
    UserError for shapes that do not fit, invalid values, and rows that are not finite. For mAP and
    CMC of re-ranked features: `evaluate_ranking(..., rerank=KReciprocal())`.

    >>> gallery = np.array([[1.0, 0.1], [0.2, 1.0], [0.9, 0.5]])
    >>> svll.rerank(np.eye(2), gallery, k1=2, k2=1, top_k=2).nearest
    array([[0, 2],
           [1, 2]])
    """
    setting = KReciprocal(k1, k2, weight)
    strangers, known = np.full(row_count(query), STRANGER), np.zeros(row_count(gallery), np.int64)
    pair = Pair(group_of(query, strangers), group_of(gallery, known))
    options = Options(normalise=normalise, top_k=top_k)
    _check(pair, options, least=1)
    [table], _ = _tables(pair, [setting], options)
    return Reranked(table.nearest, table.distances)


def _tables(
    pair: Pair, settings: Sequence[KReciprocal | None], options: Options,
    protocol: str | None = None,
) -> "tuple[list[_Table], tuple[Integers, Integers]]":
    """Rank under each setting; return the tables and the `zero_rows` of both sides. Raise NoMatch
    if no query has a match, unless `protocol` is None."""
    share = options.share or Share()
    queries, gallery = sides = pair.rows(unit=options.is_unit)
    # no more than the usual memory for any number of settings
    matches = Matches(queries, gallery, len(settings))
    if protocol and not matches.found:
        why = why_no_match(pair.query.identities, pair.gallery.identities, protocol)
        raise NoMatch(f"no query has a match: {why}")
    products = Products(pair.query.features, pair.gallery.features)
    if options.expand is not None:
        features = expand_queries(queries, gallery, products, options.expand, share)
        ids, cameras = pair.query.identities, pair.query.cameras
        queries = Rows("query", features, ids, cameras, unit=options.is_unit)
    rerankings: list[Reranking | None] = [None for _ in settings]
    known: Float32 | None = None
    if wanted := [setting for setting in settings if setting]:
        neighbours = Neighbours(queries, gallery, wanted, products, share)
        rerankings = [neighbours.rerank(setting) if setting else None for setting in settings]
        known = neighbours.products
    comparison = Comparison(queries, gallery, products, hide=protocol == "other_cameras",
                            nearest=options.top_k, share=share, known=known)
    tables = [_Table(len(pair.query.identities), comparison.count) for _ in settings]
    for chunk in matches.chunks():
        if not len(chunk.match_columns) and not options.top_k:
            continue
        found = comparison(chunk, [
            reranking.extras(chunk.first, chunk.last) if reranking else Extras.none(len(chunk))
            for reranking in rerankings
        ])
        for table, reranking, compared in zip(tables, rerankings, found, strict=True):
            table.fill(chunk, compared, queries, gallery, reranking, options.metric)
    of_query, of_gallery = (np.flatnonzero(share.largest(side.is_zero)) for side in sides)
    return tables, (of_query, of_gallery)


class _Table:
    """The results of each query under one setting."""

    def __init__(self, queries: int, count: int) -> None:
        self._precision, self._first, self._penalty = (np.full(queries, np.nan) for _ in range(3))
        self.nearest = np.full((queries, count), -1, np.int64)
        self.distances = np.full((queries, count), np.inf)

    def fill(
        self, chunk: Chunk, found: ChunkResult, queries: Rows, gallery: Rows,
        reranking: Reranking | None, metric: Metric,
    ) -> None:
        """Enter a chunk's results at its queries' rows."""
        if len(found.ranks):
            owners = chunk.owners
            rows = queries.kept[chunk.first + np.unique(owners)]
            values = _per_query(owners, found.ranks)
            self._precision[rows], self._first[rows], self._penalty[rows] = values
        rows, none = queries.kept[chunk.first : chunk.last], found.nearest < 0
        self.nearest[rows] = np.where(none, -1, gallery.kept[found.nearest])
        if none.size:
            if reranking is not None:
                distances = reranking.offset[chunk.first : chunk.last, None] - found.scores
            elif metric == "cosine":
                distances = 1.0 - found.scores
            else:
                squares = queries.block(chunk.first, chunk.last).norms[:, None] ** 2
                of_gallery = 1.0 if queries.unit else 0.0
                distances = np.sqrt(np.maximum(squares + of_gallery - 2 * found.scores, 0.0))
            self.distances[rows] = np.where(none, np.inf, distances)

    def result(self, max_rank: int) -> RankingResult:
        """Return the means over all queries with a match."""
        used = ~np.isnan(self._precision)
        first = np.where(used, self._first, 0).astype(np.int64)
        hits = np.bincount(first[used].clip(max=max_rank + 1), minlength=max_rank + 2)
        cmc = np.cumsum(hits[1 : max_rank + 1]) / used.sum()
        mAP, mINP = float(self._precision[used].mean()), float(self._penalty[used].mean())
        return RankingResult(mAP, mINP, cmc, int(used.sum()), int((~used).sum()),
                             self._precision, first, self.nearest, self.distances)


def _per_query(owners: Integers, ranks: Integers) -> tuple[Floats, Floats, Floats]:
    """Return average precision, first rank and inverse penalty of each query in `owners` [P].

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


def _check(pair: Pair, options: Options, *, least: int = 0) -> None:
    """Raise one UserError with every fault of the arguments; `least`: the smallest `top_k`."""
    found, expand = faults(pair), options.expand
    if options.metric not in ("euclidean", "cosine"):
        found.append(f"metric {options.metric!r} is unknown; choose euclidean or cosine")
    if not (expand is None or isinstance(expand, QueryExpansion)):
        found.append(f"expand is {expand!r}; give QueryExpansion(count=5), or None for none")
    for name, low in (("max_rank", 1), ("top_k", least)):
        if not is_integer(value := getattr(options, name), low):
            found.append(f"{name} is {value!r}; an integer of at least {low} is needed")
    if found:
        raise UserError("\n".join(found))
