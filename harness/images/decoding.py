"""DALI's decoders, the files that they cannot read, and the resize on a CPU."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from harness.base.caches import quick_imports
from harness.images.pixels import Fault, unsupported, why_unreadable

if TYPE_CHECKING:  # Numba
    from harness.images.views import Resize

CHECK_BATCH = 64
_MEMORY = re.compile(r"out of memory|bad_alloc|[Cc]an't allocate|CUDA allocation failed|"
                     r"cudaErrorMemoryAllocation")
_MACHINE = re.compile(r"CUDA (error|runtime API error|[Dd]river API error)|nvml error|cudaError")
"""What messages of DALI and torch say of a full memory, and of other faults of the machine."""


def check_images(
    paths: Sequence[str], *, threads: int, progress: Callable[[int, int], None] | None = None
) -> list[Fault]:
    """Decode every file as training on the CPU does; return those that fail, in order.
    `progress(done, total)` is called now and then. 10,000 small files take a second or two."""
    decoder = Decoder(CHECK_BATCH, threads, torch.device("cpu"))
    faults: list[Fault] = []
    for start in range(0, len(paths), CHECK_BATCH):
        part = paths[start : start + CHECK_BATCH]
        faults += decoder.faults(part)
        if progress is not None:
            progress(start + len(part), len(paths))
    return faults


class Decoder:
    """Decodes batches of files, only to see whether they can be decoded."""

    def __init__(self, batch_size: int, threads: int, device: torch.device) -> None:
        self._device = device
        self._new_pipeline = partial(decode_pipeline, batch_size, threads, device)
        self._pipeline: Any = None

    def faults(self, paths: Sequence[str]) -> list[Fault]:
        """Return (path, reason) of each of `paths` that cannot be decoded. Raises as
        `raise_if_of_machine` does what is no fault of theirs.

        PIL reads the headers first, since a damaged one can crash DALI. DALI does not say which
        file of a batch failed, so PIL then decodes each, and DALI again what PIL can read.
        """
        reasons = {path: why_unreadable(path, whole=False) for path in paths}

        def sound() -> list[str]:
            return [path for path, reason in reasons.items() if reason is None]

        if not self._decodes(sound()):
            reasons |= {path: why_unreadable(path, whole=True) for path in sound()}
            if not self._decodes(sound()):
                for path in sound():
                    if not self._decodes([path]):
                        with Image.open(path) as image:
                            reasons[path] = unsupported(image)
        return [(path, reason) for path in paths if (reason := reasons[path]) is not None]

    def _decodes(self, paths: Sequence[str]) -> bool:
        if not paths:
            return True
        self._pipeline = self._pipeline or self._new_pipeline()
        try:
            self._pipeline.feed_input("files", file_names(paths))
            self._pipeline.schedule_run()
            self._pipeline.share_outputs()
        except RuntimeError as error:
            self._pipeline = None
            raise_if_of_machine(error, self._device)
            return False
        self._pipeline.release_outputs()
        return True


def raise_if_of_machine(error: RuntimeError, device: torch.device) -> None:
    """Raise an error of decoding on `device` that is none of the files."""
    raise_if_of_memory(error, device)
    if _MACHINE.search(str(error)):
        raise error


def raise_if_of_memory(error: RuntimeError, device: torch.device) -> None:
    """Raise MemoryError, or torch's for a GPU, if an error says that the memory is full."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    if _MEMORY.search(str(error)):
        reason = f"while images are decoded: {reason_of(error)}"
        if device.type == "cuda":
            raise torch.OutOfMemoryError(f"CUDA out of memory {reason}") from error
        raise MemoryError(reason) from error


def reason_of(error: RuntimeError) -> str:
    """Return what went wrong from a message of DALI, which begins with the place in the graph and
    ends with advice on the pipeline."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and "no longer valid" not in line]
    return reasons[-1] if reasons else type(error).__name__


def decode_pipeline(batch_size: int, threads: int, device: torch.device) -> Any:
    """Build a DALI pipeline: files -> decoded images."""
    return build_pipeline(lambda: [add_decoder(device)], batch_size, threads, device)


def build_pipeline(
    add_nodes: Callable[[], Sequence[Any]], batch_size: int, threads: int, device: torch.device
) -> Any:
    """Build a DALI pipeline whose outputs are the nodes that `add_nodes` returns."""
    with quick_imports():
        from nvidia.dali import Pipeline

    pipeline = Pipeline(
        batch_size=batch_size, num_threads=threads,
        device_id=(device.index or 0) if device.type == "cuda" else None,
        # One batch is ahead because it is scheduled before the last one is handed out. A longer
        # queue would need several batches before the first run.
        prefetch_queue_depth=1,
    )
    with pipeline:
        pipeline.set_outputs(*add_nodes())
    pipeline.build()
    return pipeline


def add_decoder(device: torch.device) -> Any:
    """Add nodes that read and decode the files of the input "files": [h, w, 3], upright."""
    from nvidia.dali import fn, types

    content = fn.io.file.read(fn.external_source(name="files"))
    # DALI 2.4.0 crashes the process when the decoder meets a header that it cannot parse while it
    # decodes other images of the batch. Peeking raises an error instead; adding zero times the
    # peeked shape makes the decoder wait for it.
    shape = fn.peek_image_shape(content, adjust_orientation=False)
    content = content + fn.cast(shape[0] * 0, dtype=types.UINT8)
    if device.type != "cuda":
        return fn.decoders.image(content, device="cpu", adjust_orientation=True)
    return fn.decoders.image(
        content, device="mixed", adjust_orientation=True,
        hw_decoder_load=0.0,  # the hardware decoder's share would depend on the batch
        jpeg_fancy_upsampling=True,  # as on the CPU
        affine=False,  # threads are not pinned to cores that other ranks use
    )


def file_names(paths: Iterable[str]) -> list[NDArray[np.uint8]]:
    """Return paths as DALI takes them: the bytes of each."""
    return [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in paths]


def resized(image: NDArray[np.uint8], height: int, width: int, kind: "Resize") -> NDArray[np.uint8]:
    """Return an image [h, w, 3] as [height, width, 3], resized as views on a CPU are."""
    large = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], (height, width), mode=kind,
        antialias=True,  # without it a shrunk image is up to 34 grey levels off
    )
    return large[0].permute(1, 2, 0).numpy()
