"""What lets processes start sooner: caches of compiled code, on the node's own disk for whatever a
sweep's jobs start, and imports that are not searched for garbage."""

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.base.files import is_private

log = logging.getLogger(__name__)

CACHES = {
    "NUMBA_CACHE_DIR": "numba", "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton", "TORCH_EXTENSIONS_DIR": "extensions", "CUDA_CACHE_PATH": "cuda",
}
"""Environment variables that name the caches of compiled code, and folder names."""
RARELY = 100_000, 20, 20
"""Thresholds of Python's garbage collector while libraries are imported."""


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


@contextmanager
def quick_imports() -> Iterator[None]:
    """Look for garbage rarely while the body imports, and never again in what it has imported.

    Imports leave next to none, but make so many objects that looking through them, then and later,
    takes a sixth of the time in which a run starts.
    """
    before, modules = gc.get_threshold(), len(sys.modules)
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        if len(sys.modules) > modules:  # else all of it was imported before
            gc.freeze()
        gc.set_threshold(*before)
