"""Ranking with the GPU's products: equal to the CPU's in every number."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from svll.evaluation import KReciprocal, evaluate_ranking
from tests.benchmarks.evaluation import MARKET, Size, features
from tests.gpu.checks import Extent, Finding
from tests.gpu.cpu_process import begun_on_cpu

TOP = 50
KINDS = ("random", "repeated", "equal numbers")
"""Features around a centre for each identity; then every row twice, so that distances are equal;
then rows of one number each, whose float32 products round worst."""
CASES = [*((kind, False) for kind in KINDS), (KINDS[0], True)]
"""Each with whether it is re-ranked."""


def ranked(kind: str, size: Size, rerank: bool) -> tuple[dict[str, Any], float]:
    """Return what ranking features of a kind gives, and its seconds."""
    if kind == "equal numbers":  # many pairs must be compared exactly
        size = size._replace(queries=size.queries // 4, gallery=size.gallery // 4)
    query, gallery, *labels = features(size)
    if kind == "repeated":
        query, gallery = (rows[np.arange(len(rows)) // 2] for rows in (query, gallery))
    elif kind == "equal numbers":
        query, gallery = (np.repeat(rows[:, :1], rows.shape[1], axis=1)
                          for rows in (query, gallery))
    started = time.perf_counter()
    found = evaluate_ranking(
        query, gallery, *labels, rerank=KReciprocal() if rerank else None, top_k=TOP,
        normalise=kind != "equal numbers",
    )
    taken = time.perf_counter() - started
    return {
        "mAP": found.mAP, "mINP": found.mINP, "CMC": found.cmc,
        "average precision": found.average_precision, "first rank": found.first_rank,
        "nearest": found.nearest, "distances": found.distances,
    }, taken


def ranking(extent: Extent) -> Iterator[Finding]:
    """Rank features of each kind, and re-rank the first."""
    size = extent.ranked or MARKET
    expected = [begun_on_cpu(ranked, kind, size, rerank) for kind, rerank in CASES]
    for (kind, rerank), other in zip(CASES, expected, strict=True):
        name = f"{'re-ranking' if rerank else 'ranking'}, {kind} features"
        if kind == KINDS[0] and not rerank:
            ranked(kind, size, rerank)  # loads the libraries
        (ours, taken), (theirs, cpu_s) = ranked(kind, size, rerank), other.result()
        wrong = [
            key for key in ours if not np.array_equal(ours[key], theirs[key], equal_nan=True)
        ]
        found = (f"{len(ours['nearest']):,} queries: mAP {ours['mAP']:.6f}, {taken:.2f} s, on the "
                 f"CPU {cpu_s:.2f} s")
        why = f"other than the CPU's: {', '.join(wrong)}" if wrong else ""
        numbers = {"mAP": ours["mAP"], "gpu_s": taken, "cpu_s": cpu_s}
        yield Finding(name, not wrong, found, why, numbers)


CHECKS = {"ranking": (ranking,)}
