"""Three stage-2 views at 256 x 128 from JPEG: our loader, against PIL and torchvision.

The floor is decoding by PIL, on as many cores.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from harness.images.loader import ImageLoader
from harness.images.views import Transform, View
from harness.training import ranks
from tests.benchmarks.sizes import Sizes, here
from tests.benchmarks.timing import Row, apart, in_turns, measured, median_s, row

THREADS = len(os.sched_getaffinity(0))


class Views(Dataset):
    """The standard way: each sample opens its file once for the main view, once for the others."""

    def __init__(
        self, paths: Sequence[str], height: int, width: int, *, pad: int = 10, others: bool = True
    ) -> None:
        self.paths, self.others = paths, others
        steps = [
            transforms.Resize((height, width), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(), transforms.Pad(pad),
            transforms.RandomCrop((height, width)), transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
        erase = {"p": 0.5, "ratio": (0.3, 3.3), "value": "random"}
        main = transforms.RandomErasing(scale=(0.02, 1 / 3), **erase)
        other = transforms.RandomErasing(scale=(0.33, 1 / 3), **erase)
        self.main = transforms.Compose([*steps, main])
        self.other = transforms.Compose([*steps, other])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> list[torch.Tensor]:
        first = Image.open(self.paths[row]).convert("RGB")
        if not self.others:
            return [self.main(first)]
        second = Image.open(self.paths[row]).convert("RGB")
        return [self.main(first), self.other(second), self.other(second)]


def measure(sizes: Sizes | None = None) -> Iterator[Row]:
    """Yield a row for small and one for large JPEGs."""
    sizes = sizes or here()
    for height, width in ((128, 64), (500, 200)):
        with tempfile.TemporaryDirectory() as folder:
            paths = write_images(Path(folder), height, width, sizes.files)
            # not apart: the baseline's workers would be half as fast, forked from a fresh process
            yield _views(f"three views, {width}x{height} JPEGs", paths, sizes)


def _views(name: str, paths: list[str], sizes: Sizes) -> Row:
    count, batch = sizes.files, sizes.batch
    rows = [np.arange(i, i + batch) for i in range(0, count, batch)]
    memory_mb = apart(_memory_mb, paths, rows, sizes)
    loader = three_views(paths, batch, sizes)
    plain = DataLoader(
        Views(paths, sizes.height, sizes.width), batch_size=batch, num_workers=sizes.workers,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        ours, baseline = in_turns(
            lambda: _use(loader.epoch(rows, rows, epoch=1)),
            lambda: _use([view.to(ranks.device()) for view in views] for views in plain),
            repeats=sizes.more_repeats,
        )
    finally:
        loader.close()
    floor = median_s(
        lambda: [Image.open(path).load() for path in paths], repeats=sizes.repeats
    ) / THREADS
    # in turns it cannot be seen: a loader keeps its memory, and the baseline's is in its workers
    return row(
        name, "ms/image", ours._replace(memory_mb=memory_mb), baseline._replace(memory_mb=None),
        floor=floor, per=count / 1000, images_per_s=count / ours.median,
    )


def _memory_mb(
    paths: Sequence[str], rows: Sequence[NDArray[np.int64]], sizes: Sizes
) -> float | None:
    """Return what a loader and its batches hold beyond libraries; of a GPU torch does not know."""
    if torch.cuda.is_available():
        return None

    def work(batch: int, batches: Sequence[NDArray[np.int64]]) -> None:
        loader = three_views(paths, batch, sizes)
        _use(loader.epoch(batches, batches, epoch=1))
        loader.close()

    work(1, [rows[0][:1]])  # loads the libraries
    return measured(lambda: work(sizes.batch, rows))[1]


def three_views(paths: Sequence[str], batch: int, sizes: Sizes) -> ImageLoader:
    """Return our way of making the views "main", "a" and "b" on this rank's device."""
    view = View(flip=0.5, pad=10, erase=0.5)
    other = View(flip=0.5, pad=10, erase=0.5, erase_area=(0.33, 1 / 3))
    return ImageLoader(
        paths,
        Transform(
            sizes.height, sizes.width, "bicubic", views={"main": view, "a": other, "b": other}
        ),
        batch_size=batch, seed=1, threads=THREADS, device=str(ranks.device()),
    )


def _use(batches: Iterable[object]) -> None:
    """Take batches as training does, which keeps none."""
    for _ in batches:
        pass


def write_images(folder: Path, height: int, width: int, count: int) -> list[str]:
    """Write so many JPEGs of smooth random colours; returns their paths."""
    rng = np.random.default_rng(1)
    paths = []
    for number in range(count):
        coarse = rng.integers(0, 256, size=(height // 8, width // 8, 3), dtype=np.uint8)
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return paths
