"""From the configuration to the datasets' records."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.base.errors import UserError
from svll.base.records import Dataset
from svll.config import VIEWS_LISTED, Data, WorldConfig
from svll.data import benchmarks
from svll.data.readers.drawn_world import load_world
from svll.world import world as synthetic


@dataclass(frozen=True)
class Datasets:
    """What a run trains on, as if it were one, and what it tests on, each for itself."""

    train: tuple[Dataset, ...]
    test: tuple[Dataset, ...]

    @property
    def every(self) -> tuple[Dataset, ...]:
        """Each dataset once."""
        return tuple(dict.fromkeys(self.train + self.test))

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the names and fingerprints of all."""
        return joined_fingerprint({dataset.name: dataset.fingerprint for dataset in self.every})


def trained_on(data: Data) -> list[str]:
    """Return the datasets that are trained on."""
    return data.train or [data.name]


def tested_on(data: Data) -> list[str]:
    """Return the datasets that are tested on."""
    return data.test or [data.name]


def root_of(data: Data, name: str) -> str | None:
    """Return the folder in which a dataset is looked for."""
    return data.roots.get(name, data.root)


def has_validation(data: Data) -> bool:
    """Whether identities are held back for selection, or the list that is trained on has a part."""
    if data.validation or "list" not in trained_on(data):
        return data.validation > 0
    return _list_has_validation(existing_root(data, "list"))


@lru_cache
def _list_has_validation(file: str) -> bool:
    return len(benchmarks.load_benchmark("list", file).validation) > 0


def load_datasets(data: Data, cache: Path) -> Datasets:
    """Return the records of the datasets that the configuration names.

    Without a root the synthetic world is drawn under `cache`, once for all runs. Raises UserError
    for a folder that is missing or lacks a part, and for sets that share images which are trained
    on.
    """
    names = dict.fromkeys(trained_on(data) + tested_on(data))
    found = {name: load_dataset(data, name, cache) for name in names}
    datasets = Datasets(
        tuple(found[name] for name in trained_on(data)),
        tuple(found[name] for name in tested_on(data)),
    )
    _refuse_shared_files(datasets)
    return datasets


def _refuse_shared_files(datasets: Datasets) -> None:
    """Refuse images that two sets train on, and images of one that another is tested on.

    The first would be two identities of one person, the second tested with what was learned.
    """
    for place, dataset in enumerate(datasets.train):
        others = [other for other in datasets.test if other is not dataset]
        named = {other.name: [other.query, other.gallery] for other in others}
        for other in datasets.train[place + 1 :]:
            named.setdefault(other.name, []).append(other.train)
        if not named:
            continue
        own = _files(dataset.train.paths)
        for name, parts in named.items():
            shared = [path for part in parts for file, path in _files(part.paths).items()
                      if file in own]
            if shared:
                raise UserError(
                    f"data: {dataset.name} and {name} share {len(shared)} images, such as "
                    f"{shared[0]}; train on one of the two, and test on no set that holds training "
                    "images of the other"
                )


def _files(paths: Iterable[str]) -> dict[str, str]:
    """Return paths by the real path of the file, by whatever folder or link they name it.

    Folders are listed, and links alone looked at: a stat of each image takes minutes on a slow file
    system.
    """
    names: dict[str, list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        names.setdefault(folder, []).append(name)
    found = {}
    for folder, here in names.items():
        links: set[str] = set()
        with suppress(OSError):  # a listed image that is missing: the decoding check names it
            links = {entry.name for entry in os.scandir(folder) if entry.is_symlink()}
        real = os.path.realpath(folder)
        for name in here:
            path = os.path.join(folder, name)
            found[os.path.realpath(path) if name in links else os.path.join(real, name)] = path
    return found


def load_dataset(data: Data, name: str, cache: Path) -> Dataset:
    """Return the records of one dataset; see `load_datasets`."""
    root = existing_root(data, name)
    if root is None:
        root = str(synthetic.ensure_world(world_of(data.world), cache))
    return load_world(root) if name == "synthetic" else (
        benchmarks.load_benchmark(name, root, **_options(data, name))
    )


def _options(data: Data, name: str) -> dict[str, bool]:
    """Return the arguments of a dataset's reader that change its records."""
    is_dropped = name == VIEWS_LISTED and data.unlisted_views == "drop"
    return {"drop_unlisted": True} if is_dropped else {}


def reading_of(data: Data, name: str) -> tuple[str, str | None]:
    """Return the name of a dataset with its reader's arguments, and its folder."""
    return " ".join([name, *_options(data, name)]), root_of(data, name)


def existing_root(data: Data, name: str) -> str | None:
    """Return a dataset's folder, None for a world that is to be drawn; UserError for no folder."""
    root = root_of(data, name)
    if root is None and name != "synthetic":
        raise UserError(needed_root(name))
    return root


def needed_root(name: str) -> str:
    """Say that the place of a dataset was not given."""
    what = {
        "folder": "the folder of your images is needed: data.root=DIR",
        "list": "the list's file is needed: data.root=FILE.csv",
    }
    return f"data.root: {what.get(name, f'the folder of {name} is needed: data.root=DIR')}"


def world_of(config: WorldConfig) -> synthetic.World:
    """Return the world that the configuration describes."""
    return synthetic.World(
        train_identities=config.train_identities,
        test_identities=config.test_identities,
        kind=config.kind,
        shots=config.shots,
        seed=config.seed,
        occlusion=config.occlusion,
        query_occlusion=config.query_occlusion,
    )


def joined_fingerprint(fingerprints: dict[str, str]) -> str:
    """Return 16 hex digits over the names and fingerprints of several datasets."""
    text = "\n".join(f"{name}\t{fingerprints[name]}" for name in sorted(fingerprints))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
