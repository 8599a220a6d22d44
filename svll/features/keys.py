"""Names of feature files: hashes over all that can change what is in them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.images.loader import decoder_name
from svll.config import Config
from svll.features.extract import Reader
from svll.models.extractor import TEST_RESIZE


def feature_key(
    fingerprint: str, weights_hash: str, config: Config, reader: Reader, *more: Any
) -> str:
    """Return the name of frozen features: 16 hex digits over all that can change them.

    `more` is what else a file depends on that is made from them.
    """
    parts = [
        fingerprint, weights_hash,
        config.model.name,  # weights in a file fit with GELU and QuickGELU, and give other features
        config.data.height, config.data.width, config.model.stride,
        TEST_RESIZE, decoder_name(reader.device), reader.precision, reader.mean, reader.std, *more,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
