"""Ranking at Market-1501's size, against the whole distance matrix and a sort of each row."""

from collections.abc import Iterator

import numpy as np
import torch

from svll.evaluation import evaluate_ranking
from tests.benchmarks.timing import Row, median_s

QUERIES, GALLERY, WIDTH, IDENTITIES, CAMERAS = 3368, 15_913, 1280, 750, 6


def measure() -> Iterator[Row]:
    """Yield the ranking's row; the floor is the bare product."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((IDENTITIES, WIDTH), dtype=np.float32)
    labels = [rng.integers(0, IDENTITIES, n) for n in (QUERIES, GALLERY)]
    cameras = [rng.integers(0, CAMERAS, n) for n in (QUERIES, GALLERY)]
    features = [
        centres[rows] + 3 * rng.standard_normal((len(rows), WIDTH), dtype=np.float32)
        for rows in labels
    ]
    a, b = (torch.from_numpy(f) for f in features)
    ours = median_s(lambda: evaluate_ranking(*features, *labels, *cameras), repeats=2)
    baseline = median_s(lambda: _whole_matrix(a, b, labels, cameras), repeats=1)
    floor = median_s(lambda: a @ b.T, repeats=2)
    yield Row("ranking, Market-1501 size", "s", ours, baseline, floor)


def _whole_matrix(
    query: torch.Tensor, gallery: torch.Tensor, labels: list[np.ndarray], cameras: list[np.ndarray]
) -> float:
    """The standard way: all distances, an argsort of every row, then a loop over queries."""
    a, b = (torch.nn.functional.normalize(f) for f in (query, gallery))
    distance = (a.pow(2).sum(1)[:, None] + b.pow(2).sum(1)[None] - 2 * a @ b.T).numpy()
    order = np.argsort(distance, axis=1)
    precisions = []
    for row, ranked in enumerate(order):
        same = labels[1][ranked] == labels[0][row]
        hits = same[~(same & (cameras[1][ranked] == cameras[0][row]))]
        if hits.any():
            places = np.flatnonzero(hits)
            precisions.append(np.mean((np.arange(len(places)) + 1) / (places + 1)))
    return float(np.mean(precisions))
