"""What a configuration means by its files: their fingerprints become part of it.

So a run is named by what it is trained on and starts from, not by where that lies; and jobs, which
may have no network, find on disk what was looked up when they were submitted.
"""

import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from svll.config import Config, Model
from svll.data import datasets

log = logging.getLogger(__name__)
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
"""Of files that weights are in."""


def pin(config: Config, seen: datasets.Seen | None = None) -> Config:
    """Return the configuration with the fingerprints of its datasets and its weights file in it.

    seen: what one command has looked up so far, as all its trials mean the same files. Raises
    UserError for datasets or a weights file that are missing, and as `load_datasets` does.
    """
    check_given(config.model)
    path = weights_file(config.model)
    if path is not None:
        seen = {} if seen is None else seen
        place = "weights", str(path)
        if place not in seen:
            seen[place] = _remembered(path, Path(config.run.runs) / "cache")
        config = replace(config, model=replace(config.model, fingerprint=seen[place]))
    return datasets.pin(config, seen)


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


def _remembered(path: Path, cache: Path) -> str:
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
