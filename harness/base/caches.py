"""Caches of compiled code, on the node's own disk for whatever a sweep's jobs start."""

import logging
import os
import tempfile
from pathlib import Path

from harness.base.files import is_private

log = logging.getLogger(__name__)

CACHES = {
    "NUMBA_CACHE_DIR": "numba", "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton", "TORCH_EXTENSIONS_DIR": "extensions", "CUDA_CACHE_PATH": "cuda",
}
"""Environment variables that name the caches of compiled code, and folder names."""


def keep_caches_here() -> None:
    """Keep caches of compiled code on the node, not on the shared file system: for this process and
    those that it starts. Only this user may enter their folder, because caches are loaded as code.
    Variables that are already set stay."""
    place = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    folder = Path(place) / f"svll-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not is_private(folder):
            folder = Path(tempfile.mkdtemp(prefix="svll-", dir=place))
    except OSError as error:
        log.warning("%s: not used as cache of compiled code: %s", folder, error.strerror)
        return
    for variable, name in CACHES.items():
        os.environ.setdefault(variable, str(folder / name))
