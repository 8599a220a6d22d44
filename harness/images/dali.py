"""Views by DALI: one graph decodes, resizes, crops, mirrors and normalises. The way on GPUs.

It runs on a CPU too, where `harness.images.cpu` is more than twice as fast. B images of a batch, H
rows and W columns of a view.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.images import erasing
from harness.images.decoding import add_decoder, empty_pipeline, file_names
from harness.images.views import Changes, Transform, View


class DaliViews:
    """One batch of views at a time, made in the background."""

    def __init__(
        self, transform: Transform, *, batch_size: int, threads: int, device: torch.device
    ) -> None:
        self._views = transform.views
        self._device = device
        self._pipeline = _view_pipeline(
            transform, batch_size=batch_size, threads=threads, device=device
        )
        self._pending: Sequence[Changes] | None = None
        self._used: tuple[list[Tensor], torch.cuda.Event] | None = None

    def begin(self, paths: Sequence[str], changes: Sequence[Changes]) -> None:
        """Start a batch of the images at `paths`; `changes` has one entry per view."""
        self._pipeline.feed_input("files", file_names(paths))
        for (name, view), change in zip(self._views.items(), changes, strict=True):
            _feed_changes(self._pipeline, name, view, change)
        self._pipeline.schedule_run()
        self._pending = changes

    def take(self) -> list[Tensor]:
        """Wait for the batch that was begun: [B, 3, H, W] per view, the caller's own.

        Raises RuntimeError when one of its files cannot be decoded; of no use from then on.
        """
        assert self._pending is not None
        changes, self._pending = self._pending, None
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device) if on_gpu else None
        outputs = self._pipeline.share_outputs(cuda_stream=stream)
        self._pipeline.release_outputs()
        # DALI does not use memory again that a tensor still holds, released or not.
        images = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        views = [
            erasing.erase(image, change.boxes, change.noise) if view.erase
            else image.clone()  # out of DALI's memory: from there torch's own order protects it
            for view, image, change in zip(self._views.values(), images, changes, strict=True)
        ]
        if stream is not None:
            # The GPU may not have read DALI's memory yet: it is held until the next batch, and
            # by then, after a step, there is nothing to wait for.
            if self._used is not None:
                self._used[1].synchronize()
            self._used = images, stream.record_event()
        return views

    def close(self) -> None:
        """Free the decoder's threads and memory."""
        self._pipeline = None


def _feed_changes(pipeline: Any, name: str, view: View, change: Changes) -> None:
    """Give a view's mirroring and crop to the inputs that `_add_view` made."""
    pipeline.feed_input(f"{name}.mirror", change.mirror.astype(np.int32))
    if view.pad:
        # DALI crops first and mirrors then.
        left = np.where(change.mirror, 2 * view.pad - change.left, change.left)
        for side, place in (("left", left), ("top", change.top)):
            pipeline.feed_input(f"{name}.{side}", (place / (2 * view.pad)).astype(np.float32))


def _view_pipeline(
    transform: Transform, *, batch_size: int, threads: int, device: torch.device
) -> Any:
    """Build: files -> decode -> resize -> padded canvas -> crop, mirror and normalise per view."""
    from nvidia.dali import fn, types

    views, height, width = transform.views, transform.height, transform.width
    kernel = {"bicubic": types.INTERP_CUBIC, "bilinear": types.INTERP_LINEAR}[transform.resize]
    with empty_pipeline(batch_size=batch_size, threads=threads, device=device) as pipeline:
        image = fn.resize(
            # Without antialias a shrunk image is up to 34 grey levels off.
            add_decoder(device), resize_y=height, resize_x=width, interp_type=kernel,
            antialias=True,
        )
        pads = {view.pad for view in views.values()}
        canvases = {pad: _padded(image, pad, height, width) for pad in pads}
        outputs = [
            _add_view(canvases[view.pad], name, view, transform) for name, view in views.items()
        ]
        pipeline.set_outputs(*outputs)
    pipeline.build()
    return pipeline


def _add_view(canvas: Any, name: str, view: View, transform: Transform) -> Any:
    from nvidia.dali import fn, types

    mirror = fn.external_source(name=f"{name}.mirror")
    place = {}
    if view.pad:
        place["crop_pos_x"] = fn.external_source(name=f"{name}.left")
        place["crop_pos_y"] = fn.external_source(name=f"{name}.top")
    return fn.crop_mirror_normalize(
        canvas, crop=(transform.height, transform.width), mirror=mirror,
        mean=[255 * value for value in transform.mean],
        std=[255 * value for value in transform.std],
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
