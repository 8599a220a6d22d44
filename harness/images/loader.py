"""Batches of views of image files; the next batch is made while one is used. All views of an image
share one decode and resize. B images of a batch; H rows, W columns of a view."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from harness.base.errors import UserError
from harness.base.machine import usable_cores
from harness.images.cpu import CpuViews
from harness.images.dali import DaliViews
from harness.images.decoding import Decoder, raise_if_of_machine, raise_if_of_memory
from harness.images.pixels import Fault, Unreadable, why_unreadable
from harness.images.views import Rows, Take, Transform, draw_changes

_HEADERS = 1024
"""Files whose headers are read before they are decoded: a damaged one can crash DALI."""
_BATCH_BYTES = 32_000_000
"""Bytes of files that `read_images` decodes at a time: ten photos or so, 0.3 GB in memory."""


class ImageLoader:
    """Batches of views of image files.

    A view of an image depends only on `seed`, the epoch, the image's position and the view's place
    in `transform.views`, so batches may be cut in any way among ranks and steps. One epoch runs at
    a time: a new one ends the one before.
    """

    def __init__(
        self, paths: Sequence[str], transform: Transform, *, batch_size: int, seed: int,
        threads: int, device: str, on_cpu: bool = False,
    ) -> None:
        """`batch_size`: the largest batch on this rank; `threads`: threads that decode, and as many
        that make views; `device`: torch's name for where batches go ("cpu" or "cuda:0"); `on_cpu`:
        make them on the CPU and send them there.
        """
        assert transform.views, "no view requested"
        assert "rows" not in transform.views, "a batch holds its row numbers under this name"
        self._paths = paths
        self._transform = transform
        self._batch_size = batch_size
        self._seed = seed
        self._threads = threads
        self._device = torch.device(device)
        self._decodes_on = torch.device("cpu") if on_cpu else self._device
        self._maker: CpuViews | DaliViews | None = None
        self._take: Take | None = None  # of the batch that was begun
        self._epochs_begun = 0

    def epoch(
        self, rows: Sequence[Rows], positions: Sequence[Rows], *, epoch: int
    ) -> Iterator[dict[str, Tensor]]:
        """Return an iterator over batches; the first one is being decoded when this returns.

        `rows`: an array [B] of indices into `paths` per batch; `positions`: their places in the
        epoch's order over all ranks, each used once. A batch holds "rows" [B], on the host, and
        every view [B, 3, H, W], float32, normalised, on the loader's device, owned by the caller.
        Iterating raises Unreadable with the files that cannot be decoded.
        """
        assert [len(batch) for batch in rows] == [len(batch) for batch in positions]
        assert all(0 < len(batch) <= self._batch_size for batch in rows), "empty or too large"
        self._drain()
        self._epochs_begun += 1
        if rows:
            self._schedule(rows[0], positions[0], epoch)
        return self._batches(rows, positions, epoch, self._epochs_begun)

    def close(self) -> None:
        """End the running epoch and free the decoder's threads and buffers."""
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
            yield {"rows": torch.tensor(batch), **views}

    def _schedule(self, rows: Rows, positions: Rows, epoch: int) -> None:
        """Draw a batch's changes and start making it in the background."""
        changes = draw_changes(self._transform, self._seed, epoch, positions)
        try:
            self._maker = self._maker or self._new_maker()
            self._take = self._maker.begin([self._paths[row] for row in rows], changes)
        except BaseException as error:
            self._end_maker()
            if isinstance(error, RuntimeError):
                raise_if_of_machine(error, self._decodes_on)
            raise

    def _new_maker(self) -> CpuViews | DaliViews:
        given = self._transform, self._batch_size, self._threads, self._device
        if self._decodes_on.type == "cpu":
            return CpuViews(*given)
        try:
            return DaliViews(*given)
        except RuntimeError as error:
            raise_if_of_memory(error, self._device)
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"DALI cannot use {self._device} ({reason}); set data.device=cpu, "
                            "which makes images on the CPU") from error

    def _receive(self, rows: Rows) -> dict[str, Tensor]:
        """Wait for the scheduled batch: [B, 3, H, W] for each view."""
        assert self._take is not None
        take, self._take = self._take, None
        try:
            return dict(zip(self._transform.views, take(), strict=True))
        except BaseException as error:
            self._end_maker()  # unusable after a failure
            if not isinstance(error, RuntimeError):
                raise
            raise_if_of_machine(error, self._decodes_on)
            decoder = Decoder(len(rows), self._threads, self._decodes_on)
            faults = decoder.faults(list(dict.fromkeys(self._paths[row] for row in rows)))
            if not faults:
                raise
            raise Unreadable(faults) from error

    def _end_maker(self) -> None:
        if self._maker is not None:
            self._maker.close()
        self._maker = self._take = None

    def _drain(self) -> None:
        """Discard a batch that was scheduled and never received, even one that failed."""
        take, self._take = self._take, None
        try:
            if take is not None:
                take()
        except RuntimeError:
            self._end_maker()


def read_images(
    paths: Sequence[str], transform: Transform, broken: list[Fault] | None = None, *,
    batch_size: int, device: str,
) -> Iterator[tuple[Rows, Tensor]]:
    """Yield the view "image" of image files in batches: rows [b] of `paths`, [b, 3, H, W].

    Files need not have been checked. Those that cannot be decoded are added to `broken` and left
    out; without it, the first ones found raise Unreadable. All cores decode.
    """
    loader = ImageLoader(
        paths, transform, batch_size=batch_size, seed=0, threads=len(usable_cores()), device=device
    )
    with closing(loader):
        for start in range(0, len(paths), _HEADERS):
            rows = np.arange(start, min(start + _HEADERS, len(paths)), dtype=np.int64)
            rows = _without(rows, paths, _header_faults(paths[start : start + _HEADERS]), broken)
            while len(rows):
                batches = _batches(paths, rows, batch_size)
                try:
                    for batch in loader.epoch(batches, batches, epoch=0):
                        yield batch["rows"].numpy(), batch["image"]
                        rows = rows[len(batch["rows"]) :]
                except Unreadable as error:
                    rows = _without(rows, paths, error.faults, broken)


def _header_faults(paths: Sequence[str]) -> list[Fault]:
    reasons = {path: why_unreadable(path, whole=False) for path in paths}
    return [(path, reason) for path, reason in reasons.items() if reason is not None]


def _batches(paths: Sequence[str], rows: Rows, size: int) -> list[Rows]:
    """Cut rows into batches of `size`, or fewer where files are large."""
    starts, length = [0], 0
    for place, row in enumerate(rows):
        try:
            file_bytes = os.path.getsize(paths[row])
        except OSError:  # gone: the decoder reports it
            file_bytes = 0
        length += file_bytes
        if place - starts[-1] == size or (length > _BATCH_BYTES and place > starts[-1]):
            starts.append(place)
            length = file_bytes
    return np.split(rows, starts[1:])


def _without(
    rows: Rows, paths: Sequence[str], faults: Sequence[Fault], broken: list[Fault] | None
) -> Rows:
    """Return the rows that are not among `faults`, which are added to `broken`."""
    if faults and broken is None:
        raise Unreadable(faults)
    if broken is not None:
        broken += faults
    bad = {path for path, _ in faults}
    return np.array([row for row in rows if paths[row] not in bad], dtype=np.int64)


def decoder_name(device: str) -> str:
    """Return the decoder and resizer of `device` with their versions, for cache keys. Pixels differ
    by some grey levels between CPU and GPU, and between versions."""
    from nvidia import dali  # half a second

    if torch.device(device).type == "cuda":
        return f"dali-{dali.__version__}-gpu-antialias-upright"
    return f"dali-{dali.__version__}-cpu-torch-{torch.__version__}-antialias-upright"
