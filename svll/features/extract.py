"""From images to features: of the frozen encoder, for stage 1, and of trained models, for tests.

Ranks share the work. Features for a file are written as part files and merged in the end: no image
is lost or repeated for any number of ranks, a stop loses nothing, and a kill little.
"""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.images.loader import ImageLoader
from harness.images.views import Transform
from harness.runs.stopping import Stopped
from harness.training import progress, ranks
from svll.base.records import Records
from svll.features.parts import merge_parts, missing_rows, write_part
from svll.models.extractor import TEST_RESIZE

log = logging.getLogger(__name__)
PART_S = 30.0
"""Seconds between part files: a kill loses the encoding since the last one."""
SLICE_BYTES = 3_200_000
"""Images that a CPU encodes at a time: 8 of 256 x 128 pixels."""
Encode = Callable[[Tensor, NDArray[np.int64]], Tensor]
"""Images [B, 3, H, W] and their rows [B] to features [B, D]."""
EncodeWithSide = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Images [B, 3, H, W], camera and view indices [B] to features [B, D]."""
Side = Callable[[Records], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Images to their indices [n] among the training cameras and views, -1 for unseen ones."""


@dataclass(frozen=True)
class Reader:
    """How images are read for encoding."""

    height: int
    width: int
    batch: int
    threads: int
    device: str
    precision: str = "fp32"
    """Of the forward pass: bf16 and fp16 use autocast."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    staged: Mapping[str, str] = field(default_factory=dict)
    """Paths of images that were copied to this node, by their original paths."""
    on_cpu: bool = False
    """Decode on the CPU whatever the device."""

    @property
    def decodes_on(self) -> str:
        """The device that decodes."""
        return "cpu" if self.on_cpu else self.device

    def places(self, paths: Sequence[str]) -> list[str]:
        """Return the paths to read the images at `paths` from."""
        return [self.staged.get(path, path) for path in paths]


def encode_shard(records: Records, reader: Reader, encode: Encode) -> Tensor:
    """Encode this rank's share of the images; returns [n, D] on the CPU."""
    rows = np.arange(len(records), dtype=np.int64)[ranks.shard(len(records))]
    batches = [rows[i : i + reader.batch] for i in range(0, len(rows), reader.batch)]
    found = [features for _, features in _encoded(records, reader, encode, batches)]
    return torch.cat(found) if found else torch.empty(0, 0)


def _encoded(
    records: Records, reader: Reader, encode: Encode, batches: Sequence[NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Encode some batches of rows [B]; yields each with its features [B, D] on the CPU. Every rank
    must take all of them. Raises Stopped on every rank when one was asked to stop."""
    loader = ImageLoader(
        reader.places(records.paths),
        Transform(reader.height, reader.width, TEST_RESIZE, reader.mean, reader.std),
        batch_size=reader.batch, seed=0, threads=reader.threads, device=reader.device,
        on_cpu=reader.on_cpu,
    )
    slices = [_slices(reader, len(batch)) for batch in batches]
    turns = ranks.stoppable(list(chain.from_iterable(slices)), "encoding images")
    try:
        with torch.no_grad(), progress.bar("encoding", total=len(batches)) as advance:
            for batch in loader.epoch(batches, batches, epoch=0):
                rows, images = batch["rows"].numpy(), batch["image"]
                with autocast(reader.device, reader.precision):
                    parts = islice(turns, len(_slices(reader, len(rows))))
                    found = torch.cat([encode(images[part], rows[part]) for part in parts])
                yield rows, found.float().cpu()
                advance("")
            deque(turns, maxlen=0)  # of ranks with more slices
    finally:
        loader.close()


def _slices(reader: Reader, count: int) -> list[slice]:
    """Cut a batch for the encoder: on a CPU into slices that fit its cache, with ViT-B/16 a quarter
    faster."""
    size = max(1, SLICE_BYTES // (3 * 4 * reader.height * reader.width))
    size = size if reader.device == "cpu" else count
    return [slice(first, first + size) for first in range(0, count, size)]


def encode_all(records: Records, reader: Reader, encode: Encode) -> Tensor:
    """Encode images on all ranks and return all rows [n, D], on the CPU, on every rank."""
    own = encode_shard(records, reader, encode)
    world = ranks.world_size()
    if world == 1:
        return own
    # shares differ by at most one row: pad, gather, cut
    small, larger = divmod(len(records), world)
    size = small + (larger > 0)
    width = torch.tensor([own.shape[1]], device=ranks.device())
    torch.distributed.all_reduce(width, op=torch.distributed.ReduceOp.MAX)
    padded = own.new_zeros(size, int(width.item()))
    padded[: len(own), : own.shape[1]] = own
    gathered = ranks.gather_rows(padded.to(ranks.device())).cpu().split(size)
    return torch.cat([part[: small + (rank < larger)] for rank, part in enumerate(gathered)])


def encode_pair(
    query: Records, gallery: Records, reader: Reader, side: Side, encode: EncodeWithSide
) -> tuple[Tensor, Tensor]:
    """Return features [Q, D] and [G, D] of a query and gallery; each image is encoded once."""
    images, rows = each_once(query, gallery)
    features = encode_all(images, reader, _with_side(images, side, encode))
    return features[torch.from_numpy(rows["query"])], features[: len(gallery)]


def each_once(query: Records, gallery: Records) -> tuple[Records, dict[str, NDArray[np.int64]]]:
    """Return all images of a query and gallery without repetition, and the rows of either."""
    known = set(gallery.paths)
    others = [row for row, path in enumerate(query.paths) if path not in known]
    images = Records.concatenate([gallery, query.take(others)])
    row_of = {path: row for row, path in enumerate(images.paths)}
    rows = np.array([row_of[path] for path in query.paths], dtype=np.int64)
    return images, {"query": rows, "gallery": np.arange(len(gallery))}


def _with_side(images: Records, side: Side, encode: EncodeWithSide) -> Encode:
    """Return `encode` with each image's camera and view as arguments."""
    camera, view = (torch.from_numpy(column) for column in side(images))

    def encode_rows(batch: Tensor, rows: NDArray[np.int64]) -> Tensor:
        index, device = torch.from_numpy(rows), batch.device
        return encode(batch, camera[index].to(device), view[index].to(device))

    return encode_rows


class FeatureTarget(NamedTuple):
    """A cache to write, and its root attributes."""

    path: Path
    dataset: str
    model: str
    protocol: str
    key: str
    """A hash of everything that can change the features; parts under another key are not used."""
    first_camera: int | None = None
    """The dataset's number of camera 0."""
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def parts(self) -> Path:
        """The folder of the part files."""
        return self.path.with_name(f"{self.path.stem}.parts") / self.key


def encode_to_file(
    target: FeatureTarget, query: Records, gallery: Records, reader: Reader, side: Side,
    encode: EncodeWithSide,
) -> None:
    """Write the test features of a query and gallery, as `encode_groups` does; see `encode_pair`.
    """
    images, rows = each_once(query, gallery)
    groups = {"query": query, "gallery": gallery}
    encode_groups(target, images, groups, rows, reader, _with_side(images, side, encode))


def encode_groups(
    target: FeatureTarget, images: Records, groups: Mapping[str, Records],
    rows: Mapping[str, NDArray[np.int64]], reader: Reader, encode: Encode,
) -> None:
    """Write the features of images in groups, on all ranks; rows [n]: those of a group.

    Batches depend on the rows alone, not on the number of ranks, and ranks take whole batches in
    turn. Each writes a part file every PART_S seconds and when it is stopped; the next attempt,
    with any number of ranks, encodes only the batches that no part has. As batches are the same,
    features are equal to the last bit.
    """
    every = np.arange(len(images), dtype=np.int64)
    batches = [every[i : i + reader.batch] for i in range(0, len(every), reader.batch)]
    left = [batches[i] for i in _left(target, len(images), reader.batch)]
    own = left[ranks.rank() :: ranks.world_size()]
    pending: list[tuple[NDArray[np.int64], NDArray[Any]]] = []
    kept, written = len(images) - sum(map(len, left)), time.monotonic()
    try:
        for found, features in _encoded(images, reader, encode, own):
            pending.append((found, features.numpy().astype(target.dtype)))
            kept += len(found)
            if time.monotonic() - written >= PART_S:
                _write(target, pending)
                written = time.monotonic()
    except Stopped as reason:
        raise Stopped(f"{reason}; of {len(images)}, {kept} or more are kept") from None
    finally:
        _write(target, pending)
    ranks.barrier()
    with ranks.leader_first() as acts:
        if acts:
            merge_parts(
                target.parts, target.path, groups, rows,
                dataset=target.dataset, model=target.model, protocol=target.protocol,
                key=target.key, first_camera=target.first_camera,
            )
            shutil.rmtree(target.parts.parent, ignore_errors=True)


def _left(target: FeatureTarget, total: int, batch: int) -> list[int]:
    """Return the batches with a row that is in no part file, as the first rank sees them."""
    def find() -> list[int]:
        left: list[int] = np.unique(missing_rows(target.parts, total) // batch).tolist()
        if len(left) < (every := -(-total // batch)):
            log.info("%s: %d of %d batches exist", target.path, every - len(left), every)
        return left

    return ranks.on_leader(find)


def _write(target: FeatureTarget, pending: list[tuple[NDArray[np.int64], NDArray[Any]]]) -> None:
    """Write the features encoded since the last part, and clear the list."""
    if pending:
        rows, features = (np.concatenate(column) for column in zip(*pending, strict=True))
        write_part(target.parts, ranks.rank(), rows, features)
        pending.clear()


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast context of a precision."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.split(":")[0], dtype=kind, enabled=precision != "fp32")
