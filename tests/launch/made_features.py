"""Small features whose ranking is neither perfect nor hopeless, and their plain ranking."""

import numpy as np

from svll.base.feature_file import FeatureGroup, write_features
from svll.evaluation import evaluate_ranking


def group(rows, seed, identities=5):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, identities, rows)
    features = np.eye(identities, 8)[ids] + 0.5 * rng.standard_normal((rows, 8))
    return FeatureGroup(features.astype(np.float32), ids, rng.integers(0, 3, rows))


def ranking(parts, **options):
    query, gallery = parts["query"], parts["gallery"]
    return evaluate_ranking(
        query.features, gallery.features, query.identities, gallery.identities,
        query.cameras, gallery.cameras, **options,
    )  # fmt: skip


def dumped(parts):
    """The arrays of another toolbox's file."""
    names = {"features": "f", "identities": "label", "cameras": "cam"}
    return {
        f"{side}_{short}": getattr(parts[side], name)
        for side in ("query", "gallery") for name, short in names.items()
    }


def write_shards(folder, gallery, count):
    """Write a gallery into several files."""
    for number, rows in enumerate(np.array_split(np.arange(len(gallery.identities)), count)):
        shard = FeatureGroup(
            gallery.features[rows], gallery.identities[rows], gallery.cameras[rows]
        )
        write_features(folder / f"{number}.h5", {"gallery": shard}, dataset="toy", model="m")
