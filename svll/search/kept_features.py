"""Features that an earlier search encoded: a file for each gallery and model.

The file has each image's absolute path, size and modification time, so that a search encodes only
images that are new or changed. Letters: n images, D width of a feature.
"""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.base.files import atomic_write
from harness.base.paths import shown
from harness.base.units import counted
from harness.images.loader import decoder_name
from svll.features.feature_hashes import file_hash
from svll.models.extractor import TEST_RESIZE
from svll.models.trained_model import LoadedModel

VERSION = 1
"""Raised when the same files give other features, so that older ones are not used."""

log = logging.getLogger(__name__)
Features = dict[Path, NDArray[np.float32]]
"""The feature [D] of each image."""
Stamps = dict[Path, tuple[int, int]]
"""Size in bytes and modification time in ns of each image."""


class KeptFeatures:
    """The features of those of `paths` that have not changed since `file` was written."""

    def __init__(self, file: Path, paths: Sequence[Path]) -> None:
        self.file = file
        self._stamps = _stamps_of(paths)  # before images are read: they may change meanwhile
        stamps, features = _read(file)
        self._count = len(stamps)
        self.features: Features = {
            path: features[name] for path in paths
            if (name := Path(os.path.abspath(path))) in stamps
            and stamps[name] == self._stamps.get(path)
        }
        """By the paths as given."""
        if self.features:
            log.info("%s of %s are kept from an earlier search (%s)", len(self.features),
                     counted(len(paths), "feature"), shown(file))

    def write(self, features: Features) -> None:
        """Replace the file by these features, if any is new or gone. A folder that cannot be
        written is logged."""
        paths = [path for path in features if path in self._stamps]
        if not paths or (features.keys() == self.features.keys() and len(paths) == self._count):
            return
        names = b"\0".join(os.fsencode(os.path.abspath(path)) for path in paths)
        try:
            with atomic_write(self.file) as private, private.open("wb") as stream:
                np.savez(
                    stream, paths=np.frombuffer(names, np.uint8),
                    stamps=np.array([self._stamps[path] for path in paths], np.int64),
                    features=np.stack([features[path] for path in paths]),
                )
        except OSError as error:
            log.warning("%s: cannot be written (%s), so the next search encodes these images again",
                        shown(self.file), error.strerror or error)


def kept_file(folder: Path, gallery: Path, weights: Path, model: LoadedModel) -> Path:
    """Return the file for a gallery's features: its name is a hash of all that they depend on
    except the images. weights: the file from which the model was loaded."""
    parts = [
        VERSION, os.path.abspath(gallery), file_hash(weights), model.height, model.width,
        list(model.mean), list(model.std), TEST_RESIZE, decoder_name(str(model.device)),
    ]
    return folder / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.npz"


def _stamps_of(paths: Sequence[Path]) -> Stamps:
    """Return the stamps of images, without those that do not exist."""
    found: Stamps = {}
    for path in paths:
        with suppress(OSError):  # the decoder reports it
            about = path.stat()
            found[path] = about.st_size, about.st_mtime_ns
    return found


def _read(file: Path) -> tuple[Stamps, Features]:
    """Return the stamps and features in a file by absolute paths: none if the file is missing, or
    damaged, which is logged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            names = stored["paths"].tobytes().split(b"\0")
            stamps, features = stored["stamps"].tolist(), stored["features"]
        paths = [Path(os.fsdecode(name)) for name in names]
        pairs = zip(paths, stamps, strict=True)
        return ({path: (size, time) for path, (size, time) in pairs},
                dict(zip(paths, features, strict=True)))
    except FileNotFoundError:
        pass
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        log.warning("%s: is damaged (%s), so all images are encoded again", shown(file), error)
    return {}, {}
