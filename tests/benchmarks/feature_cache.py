"""Reading a feature cache, against h5py and against a bare read of as many bytes.

The file was just written, so all three read it from memory that the kernel holds. They take turns,
so that a busy machine slows all.
"""

import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np

from harness.features.rows import THREADS
from svll.base.feature_file import FeatureGroup, read_features, write_features
from tests.benchmarks.timing import Row, measured, seconds

PIECE = 4 * 2**20


def reading(name: str, images: int, width: int, repeats: int) -> Row:
    """One row: all features of a gallery, checked, into new memory."""
    ours, floor, standard, memory = [], [], [], [0.0, 0.0]
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)))) as pool,
    ):
        path = Path(folder) / "features.h5"
        _write(path, images, width)
        size = 4 * images * width
        for _ in range(repeats):
            floor.append(seconds(lambda: _bytes(path, size, pool)))
            taken, peak = measured(lambda: read_features(path))
            ours.append(taken)
            memory[0] = max(memory[0], peak - size / 2**20)
            taken, peak = measured(lambda: _by_h5py(path))
            standard.append(taken)
            memory[1] = max(memory[1], peak - size / 2**20)
    return Row(
        f"cache read, {name}", "s", *map(statistics.median, (ours, standard, floor)), *memory
    )


def _write(path: Path, images: int, width: int) -> None:
    features = np.random.default_rng(1).standard_normal((images, width), dtype=np.float32)
    labels = np.arange(images)
    group = FeatureGroup(features, labels, labels)
    write_features(path, {"gallery": group}, dataset="random", model="none")


def _by_h5py(path: Path) -> None:
    with h5py.File(path, locking=False) as file:
        file["gallery/features"][:]


def _bytes(path: Path, size: int, pool: ThreadPoolExecutor) -> None:
    """Read the first `size` bytes of a file into new memory."""
    target = memoryview(np.empty(size, np.uint8))
    handle = os.open(path, os.O_RDONLY)
    try:
        list(pool.map(
            lambda place: os.preadv(handle, [target[place : place + PIECE]], place),
            range(0, size, PIECE),
        ))
    finally:
        os.close(handle)
