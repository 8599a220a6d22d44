"""Ranking and re-ranking at the size of Market-1501 and MSMT17, against the standard way in NumPy.

The floor is the bare product of all queries with the whole gallery (of all images with each other,
each pair once, for re-ranking): by torch or numpy, in one call or block by block, whichever is
fastest here. Ours and the floor take turns, so that a busy machine slows both. Features are random
around a centre for each identity; memory is what the process needs beyond them at its peak.
"""

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from svll.evaluation import KReciprocal, evaluate_ranking
from tests.benchmarks import feature_cache, standard
from tests.benchmarks.timing import Row, apart, measured, seconds

WIDTH = 1280


class Size(NamedTuple):
    """A benchmark's test set."""

    name: str
    queries: int
    gallery: int
    identities: int
    cameras: int


MARKET = Size("Market-1501", 3368, 15_913, 750, 6)
MSMT = Size("MSMT17", 11_659, 82_161, 3060, 15)


def measure() -> Iterator[Row]:
    """Yield the rows, the quick ones first.

    Each is measured in a process of its own: what an earlier one left in memory would hide a peak.
    """
    yield _apart(feature_cache.reading, f"{MSMT.name} gallery", MSMT.gallery, WIDTH, 15)
    yield _apart(_ranking, MARKET, 1, 5)
    for factor in (1, 2, 4):
        yield _apart(_growth, Size("", 2048 * factor, 10_240 * factor, 500 * factor, 8))
    yield _apart(_ranking, MSMT, 8, 2)
    yield _apart(_reranking, MARKET, True, 3)
    yield _apart(_reranking, MSMT, False, 1)


def features(size: Size) -> tuple[Any, ...]:
    """Query and gallery features [n, WIDTH], their identities and their cameras."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((size.identities, WIDTH), dtype=np.float32)
    counts = size.queries, size.gallery
    ids = [rng.integers(0, size.identities, n) for n in counts]
    found = []
    for rows in ids:
        made = rng.standard_normal((len(rows), WIDTH), dtype=np.float32)
        for part in np.array_split(np.arange(len(rows)), len(rows) // 4096 + 1):
            made[part] = 3 * made[part] + centres[rows[part]]
        found.append(made)
    return (*found, *ids, *(rng.integers(0, size.cameras, n) for n in counts))


def _ranking(size: Size, share: int, repeats: int) -> Row:
    """One row; the standard way is given every `share`-th query only, for the sake of memory."""
    given = features(size)
    ours, floor, memory = [], [], 0.0
    for _ in range(repeats):
        floor.append(_product_s(*given[:2]))
        taken, peak = measured(lambda: evaluate_ranking(*given))
        ours.append(taken)
        memory = max(memory, peak)
    part = [x[::share] if place in (0, 2, 4) else x for place, x in enumerate(given)]
    taken, peak = measured(
        lambda: standard.metrics(standard.squared_distances(*part[:2]), *part[2:])
    )
    return Row(
        f"ranking, {size.name} size", "s", statistics.median(ours), share * taken,
        statistics.median(floor), memory, peak,
        f"standard: 1/{share} of the queries, times {share}" if share > 1 else "",
    )


def _growth(size: Size) -> Row:
    """The time for each thousand million pairs, which stays the same."""
    given = features(size)
    pairs = size.queries * size.gallery / 1e9
    ours, floor, memory = [], [], 0.0
    for _ in range(3):
        floor.append(_product_s(*given[:2]))
        taken, peak = measured(lambda: evaluate_ranking(*given))
        ours.append(taken)
        memory = max(memory, peak)
    return Row(
        f"ranking, {size.queries:,} x {size.gallery:,}", "s per 10^9 pairs",
        statistics.median(ours) / pairs, None, statistics.median(floor) / pairs, memory,
    )


def _reranking(size: Size, with_standard: bool, repeats: int) -> Row:
    given = features(size)
    every = np.concatenate(given[:2])
    ours, floor, memory = [], [], 0.0
    for _ in range(repeats):
        floor.append(min(
            seconds(lambda: _pairs_once(every, _by_numpy)),
            seconds(lambda: _pairs_once(every, _by_torch)),
        ))
        taken, peak = measured(lambda: evaluate_ranking(*given, rerank=KReciprocal()))
        ours.append(taken)
        memory = max(memory, peak)
    baseline = standard_mb = None
    note = "the standard way would need more than 100 GB"
    if with_standard:
        note = ""
        baseline, standard_mb = measured(
            lambda: standard.metrics(standard.rerank(*given[:2]), *given[2:])
        )
    return Row(
        f"re-ranking, {size.name} size", "s", statistics.median(ours), baseline,
        statistics.median(floor), memory, standard_mb, note,
    )


# ---- floors ----


def _product_s(a: Any, b: Any) -> float:
    """Seconds of a @ b.T by whichever way is fastest here: either BLAS, whole or in blocks."""
    ways = [seconds(lambda: np.matmul(a, b.T)), seconds(lambda: _blocked(a, b, _by_numpy))]
    torches = torch.from_numpy(a), torch.from_numpy(b)
    ways += [seconds(lambda: torch.mm(torches[0], torches[1].T))]
    return min([*ways, seconds(lambda: _blocked(a, b, _by_torch))])


def _blocked(a: Any, b: Any, multiply: Any, rows: int = 4096, columns: int = 2048) -> None:
    buffer = np.empty(rows * columns, np.float32)
    for i in range(0, len(a), rows):
        for j in range(0, len(b), columns):
            x, y = a[i : i + rows], b[j : j + columns]
            multiply(x, y, buffer[: len(x) * len(y)].reshape(len(x), len(y)))


def _by_numpy(x: Any, y: Any, out: Any) -> None:
    np.matmul(x, y.T, out=out)


def _by_torch(x: Any, y: Any, out: Any) -> None:
    torch.mm(torch.from_numpy(x), torch.from_numpy(y).T, out=torch.from_numpy(out))


def _pairs_once(every: Any, multiply: Any, rows: int = 2048) -> None:
    for i in range(0, len(every), rows):
        _blocked(every[i : i + rows], every[i:], multiply, rows, rows)


# ---- measuring ----


def _compile() -> None:
    """Let Numba compile, on a few rows."""
    given = [x[:500] for x in features(MARKET._replace(queries=500, gallery=500, identities=50))]
    evaluate_ranking(*given, rerank=KReciprocal())


_apart = partial(apart, first=_compile)
