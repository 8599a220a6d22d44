"""From the configuration to the datasets' records."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
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
    """The training sets of a run, which are joined, and the test sets, which are not."""

    train: tuple[Dataset, ...]
    test: tuple[Dataset, ...]

    @property
    def every(self) -> tuple[Dataset, ...]:
        """Each dataset once."""
        return tuple(dict.fromkeys(self.train + self.test))

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the names and fingerprints of all datasets."""
        return joined_fingerprint({dataset.name: dataset.fingerprint for dataset in self.every})


def trained_on(data: Data) -> list[str]:
    """Return the names of the training sets."""
    return data.train or [data.name]


def tested_on(data: Data) -> list[str]:
    """Return the names of the test sets."""
    return data.test or [data.name]


def root_of(data: Data, name: str) -> str | None:
    """Return a dataset's configured folder."""
    return data.roots.get(name, data.root)


def has_validation(data: Data) -> bool:
    """Tell whether a run has a validation part: held-out identities, or the training list's own."""
    if data.validation or "list" not in trained_on(data):
        return data.validation > 0
    return _list_has_validation(existing_root(data, "list"))


@lru_cache
def _list_has_validation(file: str) -> bool:
    return len(benchmarks.load_benchmark("list", file).validation) > 0


def load_datasets(data: Data, cache: Path) -> Datasets:
    """Return the records of the datasets that the configuration names.

    Without a root the synthetic world is drawn under `cache`, once for all runs. Raises UserError
    for a folder that is missing or lacks a part, and for training images that another set has too.
    """
    train, test = trained_on(data), tested_on(data)
    loaded = {name: load_dataset(data, name, cache) for name in dict.fromkeys(train + test)}
    datasets = Datasets(tuple(loaded[name] for name in train), tuple(loaded[name] for name in test))
    _refuse_shared_files(datasets)
    return datasets


def _refuse_shared_files(datasets: Datasets) -> None:
    """Refuse training images that another set trains on or is tested on.

    The former would give a person two identities, the latter would test on training images.
    """
    for place, dataset in enumerate(datasets.train):
        others = {d.name: [d.query, d.gallery] for d in datasets.test if d is not dataset}
        for other in datasets.train[place + 1 :]:
            others.setdefault(other.name, []).append(other.train)
        own = _by_file(dataset.train.paths) if others else {}
        for name, parts in others.items():
            shared = [path for part in parts for file, path in _by_file(part.paths).items()
                      if file in own]
            if shared:
                raise UserError(f"data: {dataset.name} and {name} share {len(shared)} images, such "
                                f"as {shared[0]}; train on one of the two, and test on no set that "
                                "holds training images of the other")


def _by_file(paths: Iterable[str]) -> dict[str, str]:
    """Return paths by the real path of their file, behind links and other spellings.

    Folders are listed to resolve links only: a stat of each image takes minutes on a slow file
    system.
    """
    names: dict[str, list[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        names.setdefault(folder, []).append(name)
    files = {}
    for folder, here in names.items():
        links: set[str] = set()
        with suppress(OSError):  # the decoding check reports a listed image that is missing
            links = {entry.name for entry in os.scandir(folder) if entry.is_symlink()}
        real = os.path.realpath(folder)
        for name in here:
            path = os.path.join(folder, name)
            files[os.path.realpath(path) if name in links else os.path.join(real, name)] = path
    return files


def load_dataset(data: Data, name: str, cache: Path) -> Dataset:
    """Return the records of one dataset; see `load_datasets`."""
    root = existing_root(data, name)
    if root is None:
        root = str(synthetic.ensure_world(world_of(data.world), cache))
    if name == "synthetic":
        return load_world(root)
    return benchmarks.load_benchmark(name, root, **_options(data, name))


def _options(data: Data, name: str) -> dict[str, bool]:
    """Return the reader's arguments that change the dataset's records."""
    is_dropped = name == VIEWS_LISTED and data.unlisted_views == "drop"
    return {"drop_unlisted": True} if is_dropped else {}


def reading_of(data: Data, name: str) -> tuple[str, str | None]:
    """Return the name of a dataset with its reader's arguments, and its folder."""
    return " ".join([name, *_options(data, name)]), root_of(data, name)


def existing_root(data: Data, name: str) -> str | None:
    """Return a dataset's folder, None for a world to draw; UserError when the folder is missing."""
    root = root_of(data, name)
    if root is None and name != "synthetic":
        raise UserError(needed_root(name))
    return root


def needed_root(name: str) -> str:
    """Return the message for a dataset whose root is not configured."""
    if name == "list":
        return "data.root: the list's file is needed: data.root=FILE.csv"
    what = "your images" if name == "folder" else name
    return f"data.root: the folder of {what} is needed: data.root=DIR"


def world_of(config: WorldConfig) -> synthetic.World:
    """Return the world that the configuration describes."""
    return synthetic.World(**asdict(config))


def joined_fingerprint(fingerprints: dict[str, str]) -> str:
    """Return 16 hex digits over the names and fingerprints of several datasets."""
    text = "\n".join(f"{name}\t{fingerprints[name]}" for name in sorted(fingerprints))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
