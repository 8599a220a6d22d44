"""Scores of a feature file in the plainest way: a loop over queries, a sorted list for each."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from harness.base.rng import generator

DRAWS = 10
"""Galleries that are drawn under `random_gallery`."""
RANKS = range(1, 51)


@dataclass(frozen=True)
class Side:
    """One group of a feature file."""

    features: np.ndarray
    """[n, d] of unit length."""
    identities: np.ndarray
    cameras: np.ndarray
    """As the dataset numbers them."""
    paths: list[str]

    def take(self, rows: np.ndarray) -> "Side":
        """Return some rows."""
        return Side(self.features[rows], self.identities[rows], self.cameras[rows],
                    [self.paths[row] for row in rows])  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """What a dataset's protocol gives."""

    mAP: float
    mINP: float
    cmc: dict[str, float]
    queries: int
    """That have a match."""


def read(file: Path) -> tuple[Side, Side]:
    """Return the query and the gallery of a feature file."""
    with h5py.File(file) as content:
        sides = []
        for name in ("query", "gallery"):
            group = content[name]
            features = group["features"][:].astype(np.float64)
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            paths = [path.decode() for path in group["path"][:]]
            cameras = group["camera"][:] + content.attrs["first_camera"]
            sides.append(Side(features, group["identity"][:], cameras, paths))
    return sides[0], sides[1]


def ranked(query: Side, gallery: Side, row: int, protocol: str) -> list[int]:
    """Return the gallery rows that count for a query, nearest first."""
    distance = np.sqrt(((gallery.features - query.features[row]) ** 2).sum(axis=1))
    left_out = np.array([path == query.paths[row] for path in gallery.paths])
    if protocol == "cross_camera":
        left_out = (gallery.identities == query.identities[row]) & (
            gallery.cameras == query.cameras[row]
        )
    return [g for g in np.argsort(distance, kind="stable").tolist() if not left_out[g]]


def scores(file: Path, protocol: str) -> Scores:
    """Return the metrics of a feature file by a dataset's protocol."""
    query, gallery = read(file)
    if protocol != "random_gallery":
        return _scores(query, gallery, protocol)
    draws = [_scores(*_drawn(gallery, draw), protocol) for draw in range(DRAWS)]
    return Scores(
        *(float(np.mean([getattr(one, name) for one in draws])) for name in ("mAP", "mINP")),
        {rank: float(np.mean([one.cmc[rank] for one in draws])) for rank in draws[0].cmc},
        draws[0].queries,
    )


def average_precision(query: Side, gallery: Side, row: int, protocol: str) -> float:
    """Return the mean precision at the places of a query's matches, NaN where it has none."""
    found = [count / place for count, place in enumerate(_places(query, gallery, row, protocol), 1)]
    return sum(found) / len(found) if found else float("nan")


def _places(query: Side, gallery: Side, row: int, protocol: str) -> list[int]:
    """Return the ranks, from 1, of the images that show a query's identity."""
    order = ranked(query, gallery, row, protocol)
    wanted = query.identities[row]
    return [place for place, g in enumerate(order, 1) if gallery.identities[g] == wanted]


def _scores(query: Side, gallery: Side, protocol: str) -> Scores:
    precisions, penalties, first = [], [], []
    for row in range(len(query.identities)):
        if places := _places(query, gallery, row, protocol):
            precisions.append(average_precision(query, gallery, row, protocol))
            penalties.append(len(places) / places[-1])
            first.append(places[0])
    cmc = {str(rank): float(np.mean([place <= rank for place in first])) for rank in RANKS}
    return Scores(float(np.mean(precisions)), float(np.mean(penalties)), cmc, len(first))


def _drawn(images: Side, draw: int) -> tuple[Side, Side]:
    """Return VehicleID's queries and gallery of a draw: the first image of each in a seeded order.

    The order is the harness's, as any order would be as good.
    """
    order = generator(0, draw, 5).permutation(len(images.identities)).tolist()
    chosen: dict[int, int] = {}
    for row in order:
        chosen.setdefault(int(images.identities[row]), row)
    in_gallery = np.isin(np.arange(len(order)), list(chosen.values()))
    return images.take(np.flatnonzero(~in_gallery)), images.take(np.flatnonzero(in_gallery))
