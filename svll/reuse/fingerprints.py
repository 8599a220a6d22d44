"""Fingerprints of a configuration's files, which become part of the configuration.

A run is thus named by the files that it is trained on and starts from, not by their folders; and
jobs, which may have no network, find what the submission has downloaded.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.base.paths import SAFETENSORS, refuse
from svll.config import Config, Data, Model
from svll.data import datasets

log = logging.getLogger(__name__)
LISTS = (".txt", ".csv", ".tsv", ".xml", ".json", ".mat")
"""Suffixes of files that may hold labels."""
CACHE_VERSION = 2
"""Of cached fingerprints: other versions name images in another way."""
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
"""Suffixes of weights files."""
Times = dict[str, list[int]]
"""Modification time in ns and size by path."""
Fingerprints = dict[tuple[str, str | None], str]
"""By dataset and folder."""


def pin(config: Config, seen: Fingerprints | None = None) -> Config:
    """Return the configuration with the fingerprints of its datasets and its weights file in it.

    A drawn world needs none: its description is in the configuration. seen: fingerprints that one
    command shares between its trials. Raises UserError for datasets or a weights file that are
    missing, and as `load_datasets` does.
    """
    check_given(config.model)
    seen, cache = {} if seen is None else seen, Path(config.run.runs) / "cache"
    path = weights_file(config.model)
    if path is not None:
        place = "weights", str(path)
        if place not in seen:
            seen[place] = _weights_fingerprint(path, cache)
        config = replace(config, model=replace(config.model, fingerprint=seen[place]))
    data, found = config.data, {}
    for name in dict.fromkeys(datasets.trained_on(data) + datasets.tested_on(data)):
        reading = datasets.reading_of(data, name)
        if reading not in seen:
            seen[reading] = _dataset_fingerprint(data, name, cache)
        if seen[reading]:
            found[name] = seen[reading]
    if not found:
        return config
    return replace(config, data=replace(data, fingerprint=datasets.joined_fingerprint(found)))


def _cached(file: Path, compute: Callable[[], tuple[str, Times]]) -> str:
    """Return the fingerprint in `file` while the times in it hold, else compute and write it."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        stored: dict[str, Any] = read_json(file)
        if stored["times"] == _times(stored["times"]):
            return str(stored["fingerprint"])
    fingerprint, times = compute()
    with suppress(OSError):  # the folder of another user's runs is read-only
        write_json(file, {"fingerprint": fingerprint, "times": times})
    return fingerprint


def _cache_file(cache: Path, place: str) -> Path:
    return cache / "fingerprints" / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.json"


def _times(paths: Iterable[str]) -> Times:
    """Return the time and size of each path; size 0 for a folder, where it means nothing."""
    found = {path: os.stat(path) for path in sorted(paths)}
    return {
        path: [about.st_mtime_ns, about.st_size if stat.S_ISREG(about.st_mode) else 0]
        for path, about in found.items()
    }


def check_pinned(config: Config, loaded: datasets.Datasets) -> None:
    """Raise UserError for files that differ from those that the run was made for."""
    data = config.data
    kept = {
        dataset.name: dataset.fingerprint for dataset in loaded.every
        if datasets.root_of(data, dataset.name) is not None  # a drawn world is not pinned
    }
    found = datasets.joined_fingerprint(kept)
    if data.fingerprint and found != data.fingerprint:
        for name in kept:  # a change that their times did not show
            _dataset_cache(data, name, Path(config.run.runs) / "cache").unlink(missing_ok=True)
        raise UserError(f"the files of {', '.join(kept)} have changed since this run was made "
                        f"(fingerprint {found}, was {data.fingerprint}); give the command again "
                        "for a run on these files, or put the old ones back")


def _dataset_fingerprint(data: Data, name: str, cache: Path) -> str:
    """Return a dataset's fingerprint, "" for a drawn world.

    Reading every file takes minutes on a slow file system, too long for `--status`. So it is cached
    with the times of list files and image folders, which change with every file that is added,
    removed or renamed; `check_pinned` finds other changes when the run starts.
    """
    root = datasets.existing_root(data, name)
    if root is None:
        return ""

    def compute() -> tuple[str, Times]:
        log.info("looking at the files of %s in %s", name, root)
        dataset = datasets.load_dataset(data, name, cache)
        folders = {os.path.dirname(path) for path in dataset.files()}
        return dataset.fingerprint, _times(folders | _lists(root, folders))

    return _cached(_dataset_cache(data, name, cache), compute)


def _dataset_cache(data: Data, name: str, cache: Path) -> Path:
    reading, root = datasets.reading_of(data, name)
    return _cache_file(cache, f"{CACHE_VERSION}\t{reading}\t{os.path.abspath(str(root))}")


def _lists(root: str, image_folders: set[str]) -> set[str]:
    """Return the files that may hold labels, and the folders where more may appear."""
    if os.path.isfile(root):
        return {root}
    below = {entry.path for entry in os.scandir(root) if entry.is_dir()}
    folders = {root, *(below - image_folders)}
    files = {
        entry.path for folder in folders for entry in os.scandir(folder)
        if entry.is_file() and entry.name.lower().endswith(LISTS)
    }
    return files | folders


def check_given(model: Model) -> None:
    """Raise UserError for a weights file that does not exist."""
    # tags of open_clip have neither folders nor such suffixes
    weights = model.weights or ""
    if weights.endswith(".safetensors"):
        refuse("model.weights", weights, SAFETENSORS)
    if ("/" in weights or weights.endswith(SUFFIXES)) and weights_file(model) is None:
        raise UserError(f"model.weights: {weights}: no such file; give a weights file, or a tag of "
                        "open_clip such as openai")


def weights_file(model: Model) -> Path | None:
    """Return the file of the weights, None for a tag, the shipped and random ones."""
    if model.weights is None or not Path(model.weights).is_file():
        return None
    return Path(model.weights)


def check_weights(model: Model) -> None:
    """Raise UserError unless the weights file is the one that the run was made for."""
    if not model.fingerprint:
        return
    path = weights_file(model)
    if path is None:
        raise UserError(f"model.weights: {model.weights} no longer exists")
    if _file_fingerprint(path) != model.fingerprint:
        raise UserError(f"model.weights: {path} has changed since this run was made; give the "
                        "command again for a run from this file, or put the old one back")


def _weights_fingerprint(path: Path, cache: Path) -> str:
    """Return a file's fingerprint, cached because hashing a large file is slow."""

    def compute() -> tuple[str, Times]:
        log.info("hashing %s", path)
        times = _times([str(path.absolute())])
        return _file_fingerprint(path), times

    return _cached(_cache_file(cache, str(path.absolute())), compute)


def _file_fingerprint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"model.weights: {path} cannot be read: {error.strerror}") from None
