"""From the configuration to a dataset's records."""

from pathlib import Path

from svll.config import Data, WorldConfig
from svll.data import market1501, synthetic
from svll.data.records import Dataset


def load_dataset(data: Data, cache: Path) -> Dataset:
    """Return the records of the dataset that the configuration names.

    Without a root the synthetic world is drawn under `cache`, once for all runs. Raises UserError
    for a folder that is missing or lacks a part.
    """
    if data.name == "synthetic":
        if data.root is not None:
            return synthetic.load_world(data.root)
        return synthetic.load_world(synthetic.ensure_world(world_of(data.world), cache))
    assert data.root is not None, "checked by the configuration"
    return market1501.load(data.root)


def world_of(config: WorldConfig) -> synthetic.World:
    """Return the world that the configuration describes."""
    return synthetic.World(
        train_identities=config.train_identities,
        test_identities=config.test_identities,
        kind=config.kind,
        shots=config.shots,
        seed=config.seed,
        occlusion=config.occlusion,
    )
