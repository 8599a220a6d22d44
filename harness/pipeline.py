"""DALI pipelines: image files to normalised views, on a GPU where there is one, else on the CPU.

Every view of an image comes from one decode and one resize. Where to crop, whether to mirror and
what to erase are drawn here (`harness.rng`) and handed to DALI as inputs, because DALI's own random
operators depend on batch size and history. B images of a batch, H rows, W columns of a view.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from harness import erasing, rng
from harness.errors import UserError

Rows = NDArray[np.int64]
Resize = Literal["bicubic", "bilinear"]
Colour = tuple[float, float, float]
"""A number for each of red, green and blue."""
Fault = tuple[str, str]
"""A file's path, and why it cannot be read."""

CHECK_BATCH = 64
_NOISE = 1
"""Sets the keys of the noise apart from those of the other draws."""


@dataclass(frozen=True)
class View:
    """What happens to an image after the resize. As it stands here, nothing: the test transform."""

    flip: float = 0.0
    """Probability of mirroring left and right."""
    pad: int = 0
    """Black pixels added on each side before a crop back to size at a random place."""
    erase: float = 0.0
    """Probability that a box of the normalised view becomes normal noise."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Least and largest share of the view that the box covers."""

    def __post_init__(self) -> None:
        assert 0 <= self.flip <= 1, self
        assert 0 <= self.erase <= 1, self
        assert self.pad >= 0, self
        assert 0 < self.erase_area[0] <= self.erase_area[1] < 1, self


@dataclass(frozen=True)
class _Changes:
    """What was drawn for one view of a batch, in the order in which it is applied."""

    mirror: NDArray[np.bool_]  # [B]
    left: Rows  # [B], 0 .. 2 * pad, of the crop in the mirrored and padded image
    top: Rows  # [B]
    boxes: Rows  # [B, 4], see harness.erasing
    noise: rng.Words  # [B]


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
        """Prepare to read `paths`; `batch_size` is the largest batch on this rank, `threads` are
        the decoder's, `device` is torch's name for where batches go ("cpu" or "cuda:0"). From
        pixels (0..1) `mean` is subtracted and `std` divides what is left.
        """
        assert views, "no view asked for"
        assert "rows" not in views, "a batch holds its row numbers under this name"
        self._paths = paths
        self._size = (height, width)
        self._views = dict(views)
        self._resize = resize
        self._batch_size = batch_size
        self._seed = seed
        self._threads = threads
        self._device = torch.device(device)
        self._mean, self._std = mean, std
        self._pipeline: Any = None
        self._pending: list[_Changes] | None = None
        self._epochs_begun = 0

    def epoch(
        self, rows: Sequence[Rows], positions: Sequence[Rows], *, epoch: int
    ) -> Iterator[dict[str, Tensor]]:
        """Return an iterator over batches; the first one is being decoded when this returns.

        `rows` has one array [B] of indices into `paths` per batch; `positions` their places in the
        epoch's order over all ranks, each used once. A batch holds "rows" [B] and every view
        [B, 3, H, W], float32, normalised, on the loader's device, and belongs to the
        caller. While iterating, raises UserError naming the files that cannot be decoded.
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
        self._pipeline = None

    def _batches(
        self, rows: Sequence[Rows], positions: Sequence[Rows], epoch: int, number: int
    ) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(rows):
            assert number == self._epochs_begun, "this epoch was ended by a later one or by close()"
            images, changes = self._receive(batch)
            if step + 1 < len(rows):
                self._schedule(rows[step + 1], positions[step + 1], epoch)
            views = {
                name: self._erase(image, change) if view.erase else self._own(image)
                for (name, view), image, change in zip(
                    self._views.items(), images, changes, strict=True
                )
            }
            yield {"rows": torch.tensor(batch, device=self._device), **views}

    def _schedule(self, rows: Rows, positions: Rows, epoch: int) -> None:
        """Draw a batch's changes and start decoding it in the background."""
        if self._pipeline is None:
            self._pipeline = _view_pipeline(
                self._views, *self._size, self._resize, self._mean, self._std,
                batch_size=self._batch_size, threads=self._threads, device=self._device,
            )
        changes = [
            _draw_changes(view, *self._size, (self._seed, epoch, positions, index))
            for index, view in enumerate(self._views.values())
        ]
        self._pipeline.feed_input("files", _file_names(self._paths[row] for row in rows))
        for (name, view), change in zip(self._views.items(), changes, strict=True):
            _feed_changes(self._pipeline, name, view, change)
        self._pipeline.schedule_run()
        self._pending = changes

    def _receive(self, rows: Rows) -> tuple[list[Tensor], list[_Changes]]:
        """Wait for the scheduled batch: one tensor [B, 3, H, W] per view, and what was drawn."""
        assert self._pending is not None
        changes, self._pending = self._pending, None
        stream = torch.cuda.current_stream(self._device) if self._on_gpu else None
        try:
            outputs = self._pipeline.share_outputs(cuda_stream=stream)
        except RuntimeError as error:
            self._pipeline = None  # invalid from now on, says DALI
            faults = self._faults(rows)
            if not faults:
                raise
            raise _unreadable(faults) from error
        self._pipeline.release_outputs()
        # DALI does not use memory again that a tensor still holds, released or not.
        if self._on_gpu:
            return [torch.from_dlpack(output.as_tensor()) for output in outputs], changes
        return [torch.from_numpy(np.asarray(output.as_tensor())) for output in outputs], changes

    def _faults(self, rows: Rows) -> list[Fault]:
        paths = dict.fromkeys(self._paths[row] for row in rows)
        decoder = _Decoder(batch_size=len(rows), threads=self._threads, device=self._device)
        return decoder.faults(list(paths))

    def _erase(self, images: Tensor, change: _Changes) -> Tensor:
        if self._on_gpu:
            return erasing.erase(images, change.boxes, change.noise)
        # In place: no one else sees this memory, and new tensors would cost a tenth of the speed.
        erasing.erase_in_place(images.numpy(), change.boxes, change.noise)
        return images

    def _own(self, images: Tensor) -> Tensor:
        """On a GPU, copy out of DALI's memory: from there torch's own stream order protects it."""
        return images.clone() if self._on_gpu else images

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _drain(self) -> None:
        """Throw away a batch that was scheduled and never received, a failed one included."""
        if self._pending is None:
            return
        self._pending = None
        try:
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()
        except RuntimeError:
            self._pipeline = None


def check_images(
    paths: Sequence[str], *, threads: int, progress: Callable[[int, int], None] | None = None
) -> list[Fault]:
    """Decode every file; return (path, reason) of those that cannot be, in the order of `paths`.

    The decoder is the one that training uses on the CPU. `progress(done, total)` is called now and
    then. 10,000 files of 64 x 128 pixels take one or two seconds on two cores.
    """
    decoder = _Decoder(batch_size=CHECK_BATCH, threads=threads, device=torch.device("cpu"))
    faults: list[Fault] = []
    for start in range(0, len(paths), CHECK_BATCH):
        part = paths[start : start + CHECK_BATCH]
        faults += decoder.faults(part)
        if progress is not None:
            progress(start + len(part), len(paths))
    return faults


def decoder_name(device: str) -> str:
    """Return what turns files into pixels on `device`, with its version, for cache keys.

    Decoders and resizers of CPU and GPU differ by some grey levels, and so do versions.
    """
    from nvidia import dali  # half a second

    kind = "gpu" if torch.device(device).type == "cuda" else "cpu"
    return f"dali-{dali.__version__}-{kind}-antialias"


class _Decoder:
    """Decodes batches of files, only to see whether they can be decoded."""

    def __init__(self, *, batch_size: int, threads: int, device: torch.device) -> None:
        self._batch_size = batch_size
        self._threads = threads
        self._device = device
        self._pipeline: Any = None

    def faults(self, paths: Sequence[str]) -> list[Fault]:
        """Return (path, reason) of each of `paths` that cannot be decoded.

        PIL reads the headers first, since a damaged one can crash DALI. DALI then fails for a batch
        as a whole and does not say which file it was, so in a batch that fails PIL decodes each
        file, and what PIL can read is decoded again, one by one if need be.
        """
        reasons = {path: _why_unreadable(path, whole=False) for path in paths}
        if not self._decodes(_sound(reasons)):
            reasons |= {path: _why_unreadable(path, whole=True) for path in _sound(reasons)}
            if not self._decodes(_sound(reasons)):
                reasons |= {
                    path: "of a kind that the decoder does not read; store it as JPEG or PNG"
                    for path in _sound(reasons)
                    if not self._decodes([path])
                }
        return [(path, reason) for path in paths if (reason := reasons[path]) is not None]

    def _decodes(self, paths: Sequence[str]) -> bool:
        if not paths:
            return True
        if self._pipeline is None:
            self._pipeline = _decode_pipeline(
                batch_size=self._batch_size, threads=self._threads, device=self._device
            )
        try:
            self._pipeline.feed_input("files", _file_names(paths))
            self._pipeline.schedule_run()
            self._pipeline.share_outputs()
        except RuntimeError:
            self._pipeline = None
            return False
        self._pipeline.release_outputs()
        return True


def _sound(reasons: Mapping[str, str | None]) -> list[str]:
    return [path for path, reason in reasons.items() if reason is None]


def _why_unreadable(path: str, *, whole: bool) -> str | None:
    """Say what is wrong with a file; None when PIL reads its header, or `whole`, every pixel."""
    try:
        if os.path.getsize(path) == 0:
            return "empty"
        with Image.open(path) as image:
            if whole:
                image.load()  # PIL's verify() does not notice truncation
    except FileNotFoundError:
        return "missing"
    except IsADirectoryError:
        return "a folder"
    except UnidentifiedImageError:
        return "not an image"
    # What PIL's decoders raise for broken content.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        return "truncated" if "truncated" in str(error).lower() else f"damaged ({error})"
    return None


def _unreadable(faults: list[Fault]) -> UserError:
    lines = "\n".join(f"  {path}: {reason}" for path, reason in faults)
    count = f"{len(faults)} images" if len(faults) > 1 else "an image"
    return UserError(f"cannot decode {count}; replace or remove:\n{lines}")


def _draw_changes(
    view: View, height: int, width: int, key: tuple[int, int, Rows, int]
) -> _Changes:
    """Draw one view of a batch; `key` is seed, epoch, positions [B], the view's index."""
    numbers = rng.uniform(*key, 3 + erasing.DRAWS)
    left, top = rng.below(numbers[:, 1:3], 2 * view.pad + 1).T
    boxes = erasing.draw_boxes(
        numbers[:, 3:], height=height, width=width, probability=view.erase, area=view.erase_area
    )
    return _Changes(numbers[:, 0] < view.flip, left, top, boxes, rng.keys(*key, _NOISE))


def _feed_changes(pipeline: Any, name: str, view: View, change: _Changes) -> None:
    """Give a view's mirroring and crop to the inputs that `_add_view` made."""
    pipeline.feed_input(f"{name}.mirror", change.mirror.astype(np.int32))
    if view.pad:
        # DALI crops first and mirrors then.
        left = np.where(change.mirror, 2 * view.pad - change.left, change.left)
        for side, place in (("left", left), ("top", change.top)):
            pipeline.feed_input(f"{name}.{side}", (place / (2 * view.pad)).astype(np.float32))


def _view_pipeline(
    views: Mapping[str, View], height: int, width: int, resize: Resize, mean: Colour, std: Colour,
    *, batch_size: int, threads: int, device: torch.device,
) -> Any:
    """Build: files -> decode -> resize -> padded canvas -> crop, mirror and normalise per view."""
    from nvidia.dali import fn, types

    kernel = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}[resize]
    with _empty_pipeline(batch_size=batch_size, threads=threads, device=device) as pipeline:
        image = fn.resize(
            # Without antialias a shrunk image is up to 34 grey levels off.
            _decoded(device), resize_y=height, resize_x=width, interp_type=kernel, antialias=True,
        )
        pads = {view.pad for view in views.values()}
        canvases = {pad: _padded(image, pad, height, width) for pad in pads}
        outputs = [
            _add_view(canvases[view.pad], name, view, height, width, mean, std)
            for name, view in views.items()
        ]
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return pipeline


def _add_view(
    canvas: Any, name: str, view: View, height: int, width: int, mean: Colour, std: Colour
) -> Any:
    from nvidia.dali import fn, types

    # Also where it is never mirrored: without an input of its own, DALI would compute two views
    # that look alike once, and erasing in one would erase in both.
    mirror = fn.external_source(name=f"{name}.mirror")
    place = {}
    if view.pad:
        place["crop_pos_x"] = fn.external_source(name=f"{name}.left")
        place["crop_pos_y"] = fn.external_source(name=f"{name}.top")
    return fn.crop_mirror_normalize(
        canvas, crop=(height, width), mirror=mirror,
        mean=[255 * value for value in mean], std=[255 * value for value in std],
        dtype=types.FLOAT, output_layout="CHW", **place,
    )


def _padded(image: Any, pad: int, height: int, width: int) -> Any:
    from nvidia.dali import fn

    if pad == 0:
        return image
    return fn.slice(
        image, start=(-pad, -pad), shape=(height + 2 * pad, width + 2 * pad), axes=(0, 1),
        out_of_bounds_policy="pad", fill_values=0,
    )


def _decode_pipeline(*, batch_size: int, threads: int, device: torch.device) -> Any:
    with _empty_pipeline(batch_size=batch_size, threads=threads, device=device) as pipeline:
        pipeline.set_outputs(_decoded(device))
    pipeline.build()
    return pipeline


def _empty_pipeline(*, batch_size: int, threads: int, device: torch.device) -> Any:
    from nvidia.dali import Pipeline

    return Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        # One batch is ahead because it is scheduled before the last one is handed out. A longer
        # queue would want several batches fed before the first run.
        prefetch_queue_depth=1,
    )


def _decoded(device: torch.device) -> Any:
    """Add the nodes that read and decode the files named by the input "files" [H, W, 3]."""
    from nvidia.dali import fn, types

    content = fn.io.file.read(fn.external_source(name="files"))
    # DALI 2.4.0 crashes the process when the decoder meets a header that it cannot parse while it
    # decodes other images of the batch. Peeking raises an error instead; adding nothing, taken from
    # what was peeked, makes the decoder wait for it.
    shape = fn.peek_image_shape(content, adjust_orientation=False)
    content = content + fn.cast(shape[0] * 0, dtype=types.UINT8)
    if device.type != "cuda":
        return fn.decoders.image(content, device="cpu", adjust_orientation=False)
    return fn.decoders.image(
        content, device="mixed", adjust_orientation=False,
        # The share of a batch that goes to the hardware decoder would depend on the batch.
        hw_decoder_load=0.0,
        # As the CPU's decoder does; and threads are not nailed to cores that other ranks use.
        jpeg_fancy_upsampling=True, affine=False,
    )


def _file_names(paths: Iterable[str]) -> list[NDArray[np.uint8]]:
    """Return paths as DALI takes them: the bytes of each."""
    return [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in paths]
