"""A small benchmark's features with images on disk, and how it is ranked, written plainly."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from svll.base.feature_file import FeatureGroup
from svll.evaluation.feature_files.sources import Source

NASTY = ('<script>alert("x").jpg', "it's & so.jpg", "Größe 猫.jpg", "b\udcffte.jpg")
"""Names of the first images; the last one is no UTF-8."""


def group(
    rng: np.random.Generator, count: int, centres: np.ndarray, paths: tuple[str, ...] | None
) -> FeatureGroup:
    """Rows around their identity's centre; some are junk (-1)."""
    identities = rng.integers(-1, len(centres) - 1, count)
    features = centres[identities] + 1.8 * rng.standard_normal((count, centres.shape[1]))
    return FeatureGroup(
        features.astype(np.float32), identities, rng.integers(0, 3, count), paths=paths
    )


def world(protocol: str = "cross_camera", *, folder: Path | None = None) -> Source:
    """30 queries and 90 gallery images of 6 identities under 3 cameras."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((7, 8))
    paths = [None, None] if folder is None else [
        tuple(f"{folder}/{name}/{NASTY[row] if row < len(NASTY) else f'{row}.jpg'}"
              for row in range(count))
        for name, count in (("query", 30), ("gallery", 90))
    ]
    return Source(
        "world.h5", "<world>", protocol, group(rng, 30, centres, paths[0]),
        group(rng, 90, centres, paths[1]),
    )


def written(source: Source, path: Path) -> Path:
    """The same as a file."""
    source.save(path)
    return path


def draw_images(source: Source) -> None:
    """Make a small image at each path of the source."""
    for part in (source.query, source.gallery):
        for row, path in enumerate(part.paths or ()):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 32), (row, 99, 7)).save(path)


@dataclass
class Plain:
    """A query's whole ranking: gallery rows, distances and matches, the nearest first."""

    rows: np.ndarray
    distances: np.ndarray
    matches: np.ndarray

    @property
    def average_precision(self) -> float:
        places = np.flatnonzero(self.matches) + 1
        return float(np.mean(np.arange(1, len(places) + 1) / places)) if len(places) else np.nan

    @property
    def first_rank(self) -> int:
        return int(np.argmax(self.matches)) + 1 if self.matches.any() else 0


def plain_ranking(
    source: Source, *, own_camera: bool = False, only_camera: int | None = None
) -> dict[int, Plain]:
    """Rank with a full matrix; `own_camera` keeps a query's identity under its own camera."""
    query, gallery = source.query, source.gallery
    between = _unit(query.features)[:, None] - _unit(gallery.features)[None]
    matrix = np.sqrt((between**2).sum(axis=2))
    found = {}
    for row in np.flatnonzero(query.identities != -1).tolist():
        same = gallery.identities == query.identities[row]
        keep = gallery.identities != -1
        if not own_camera:
            keep &= ~(same & (gallery.cameras == query.cameras[row]))
        if only_camera is not None:
            keep &= gallery.cameras == only_camera
        order = [g for g in np.argsort(matrix[row], kind="stable").tolist() if keep[g]]
        found[row] = Plain(np.array(order), matrix[row, order], same[order])
    return found


def _unit(features: np.ndarray) -> np.ndarray:
    features = features.astype(float)
    return features / np.linalg.norm(features, axis=1, keepdims=True)
