"""Views on the CPU: DALI decodes, torch resizes, one pass does the rest.

DALI's own resize, crop and normalisation took two and a half times as long, mostly for the cubic
resize. torch's equals PIL's, exactly so where it enlarges. B images of a batch, V views, C = 3
channels, H rows and W columns of a view.
"""

import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base.compiled import kernel
from harness.images import erasing
from harness.images.decoding import decode_pipeline, file_names, resized
from harness.images.transfer import to_device
from harness.images.views import Changes, Take, Transform

_CHANNELS = 3


class CpuViews:
    """Makes one batch of views at a time in the background, on `threads` threads after DALI's, and
    sends it to `device`."""

    def __init__(
        self, transform: Transform, batch_size: int, threads: int, device: torch.device
    ) -> None:
        self._transform = transform
        self._threads = threads
        self._device = device
        self._decoder = decode_pipeline(batch_size, threads, torch.device("cpu"))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="views")
        pixels = transform.height * transform.width
        self._memory = _Memory(batch_size * len(transform.views) * _CHANNELS * pixels)
        self._colours = np.array([transform.mean, transform.std], dtype=np.float32)
        self._table = erasing.normal_table()

    def begin(self, paths: Sequence[str], changes: Changes) -> Take:
        """Start a batch of the images at `paths`."""
        self._decoder.feed_input("files", file_names(paths))
        self._decoder.schedule_run()
        decoded = self._pool.submit(self._decoder.share_outputs)
        size = self._transform.height, self._transform.width
        views = self._memory.take((len(changes.mirror), len(paths), _CHANNELS, *size))
        pads = np.array([view.pad for view in self._transform.views.values()])[:, None]
        crops = changes.mirror, changes.left - pads, changes.top - pads
        parts = [self._pool.submit(self._fill, views, decoded, crops, changes, first)
                 for first in range(self._threads)]

        def take() -> list[Tensor]:
            wait(parts)
            for part in parts:
                part.result()
            self._decoder.release_outputs()
            # of the whole: numpy's slices would not keep it alive, and its memory would be reused
            return [to_device(view, self._device) for view in torch.from_numpy(views)]

        return take

    def close(self) -> None:
        """Wait for the threads, then free them and the decoder."""
        self._pool.shutdown()
        self._decoder = None

    def _fill(
        self, views: NDArray[np.float32], decoded: Future[Any], crops: tuple[NDArray[Any], ...],
        changes: Changes, first: int,
    ) -> None:
        """Write every view of the images `first`, `first + threads`, ..."""
        [images] = decoded.result()
        size = self._transform.height, self._transform.width
        for i in range(first, views.shape[1], self._threads):
            image = resized(np.asarray(images[i]), *size, self._transform.resize)
            _write(views, i, image, *crops, *self._colours)
            for view, boxes, noise in zip(views, changes.boxes, changes.noise, strict=True):
                erasing.erase_box(view[i], boxes[i], noise[i], self._table)


class _Memory:
    """Memory for batches, reused when nobody holds them; clearing fresh pages costs 20 to 40 %."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[NDArray[np.float32]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an uninitialised array; its memory is free again when it is collected."""
        block = self._free.pop() if self._free else np.empty(self._size, dtype=np.float32)
        array = block[: np.prod(shape)].reshape(shape)
        weakref.finalize(array, self._free.append, block).atexit = False
        return array


@kernel
def _write(views, i, image, mirror, left, top, mean, std):  # type: ignore[no-untyped-def]
    """Write the views [V, :, C, H, W] of image `i`: crop, mirror, normalise.

    image [H, W, C] in grey levels; mirror, left, top [V, B]. The crop's corner is given in the
    mirrored image without its border, which is black.
    """
    height, width, channels = image.shape
    level = np.float32(255)
    row = np.empty(width, np.float32)
    for c in range(channels):
        black = (np.float32(0) - mean[c]) / std[c]
        for v in range(len(views)):
            for y in range(height):
                if not 0 <= y + top[v, i] < height:
                    views[v, i, c, y] = black
        for y in range(height):
            for x in range(width):
                row[x] = (np.float32(image[y, x, c]) / level - mean[c]) / std[c]
            for v in range(len(views)):
                if not 0 <= y - top[v, i] < height:
                    continue
                target = views[v, i, c, y - top[v, i]]
                first = min(width, max(0, -left[v, i]))
                last = max(0, min(width, width - left[v, i]))
                target[:first] = black
                target[last:] = black
                if mirror[v, i]:
                    start = width - 1 - left[v, i]
                    for x in range(first, last):
                        target[x] = row[start - x]
                else:
                    for x in range(first, last):
                        target[x] = row[x + left[v, i]]
