"""Batches of views of image files: DALI decodes, and the next batch is made in the background.

Every view of an image comes from one decode and one resize. B images of a batch, H rows, W columns
of a view.
"""

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.base.machine import usable_cores
from harness.images.cpu import CpuViews
from harness.images.dali import DaliViews
from harness.images.decoding import Decoder
from harness.images.pixels import Fault, Unreadable, why_unreadable
from harness.images.views import Colour, Resize, Rows, Transform, View, draw_changes

_HEADERS = 1024
"""Files whose headers are read before they are decoded: a damaged one can crash DALI."""
_BATCH_BYTES = 32_000_000
"""Of files that `read_images` decodes at a time: ten photos or so, a third of a GB in memory."""


class ImageLoader:
    """Batches of views of image files, the next one being decoded while the last one is used.

    What a view of an image looks like depends on `seed`, the epoch, the image's position and the
    view's place among `views`; on nothing else, so that batches may be cut in any way among ranks
    and steps. One epoch runs at a time: asking for a new one ends the one before.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        height: int,
        width: int,
        views: Mapping[str, View],
        resize: Resize,
        batch_size: int,
        seed: int,
        threads: int,
        device: str,
        mean: Colour = (0.5, 0.5, 0.5),
        std: Colour = (0.5, 0.5, 0.5),
    ) -> None:
        """Prepare to read `paths`; `batch_size` is the largest batch on this rank, so many
        `threads` decode and as many make views, `device` is torch's name for where batches go
        ("cpu" or "cuda:0"). From pixels (0..1) `mean` is subtracted and `std` divides what is left.
        """
        assert views, "no view asked for"
        assert "rows" not in views, "a batch holds its row numbers under this name"
        self._paths = paths
        self._transform = Transform(dict(views), height, width, resize, mean, std)
        self._batch_size = batch_size
        self._seed = seed
        self._threads = threads
        self._device = torch.device(device)
        self._maker: CpuViews | DaliViews | None = None
        self._is_making = False
        self._epochs_begun = 0

    def epoch(
        self, rows: Sequence[Rows], positions: Sequence[Rows], *, epoch: int
    ) -> Iterator[dict[str, Tensor]]:
        """Return an iterator over batches; the first one is being decoded when this returns.

        `rows` has one array [B] of indices into `paths` per batch; `positions` their places in the
        epoch's order over all ranks, each used once. A batch holds "rows" [B] and every view
        [B, 3, H, W], float32, normalised, on the loader's device, and belongs to the
        caller. While iterating, raises Unreadable with the files that cannot be decoded.
        """
        assert [len(batch) for batch in rows] == [len(batch) for batch in positions]
        assert all(0 < len(batch) <= self._batch_size for batch in rows), "empty or too large"
        self._drain()
        self._epochs_begun += 1
        if rows:
            self._schedule(rows[0], positions[0], epoch)
        return self._batches(rows, positions, epoch, self._epochs_begun)

    def close(self) -> None:
        """Wait for the decoder, then free its threads and buffers. An epoch begun is ended."""
        self._drain()
        self._epochs_begun += 1
        self._end_maker()

    def _batches(
        self, rows: Sequence[Rows], positions: Sequence[Rows], epoch: int, number: int
    ) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(rows):
            assert number == self._epochs_begun, "this epoch was ended by a later one or by close()"
            views = self._receive(batch)
            if step + 1 < len(rows):
                self._schedule(rows[step + 1], positions[step + 1], epoch)
            yield {"rows": torch.tensor(batch, device=self._device), **views}

    def _schedule(self, rows: Rows, positions: Rows, epoch: int) -> None:
        """Draw a batch's changes and start making it in the background."""
        if self._maker is None:
            self._maker = self._new_maker()
        transform = self._transform
        changes = [
            draw_changes(
                view, transform.height, transform.width, (self._seed, epoch, positions, index)
            )
            for index, view in enumerate(transform.views.values())
        ]
        self._is_making = True
        try:
            self._maker.begin([self._paths[row] for row in rows], changes)
        except BaseException:
            self._end_maker()
            raise

    def _receive(self, rows: Rows) -> dict[str, Tensor]:
        """Wait for the scheduled batch: [B, 3, H, W] for each view."""
        assert self._maker is not None
        self._is_making = False
        try:
            return dict(zip(self._transform.views, self._maker.take(), strict=True))
        except BaseException as error:
            self._end_maker()  # of no use from now on
            faults = self._faults(rows) if isinstance(error, RuntimeError) else []
            if not faults:
                raise
            raise Unreadable(faults) from error

    def _new_maker(self) -> CpuViews | DaliViews:
        size, threads = self._batch_size, self._threads
        if self._device.type == "cuda":
            return DaliViews(
                self._transform, batch_size=size, threads=threads, device=self._device
            )
        return CpuViews(self._transform, batch_size=size, threads=threads)

    def _end_maker(self) -> None:
        if self._maker is not None:
            self._maker.close()
        self._maker, self._is_making = None, False

    def _faults(self, rows: Rows) -> list[Fault]:
        paths = dict.fromkeys(self._paths[row] for row in rows)
        decoder = Decoder(batch_size=len(rows), threads=self._threads, device=self._device)
        return decoder.faults(list(paths))

    def _drain(self) -> None:
        """Throw away a batch that was scheduled and never received, a failed one included."""
        if self._maker is None or not self._is_making:
            return
        self._is_making = False
        try:
            self._maker.take()
        except RuntimeError:
            self._end_maker()


def read_images(
    paths: Sequence[str], broken: list[Fault] | None = None, *, height: int, width: int,
    resize: Resize, batch_size: int, device: str, mean: Colour, std: Colour,
) -> Iterator[tuple[Rows, Tensor]]:
    """Yield the unchanged views of image files by batches: rows [b] of `paths`, [b, 3, H, W].

    Files need not have been checked. Those that cannot be decoded are added to `broken` and left
    out; without it, the first ones found raise Unreadable. All cores decode.
    """
    loader = ImageLoader(
        paths, height=height, width=width, views={"image": View()}, resize=resize,
        batch_size=batch_size, seed=0, threads=len(usable_cores()), device=device,
        mean=mean, std=std,
    )
    try:
        for start in range(0, len(paths), _HEADERS):
            rows = np.arange(start, min(start + _HEADERS, len(paths)), dtype=np.int64)
            rows = _left(rows, paths, _header_faults(paths[start : start + _HEADERS]), broken)
            while len(rows):
                batches = _batches(paths, rows, batch_size)
                try:
                    for batch in loader.epoch(batches, batches, epoch=0):
                        yield batch["rows"].cpu().numpy(), batch["image"]
                        rows = rows[len(batch["rows"]) :]
                except Unreadable as error:
                    rows = _left(rows, paths, error.faults, broken)
    finally:
        loader.close()


def _header_faults(paths: Sequence[str]) -> list[Fault]:
    reasons = {path: why_unreadable(path, whole=False) for path in paths}
    return [(path, reason) for path, reason in reasons.items() if reason is not None]


def _batches(paths: Sequence[str], rows: Rows, size: int) -> list[Rows]:
    """Cut rows into batches of `size`, or less where files are large."""
    starts, length = [0], 0
    for place, row in enumerate(rows):
        bytes_of = _size(paths[row])
        length += bytes_of
        if place - starts[-1] == size or (length > _BATCH_BYTES and place > starts[-1]):
            starts.append(place)
            length = bytes_of
    return np.split(rows, starts[1:])


def _size(path: str) -> int:
    """Return a file's bytes; 0 when it is gone, which the decoder then reports."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _left(
    rows: Rows, paths: Sequence[str], faults: Sequence[Fault], broken: list[Fault] | None
) -> Rows:
    """Return the rows that are none of `faults`, which are added to `broken`."""
    if faults and broken is None:
        raise Unreadable(faults)
    if broken is not None:
        broken += faults
    bad = {path for path, _ in faults}
    return np.array([row for row in rows if paths[row] not in bad], dtype=np.int64)


def decoder_name(device: str) -> str:
    """Return what turns files into pixels on `device`, with its version, for cache keys.

    Decoders and resizers of CPU and GPU differ by some grey levels, and so do versions.
    """
    from nvidia import dali  # half a second

    if torch.device(device).type == "cuda":
        return f"dali-{dali.__version__}-gpu-antialias-upright"
    return f"dali-{dali.__version__}-cpu-torch-{torch.__version__}-antialias-upright"
