"""Names of feature files: hashes over everything that can change their content."""

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.images.loader import decoder_name
from svll.config import Config
from svll.features.extract import Reader
from svll.models.extractor import TEST_RESIZE


def feature_key(data: str, weights: str, config: Config, reader: Reader, *more: Any) -> str:
    """Return 16 hex digits over everything that can change features: hashes of both, and `more`."""
    parts = [
        data, weights,
        config.model.name,  # the same weights give other features with GELU than with QuickGELU
        config.data.height, config.data.width, config.model.stride,
        TEST_RESIZE, decoder_name(reader.decodes_on), reader.precision, reader.mean, reader.std,
        *more,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
