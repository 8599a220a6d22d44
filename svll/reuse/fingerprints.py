"""What a configuration means by its files: their fingerprints become part of it.

So a run is named by what it is trained on and starts from, not by where that lies; and jobs, which
may have no network, find on disk what was looked up when they were submitted.
"""

import hashlib
import logging
import os
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from svll.config import Config, Data, Model
from svll.data.datasets import (
    Datasets,
    existing_root,
    joined_fingerprint,
    load_dataset,
    reading_of,
    root_of,
    tested_on,
    trained_on,
)

log = logging.getLogger(__name__)
LISTS = (".txt", ".csv", ".tsv", ".xml", ".json", ".mat")
"""How the names of files end that say who is on which image."""
MEMORY_VERSION = 2
"""Of remembered fingerprints: those of other versions name images in another way."""
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
"""Of files that weights are in."""
Seen = dict[tuple[str, str | None], str]
"""Fingerprints by dataset and folder."""


def pin(config: Config, seen: Seen | None = None) -> Config:
    """Return the configuration with the fingerprints of its datasets and its weights file in it.

    seen: what one command has looked up so far, as all its trials mean the same files. Raises
    UserError for datasets or a weights file that are missing, and as `load_datasets` does.
    """
    check_given(config.model)
    seen = {} if seen is None else seen
    path = weights_file(config.model)
    if path is not None:
        place = "weights", str(path)
        if place not in seen:
            seen[place] = _weights_fingerprint(path, Path(config.run.runs) / "cache")
        config = replace(config, model=replace(config.model, fingerprint=seen[place]))
    return _pin_datasets(config, seen)


# --- datasets ---


def check_pinned(config: Config, datasets: Datasets) -> None:
    """Refuse files that are not those for which the run was made."""
    kept = {
        dataset.name: dataset.fingerprint for dataset in datasets.every
        if root_of(config.data, dataset.name) is not None  # a drawn world is not pinned
    }
    found = joined_fingerprint(kept)
    if config.data.fingerprint and found != config.data.fingerprint:
        for name in kept:  # a change that their times did not show
            _memory(config.data, name, Path(config.run.runs) / "cache").unlink(missing_ok=True)
        raise UserError(
            f"the files of {', '.join(kept)} have changed since this run was made (fingerprint "
            f"{found}, was {config.data.fingerprint}); give the command again for a run on these "
            "files, or put the old ones back"
        )


def _pin_datasets(config: Config, seen: Seen) -> Config:
    """Return the configuration with the fingerprint of its datasets in it.

    So a run is named by what it is trained on, not by where that lies. A drawn world needs none:
    its description is in the configuration. seen: what one command has looked up so far, as all its
    trials mean the same files. Raises UserError as `load_datasets` does.
    """
    data, known = config.data, {}
    for name in dict.fromkeys(trained_on(data) + tested_on(data)):
        place = reading_of(data, name)
        if place not in seen:
            seen[place] = _dataset_fingerprint(data, name, Path(config.run.runs) / "cache")
        if seen[place]:
            known[name] = seen[place]
    if not known:
        return config
    return replace(config, data=replace(data, fingerprint=joined_fingerprint(known)))


def _dataset_fingerprint(data: Data, name: str, cache: Path) -> str:
    """Return a dataset's fingerprint, "" for a drawn world.

    Looking at every file of a benchmark takes minutes on a slow file system, and `--status` must
    not, so it is kept together with the times of the image folders, which change with every file
    that is added, removed or renamed, and of the list files. What that cannot see is found when the
    run starts.
    """
    root = existing_root(data, name)
    if root is None:
        return ""
    file = _memory(data, name, cache)
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        known: dict[str, Any] = read_json(file)
        if known["times"] == _times(known["times"]):
            return str(known["fingerprint"])
    log.info("looking at the files of %s in %s", name, root)
    dataset = load_dataset(data, name, cache)
    folders = {os.path.dirname(path) for path in dataset.files()}
    times = _times(folders | _lists(root, folders))
    with suppress(OSError):  # somebody else's runs can be looked at, too
        write_json(file, {"fingerprint": dataset.fingerprint, "times": times})
    return dataset.fingerprint


def _memory(data: Data, name: str, cache: Path) -> Path:
    """Where the fingerprint of a dataset is kept."""
    what, root = reading_of(data, name)
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


# --- weights ---


def check_given(model: Model) -> None:
    """Refuse weights that are not there."""
    if weights_file(model) is None and _is_path(model.weights):
        raise UserError(
            f"model.weights: {model.weights}: no such file; give a weights file, or a tag of "
            "open_clip such as openai"
        )


def weights_file(model: Model) -> Path | None:
    """Return the file that the weights are in, None for a tag, the shipped and random ones."""
    if model.weights is None or not Path(model.weights).is_file():
        return None
    return Path(model.weights)


def _is_path(weights: str | None) -> bool:
    """Whether that is meant as a file: tags of open_clip have neither folders nor such endings."""
    return weights is not None and ("/" in weights or weights.endswith(SUFFIXES))


def check_weights(model: Model) -> None:
    """Refuse a weights file that is not the one for which the run was made."""
    path = weights_file(model)
    if model.fingerprint and path is None:
        raise UserError(f"model.weights: {model.weights} is not there any more")
    if path is not None and model.fingerprint and _fingerprint(path) != model.fingerprint:
        raise UserError(
            f"model.weights: {path} has changed since this run was made; give the command again "
            "for a run from this file, or put the old one back"
        )


def _weights_fingerprint(path: Path, cache: Path) -> str:
    """Return a file's fingerprint, kept with its size and time, as hashing a large one is slow."""
    about = path.stat()
    known = {"size": about.st_size, "time": about.st_mtime_ns}
    key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    file = cache / "fingerprints" / f"{key}.json"
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        found: dict[str, Any] = read_json(file)
        if {name: found[name] for name in known} == known:
            return str(found["fingerprint"])
    log.info("hashing %s", path)
    fingerprint = _fingerprint(path)
    with suppress(OSError):  # somebody else's runs can be looked at, too
        write_json(file, {**known, "fingerprint": fingerprint})
    return fingerprint


def _fingerprint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"model.weights: {path} cannot be read: {error.strerror}") from None
