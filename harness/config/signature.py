"""The signature of a configuration: the name of a run's folder."""

import hashlib
import json
from typing import Any

from harness.config.values import to_mapping


def signature(config: Any) -> str:
    """Return the 12 hex digits that name a run: a hash of everything that can change its result."""
    text = json.dumps(to_mapping(config, with_runtime=False), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
