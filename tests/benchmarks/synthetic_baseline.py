"""What a colour-histogram ranker scores on a synthetic world: its mAP and Rank-1.

    python tests/benchmarks/synthetic_baseline.py [SIZE or IDENTITIES] [person|vehicle] [SEED]

Protocol: gallery images of the query's identity and camera are left out.
"""

import sys
import tempfile
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from svll.base.records import Dataset, Records
from svll.data.readers.drawn_world import load_world
from svll.world.world import named_world, write_world

Pixels = NDArray[np.uint8]
Features = NDArray[np.float64]


def rgb_histogram(pixels: Pixels, bins: int = 8) -> Features:
    """Return the joint RGB histogram of an image [H, W, 3], [bins ** 3], summing to 1."""
    levels = pixels.reshape(-1, 3).astype(np.int64) * bins // 256
    index = (levels[:, 0] * bins + levels[:, 1]) * bins + levels[:, 2]
    return np.bincount(index, minlength=bins**3) / len(index)


def hsv_histogram(pixels: Pixels) -> Features:
    """Return the joint histogram of hue (16), saturation (4) and value (4), summing to 1."""
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).reshape(-1, 3).astype(np.int64)
    index = (hsv[:, 0] // 16 * 4 + hsv[:, 1] // 64) * 4 + hsv[:, 2] // 64
    return np.bincount(index, minlength=256) / len(index)


def striped(
    histogram: Callable[[Pixels], Features], stripes: int = 6
) -> Callable[[Pixels], Features]:
    """Return the classic ReID descriptor: one histogram for each horizontal stripe, middle only."""

    def features(pixels: Pixels) -> Features:
        width = pixels.shape[1]
        middle = pixels[:, width // 4 : width - width // 4]
        return (
            np.concatenate([histogram(part) for part in np.array_split(middle, stripes)]) / stripes
        )

    return features


RANKERS = {
    "RGB histogram": rgb_histogram,
    "HSV histogram": hsv_histogram,
    "RGB histogram, 6 stripes": striped(rgb_histogram),
    "HSV histogram, 6 stripes": striped(hsv_histogram),
}


def score(dataset: Dataset, histogram: Callable[[Pixels], Features]) -> tuple[float, float]:
    """Return mAP and Rank-1, fractions, of ranking the gallery by histogram intersection."""
    query, gallery = _features(dataset.query, histogram), _features(dataset.gallery, histogram)
    precisions, firsts = [], []
    for row, feature in enumerate(query):
        same = dataset.gallery.identities == dataset.query.identities[row]
        kept = ~(same & (dataset.gallery.cameras == dataset.query.cameras[row]))
        similarity = np.minimum(feature, gallery[kept]).sum(axis=1)
        matches = same[kept][np.argsort(-similarity, kind="stable")]
        if matches.any():
            ranks = np.flatnonzero(matches) + 1
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
            firsts.append(matches[0])
    return float(np.mean(precisions)), float(np.mean(firsts))


def _features(records: Records, histogram: Callable[[Pixels], Features]) -> Features:
    return np.stack([histogram(np.asarray(Image.open(path))) for path in records.paths])


def main() -> None:
    """Write the world named on the command line to a temporary folder, and score the rankers."""
    given = sys.argv[1:4]
    size, kind, seed = given + ["small", "person", "1"][len(given) :]
    world = named_world(size, "vehicle" if kind == "vehicle" else "person", int(seed))
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_world(write_world(world, f"{folder}/world"))
        print(f"{len(dataset.query)} queries, {len(dataset.gallery)} gallery images")
        for name, histogram in RANKERS.items():
            mean_precision, first = score(dataset, histogram)
            print(f"{name:26} mAP {mean_precision:.3f}  Rank-1 {first:.3f}")


if __name__ == "__main__":
    main()
