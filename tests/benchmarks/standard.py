"""The standard way to rank and re-rank, in NumPy: whole matrices, full sorts, loops over images."""

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def squared_distances(a: Features, b: Features) -> Features:
    """|a|^2 + |b|^2 - 2 a . b of unit rows [n, D] and [m, D]: [n, m]."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    distance = (a**2).sum(1)[:, None] + (b**2).sum(1)[None]
    distance -= 2 * (a @ b.T)
    return distance


def metrics(
    distance: Features, q_ids: Labels, g_ids: Labels, q_cams: Labels, g_cams: Labels,
    max_rank: int = 50,
) -> tuple[float, float, NDArray[np.float64]]:
    """mAP, mINP and CMC [max_rank]: sort every row of distance [Q, G] and walk along it."""
    indices = np.argsort(distance, axis=1)
    matches = (g_ids[indices] == q_ids[:, None]).astype(np.int32)
    precisions, penalties, curves = [], [], []
    for row in range(len(distance)):
        order = indices[row]
        own = (g_ids[order] == q_ids[row]) & (g_cams[order] == q_cams[row])
        hits = matches[row][~own]
        if not hits.any():
            continue
        curve = hits.cumsum()
        curve[curve > 1] = 1
        curves.append(curve[:max_rank])
        right, places = hits.cumsum(), np.arange(1, len(hits) + 1) * 1.0
        precisions.append((right / places * hits).sum() / hits.sum())
        penalties.append(hits.sum() / (hits.nonzero()[0][-1] + 1.0))
    cmc = np.asarray(curves, dtype=np.float32).mean(axis=0, dtype=np.float64)
    return float(np.mean(precisions)), float(np.mean(penalties)), cmc


def rerank(
    query: Features, gallery: Features, k1: int = 20, k2: int = 6, weight: float = 0.3
) -> Features:
    """Final distances [Q, G] of k-reciprocal re-ranking, with N x N matrices of everything."""
    every = np.concatenate([query, gallery])
    total, queries = len(every), len(query)
    distance = squared_distances(every, every)
    distance = np.ascontiguousarray((distance / distance.max(axis=0)).T)
    order = np.argsort(distance, axis=1).astype(np.int32)
    vectors = np.zeros_like(distance)
    for i in range(total):
        members = _reciprocal(order, i, k1)
        union = members
        for j in members:
            near = _reciprocal(order, j, round(k1 / 2))
            if len(np.intersect1d(near, members)) > 2 / 3 * len(near):
                union = np.append(union, near)
        union = np.unique(union)
        weights = np.exp(-distance[i, union])
        vectors[i, union] = weights / weights.sum()
    distance = distance[:queries]
    if k2 > 1:
        averaged = np.zeros_like(vectors)
        for i in range(total):
            averaged[i] = vectors[order[i, :k2]].mean(axis=0)
        vectors = averaged
    holders = [np.flatnonzero(vectors[:, i]) for i in range(total)]
    jaccard = np.zeros_like(distance)
    for i in range(queries):
        lowest = np.zeros(total, np.float32)
        for member in np.flatnonzero(vectors[i]):
            who = holders[member]
            lowest[who] += np.minimum(vectors[i, member], vectors[who, member])
        jaccard[i] = 1 - lowest / (2 - lowest)
    final = jaccard * (1 - weight) + distance * weight
    return final[:, queries:]


def _reciprocal(order: NDArray[np.int32], i: int, k: int) -> NDArray[np.int32]:
    forward = order[i, : k + 1]
    backward = order[forward, : k + 1]
    return forward[np.where(backward == i)[0]]
