"""Retrieval metrics: CMC, mAP and mINP, exact for any size, without a Q x G matrix.

How the ranks are found is in `engine.comparison`. Results are the same to the last digit for any
block size, number of threads, and number of processes that share the work; equal distances rank by
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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.base.calling import named
from harness.base.errors import UserError
from svll.evaluation.engine.comparison import Compared, Comparison
from svll.evaluation.engine.feature_rows import STRANGER, Floats, Integers, Rows
from svll.evaluation.engine.kernels import Extras
from svll.evaluation.engine.matches import Chunk, Matches
from svll.evaluation.engine.products import Products
from svll.evaluation.engine.ranks import Share
from svll.evaluation.expansion import QueryExpansion, expanded
from svll.evaluation.pair import Pair, faults, group_of, is_integer
from svll.evaluation.reranking import KReciprocal, Neighbours, Reranking

Metric = Literal["euclidean", "cosine"]
ONE_CAMERA = "with one camera only, set protocol to all_gallery"
"""What helps where a protocol of several cameras leaves nothing."""


@dataclass(frozen=True)
class Options:
    """How features are compared and what is told of it; explained at `evaluate_ranking`."""

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
    """[draws, Q], the average precision in each draw of a gallery, where the metrics are means over
    draws; NaN where an image was no query. What else is of single queries is of the first draw."""

    @property
    def mean_precision(self) -> Floats:
        """[Q], the average precision, over the draws in which an image was a query; NaN if none."""
        if self.draws is None:
            return self.average_precision
        there = ~np.isnan(self.draws)
        sums, counts = np.where(there, self.draws, 0.0).sum(axis=0), there.sum(axis=0)
        return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)

    def as_json(self, ranks: Sequence[int] | None = None) -> dict[str, Any]:
        """The numbers, as written to result files and printed; CMC at all ranks by default."""
        every = range(1, len(self.cmc) + 1) if ranks is None else ranks
        cmc = {str(r): float(self.cmc[r - 1]) for r in every if r <= len(self.cmc)}
        counts = {"queries": self.queries, "skipped": self.skipped}
        return {"mAP": self.mAP, "mINP": self.mINP, "cmc": cmc, **counts}


def evaluate_settings(
    pair: Pair, settings: Sequence[KReciprocal | None], options: Options = USUAL, *,
    protocol: str = "cross_camera",
) -> list[RankingResult]:
    """Rank under several settings of re-ranking (None: without) at once; see `evaluate_ranking`.

    All settings share one comparison of queries and gallery, and one search for neighbours. Of the
    query's identity, images under its camera are not ranked, and under `other_cameras` nothing
    under it is; for other protocols numbers of images stand in the place of cameras (see
    `protocols.compared`).
    """
    _check(pair, options)
    share = options.share or Share()
    queries, candidates = pair.rows(unit=options.is_unit)
    # no more than the usual memory, however many settings there are
    matches = Matches(queries, candidates, len(settings))
    if not matches.found:
        raise NoMatch(_no_match(queries, candidates, protocol))
    products = Products(pair.query.features, pair.gallery.features)
    if options.expand is not None:
        features = expanded(queries, candidates, products, options.expand, share)
        ids, cameras = pair.query.identities, pair.query.cameras
        queries = Rows("query", features, ids, cameras, unit=options.is_unit)
    rerankings, known = _rerankings(queries, candidates, settings, products, share)
    comparison = Comparison(
        queries, candidates, products, hide=protocol == "other_cameras", nearest=options.top_k,
        share=share, known=known,
    )
    tables = [_Table(len(pair.query.identities), comparison.count) for _ in settings]
    for chunk in matches.chunks():
        if not len(chunk.match_columns) and not options.top_k:
            continue
        extras = [_extras(chunk, reranking) for reranking in rerankings]
        for table, reranking, found in zip(
            tables, rerankings, comparison(chunk, extras), strict=True
        ):
            table.fill(chunk, found, queries, candidates, reranking, options.metric)
    return [table.result(options.max_rank) for table in tables]


@dataclass(frozen=True, eq=False)
class Reranked:
    """The nearest gallery images of each query after re-ranking."""

    nearest: Integers
    """[Q, top_k], gallery rows, the nearest first; -1 where there are no more."""
    distances: Floats
    """[Q, top_k], the final distances; inf where there is none."""


@named
def rerank(
    query: Any, gallery: Any, *, k1: int = 20, k2: int = 6, weight: float = 0.3, top_k: int = 50,
    normalise: bool = True,
) -> Reranked:
    """Rank a gallery [G, D] for every query [Q, D] by k-reciprocal re-ranking, without labels.

    query, gallery: arrays or tensors, L2-normalised first unless `normalise` is off. k1, k2, weight
    are those of `KReciprocal`; `top_k` is how many gallery images are returned for each query.
    Raises UserError for shapes that do not fit, values that cannot be, and rows that are not
    finite. For mAP and CMC of re-ranked features: `evaluate_ranking(..., rerank=KReciprocal())`.
    """
    setting = KReciprocal(k1, k2, weight)
    strangers, known = np.full(len(query), STRANGER), np.zeros(len(gallery), np.int64)
    pair = Pair(group_of(query, strangers), group_of(gallery, known))
    _check(pair, Options(top_k=top_k), least=1)
    queries, candidates = pair.rows(unit=normalise)
    products = Products(query, gallery)
    [reranking], kept = _rerankings(queries, candidates, [setting], products, Share())
    comparison = Comparison(queries, candidates, products, nearest=top_k, known=kept)
    table = _Table(len(query), comparison.count)
    for chunk in Matches(queries, candidates).chunks():
        [found] = comparison(chunk, [_extras(chunk, reranking)])
        table.fill(chunk, found, queries, candidates, reranking, "euclidean")
    return Reranked(table.nearest, table.distances)


def _rerankings(
    queries: Rows, gallery: Rows, settings: Sequence[KReciprocal | None], products: Products,
    share: Share,
) -> tuple[list[Reranking | None], NDArray[np.float32] | None]:
    """Return what each setting adds to scores, and the products [Q, G] that were kept."""
    wanted = [setting for setting in settings if setting is not None]
    if not wanted:
        return [None for _ in settings], None
    neighbours = Neighbours.of(queries, gallery, wanted, products, share)
    found = [neighbours.rerank(setting) if setting else None for setting in settings]
    return found, neighbours.products


def _extras(chunk: Chunk, reranking: Reranking | None) -> Extras:
    if reranking is None:
        return Extras.none(len(chunk))
    scale = reranking.scale[chunk.first : chunk.last]
    return Extras(scale, *reranking.bonus(chunk.first, chunk.last))


class _Table:
    """What is known of each query under one setting."""

    def __init__(self, queries: int, count: int) -> None:
        self._precision, self._first, self._penalty = (np.full(queries, np.nan) for _ in range(3))
        self.nearest = np.full((queries, count), -1, np.int64)
        self.distances = np.full((queries, count), np.inf)

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
        self.nearest[rows] = np.where(none, -1, gallery.kept[found.nearest])
        if none.size:
            distances = _distances(chunk, found.scores, queries, reranking, metric)
            self.distances[rows] = np.where(none, np.inf, distances)

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
            nearest=self.nearest,
            distances=self.distances,
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


def _check(pair: Pair, options: Options, *, least: int = 0) -> None:
    """Name every fault of the arguments in one UserError; `least`: of `top_k`."""
    found, expand = faults(pair), options.expand
    if options.metric not in ("euclidean", "cosine"):
        found.append(f"metric {options.metric!r} is unknown; choose euclidean or cosine")
    if not (expand is None or isinstance(expand, QueryExpansion)):
        found.append(f"expand is {expand!r}; give QueryExpansion(count=5), or None for none")
    found += [
        f"{name} is {value!r}; an integer of at least {low} is needed"
        for name, value, low in (
            ("max_rank", options.max_rank, 1), ("top_k", options.top_k, least),
        )
        if not is_integer(value, low)
    ]
    if found:
        raise UserError("\n".join(found))


def _no_match(queries: Rows, gallery: Rows, protocol: str) -> str:
    ids = np.unique(queries.identities)
    absent = ids[~np.isin(ids, gallery.identities)]
    if not len(ids):
        return "no query has a match: every query has identity -1 (junk)"
    has_cameras = protocol in ("cross_camera", "other_cameras")
    where = "under the query's own camera only" if has_cameras else "as the query's own image only"
    message = (
        f"no query has a match: {len(absent)} of {len(ids)} query identities are absent from the "
        f"gallery, {len(ids) - len(absent)} are there {where}"
    )
    if len(absent) < len(ids):
        return f"{message}; {ONE_CAMERA}" if has_cameras else f"{message}; add further images"
    return f"{message}; check that query and gallery are labelled by the same list of identities"
