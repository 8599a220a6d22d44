"""Views by DALI, for GPUs: one graph decodes, resizes, crops, mirrors and normalises.

It runs on a CPU too, where `harness.images.cpu` is more than twice as fast. B images of a batch, H
rows and W columns of a view.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.images import erasing
from harness.images.decoding import add_decoder, build_pipeline, file_names
from harness.images.views import Changes, Take, Transform


class DaliViews:
    """Makes one batch of views at a time in the background."""

    def __init__(
        self, transform: Transform, batch_size: int, threads: int, device: torch.device
    ) -> None:
        self._views = transform.views
        self._device = device
        self._pipeline = build_pipeline(
            lambda: _add_views(transform, device), batch_size, threads, device
        )
        self._used: tuple[list[Tensor], torch.cuda.Event] | None = None

    def begin(self, paths: Sequence[str], changes: Changes) -> Take:
        """Start a batch of the images at `paths`."""
        self._pipeline.feed_input("files", file_names(paths))
        for v, (name, view) in enumerate(self._views.items()):
            mirror, left, top = changes.mirror[v], changes.left[v], changes.top[v]
            self._pipeline.feed_input(f"{name}.mirror", mirror.astype(np.int32))
            if view.pad:
                border = 2 * view.pad  # of both sides; DALI crops before it mirrors
                left = np.where(mirror, border - left, left)
                for side, place in (("left", left), ("top", top)):
                    self._pipeline.feed_input(f"{name}.{side}", (place / border).astype(np.float32))
        self._pipeline.schedule_run()
        return partial(self._take, changes)

    def _take(self, changes: Changes) -> list[Tensor]:
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.current_stream(self._device) if on_gpu else None
        outputs = self._pipeline.share_outputs(cuda_stream=stream)
        self._pipeline.release_outputs()
        # DALI does not reuse memory that a tensor still holds, released or not.
        images = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        each = zip(self._views.values(), images, changes.boxes, changes.noise, strict=True)
        views = [
            erasing.erase(image, boxes, noise) if view.erase
            else image.clone()  # out of DALI's memory: from there torch's own order protects it
            for view, image, boxes, noise in each
        ]
        if stream is not None:
            # The GPU may not have read DALI's memory yet, so that is held until the next batch;
            # by then, after a step, there is nothing to wait for.
            if self._used is not None:
                self._used[1].synchronize()
            self._used = images, stream.record_event()
        return views

    def close(self) -> None:
        """Free the decoder's threads and memory."""
        self._pipeline = None


def _add_views(transform: Transform, device: torch.device) -> list[Any]:
    """Add: files -> decode -> resize -> padded canvas -> crop, mirror and normalise per view."""
    from nvidia.dali import fn, types

    height, width = transform.height, transform.width
    image = fn.resize(
        add_decoder(device), resize_y=height, resize_x=width,
        interp_type=types.INTERP_CUBIC if transform.resize == "bicubic" else types.INTERP_LINEAR,
        antialias=True,  # without it a shrunk image is up to 34 grey levels off
    )
    canvases = {0: image}
    for pad in {view.pad for view in transform.views.values()} - {0}:
        canvases[pad] = fn.slice(
            image, start=(-pad, -pad), shape=(height + 2 * pad, width + 2 * pad), axes=(0, 1),
            out_of_bounds_policy="pad", fill_values=0,
        )
    mean, std = ([255 * value for value in values] for values in (transform.mean, transform.std))
    outputs = []
    for name, view in transform.views.items():
        sides = {"crop_pos_x": "left", "crop_pos_y": "top"} if view.pad else {}
        place = {key: fn.external_source(name=f"{name}.{side}") for key, side in sides.items()}
        outputs.append(fn.crop_mirror_normalize(
            canvases[view.pad], mirror=fn.external_source(name=f"{name}.mirror"), mean=mean,
            std=std, crop=(height, width), dtype=types.FLOAT, output_layout="CHW", **place,
        ))
    return outputs
