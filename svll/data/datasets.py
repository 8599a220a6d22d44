"""From the configuration to the datasets' records, and to the fingerprint that names them."""

import hashlib
import logging
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from svll.config import VIEWS_LISTED, Config, Data, WorldConfig
from svll.data import benchmarks
from svll.records import Dataset
from svll.world import world as synthetic

log = logging.getLogger(__name__)

LISTS = (".txt", ".csv", ".tsv", ".xml", ".json", ".mat")
"""How the names of files end that say who is on which image."""
MEMORY_VERSION = 2
"""Of remembered fingerprints: those of other versions name images in another way."""


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
        return _joined({dataset.name: dataset.fingerprint for dataset in self.every})


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
    return _list_has_validation(_root(data, "list"))


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
    found = {name: _load(data, name, cache) for name in names}
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


def _load(data: Data, name: str, cache: Path) -> Dataset:
    root = _root(data, name)
    if root is None:
        root = str(synthetic.ensure_world(world_of(data.world), cache))
    return synthetic.load_world(root) if name == "synthetic" else (
        benchmarks.load_benchmark(name, root, **_options(data, name))
    )


def _options(data: Data, name: str) -> dict[str, bool]:
    """Return the arguments of a dataset's reader that change its records."""
    is_dropped = name == VIEWS_LISTED and data.unlisted_views == "drop"
    return {"drop_unlisted": True} if is_dropped else {}


def _place(data: Data, name: str) -> tuple[str, str | None]:
    """Return the name of a dataset with its reader's arguments, and its folder."""
    return " ".join([name, *_options(data, name)]), root_of(data, name)


def _root(data: Data, name: str) -> str | None:
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


# --- which files a configuration means ---


Seen = dict[tuple[str, str | None], str]
"""Fingerprints by dataset and folder."""


def pin(config: Config, seen: Seen | None = None) -> Config:
    """Return the configuration with the fingerprint of its datasets in it.

    So a run is named by what it is trained on, not by where that lies. A drawn world needs none:
    its description is in the configuration. seen: what one command has looked up so far, as all its
    trials mean the same files. Raises UserError as `load_datasets` does.
    """
    data, seen = config.data, {} if seen is None else seen
    known = {}
    for name in dict.fromkeys(trained_on(data) + tested_on(data)):
        place = _place(data, name)
        if place not in seen:
            seen[place] = _remembered(data, name, Path(config.run.runs) / "cache")
        if seen[place]:
            known[name] = seen[place]
    if not known:
        return config
    return replace(config, data=replace(data, fingerprint=_joined(known)))


def check_pinned(config: Config, datasets: Datasets) -> None:
    """Refuse files that are not those for which the run was made."""
    kept = {
        dataset.name: dataset.fingerprint for dataset in datasets.every
        if root_of(config.data, dataset.name) is not None  # a drawn world is not pinned
    }
    if config.data.fingerprint and _joined(kept) != config.data.fingerprint:
        for name in kept:  # a change that their times did not show
            _memory(config.data, name, Path(config.run.runs) / "cache").unlink(missing_ok=True)
        raise UserError(
            f"the files of {', '.join(kept)} have changed since this run was made (fingerprint "
            f"{_joined(kept)}, was {config.data.fingerprint}); give the command again for a run on "
            "these files, or put the old ones back"
        )


def _joined(fingerprints: dict[str, str]) -> str:
    text = "\n".join(f"{name}\t{fingerprints[name]}" for name in sorted(fingerprints))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _remembered(data: Data, name: str, cache: Path) -> str:
    """Return a dataset's fingerprint, "" for a drawn world.

    Looking at every file of a benchmark takes minutes on a slow file system, and `--status` must
    not, so it is kept together with the times of the image folders, which change with every file
    that is added, removed or renamed, and of the list files. What that cannot see is found when the
    run starts.
    """
    root = _root(data, name)
    if root is None:
        return ""
    file = _memory(data, name, cache)
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        known: dict[str, Any] = read_json(file)
        if known["times"] == _times(known["times"]):
            return str(known["fingerprint"])
    log.info("looking at the files of %s in %s", name, root)
    dataset = _load(data, name, cache)
    folders = {os.path.dirname(path) for path in dataset.files()}
    times = _times(folders | _lists(root, folders))
    with suppress(OSError):  # somebody else's runs can be looked at, too
        write_json(file, {"fingerprint": dataset.fingerprint, "times": times})
    return dataset.fingerprint


def _memory(data: Data, name: str, cache: Path) -> Path:
    """Where the fingerprint of a dataset is kept."""
    what, root = _place(data, name)
    place = f"{MEMORY_VERSION}\t{what}\t{os.path.abspath(str(root))}"
    return cache / "fingerprints" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.json"


def _lists(root: str, image_folders: set[str]) -> set[str]:
    """Return the files that may say who is on which image, and the folders where more may appear.

    They lie in the dataset's folder or one below it; among the images there are none.
    """
    if os.path.isfile(root):
        return {root}
    places = [root, *(entry.path for entry in os.scandir(root) if entry.is_dir())]
    places = [place for place in places if place == root or place not in image_folders]
    files = {
        entry.path for place in places for entry in os.scandir(place)
        if entry.is_file() and entry.name.lower().endswith(LISTS)
    }
    return files | set(places)


def _times(paths: Any) -> dict[str, list[int]]:
    """Return the time and size of each path; 0 for a folder, whose size says nothing."""
    found = {path: os.stat(path) for path in sorted(paths)}
    return {
        path: [about.st_mtime_ns, about.st_size if stat.S_ISREG(about.st_mode) else 0]
        for path, about in found.items()
    }
