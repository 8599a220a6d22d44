"""From images to features: the frozen encoder's, for stage 1, and the trained model's, for tests.

Ranks share the work; the rows of all are put together in an HDF5 file, so nothing is lost when the
number of images is no multiple of the number of ranks.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import engine as ranks
from harness import progress
from harness.features import FeatureGroup
from harness.pipeline import ImageLoader, Resize, View
from svll.data.records import Records

log = logging.getLogger(__name__)
TEST_RESIZE: Resize = "bilinear"
"""How images are resized outside of stage 2's training (released code: torchvision's default)."""
Encode = Callable[[Tensor, NDArray[np.int64]], Tensor]
"""Images [B, 3, H, W] and their rows [B] to features [B, D]."""
EncodeWithSide = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Images [B, 3, H, W], camera and view places [B] to features [B, D]."""
Side = Callable[[Records], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Images to their places [n] among the training cameras and views, -1 where there is none."""


@dataclass(frozen=True)
class Reader:
    """How images are read for encoding."""

    height: int
    width: int
    batch: int
    threads: int
    device: str
    precision: str = "fp32"
    """Of the forward pass: bf16 and fp16 are autocast."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


def encode_shard(records: Records, reader: Reader, encode: Encode) -> Tensor:
    """Encode this rank's share of the images; returns [n, D] on the CPU."""
    rows = np.arange(len(records), dtype=np.int64)[ranks.shard(len(records))]
    if not len(rows):
        return torch.empty(0, 0)
    batches = [rows[i : i + reader.batch] for i in range(0, len(rows), reader.batch)]
    loader = ImageLoader(
        records.paths, height=reader.height, width=reader.width, views={"image": View()},
        resize=TEST_RESIZE, batch_size=reader.batch, seed=0, threads=reader.threads,
        device=reader.device, mean=reader.mean, std=reader.std,
    )
    features = []
    try:
        with torch.no_grad(), progress.bar("encoding", total=len(batches)) as advance:
            for batch in loader.epoch(batches, batches, epoch=0):
                with autocast(reader.device, reader.precision):
                    found = encode(batch["image"], batch["rows"].cpu().numpy())
                features.append(found.float().cpu())
                advance("")
    finally:
        loader.close()
    return torch.cat(features)


def encode_all(records: Records, reader: Reader, encode: Encode) -> Tensor:
    """Encode images on all ranks and return all rows [n, D], on the CPU, on every rank."""
    own = encode_shard(records, reader, encode)
    if ranks.world_size() == 1:
        return own
    # shares differ by at most one row: pad, gather, cut
    count = len(records)
    size = -(-count // ranks.world_size())
    width = torch.tensor([own.shape[1]], device=ranks.device())
    torch.distributed.all_reduce(width, op=torch.distributed.ReduceOp.MAX)
    padded = own.new_zeros(size, int(width.item()))
    padded[: len(own), : own.shape[1]] = own
    gathered = ranks.gather_rows(padded.to(ranks.device())).cpu().split(size)
    kept = [
        part[: count // ranks.world_size() + (r < count % ranks.world_size())]
        for r, part in enumerate(gathered)
    ]
    return torch.cat(kept)


def encode_pair(
    query: Records, gallery: Records, reader: Reader, side: Side, encode: EncodeWithSide
) -> tuple[Tensor, Tensor]:
    """Return the test features [Q, D] and [G, D] of a query and gallery, each image encoded once.

    `side` is asked for the side information's places of all images, `encode` for features.
    """
    images = gallery
    known = {path: row for row, path in enumerate(images.paths)}
    others = [row for row, path in enumerate(query.paths) if path not in known]
    if others:
        images = Records.concatenate([images, query.take(others)])
        known = {path: row for row, path in enumerate(images.paths)}
    camera, view = (torch.from_numpy(column) for column in side(images))

    def encode_rows(batch: Tensor, rows: NDArray[np.int64]) -> Tensor:
        index, device = torch.from_numpy(rows), batch.device
        return encode(batch, camera[index].to(device), view[index].to(device))

    features = encode_all(images, reader, encode_rows)
    rows = torch.tensor([known[path] for path in query.paths], dtype=torch.int64)
    return features[rows], features[: len(gallery)]


def feature_groups(
    features: tuple[Tensor, Tensor], query: Records, gallery: Records
) -> dict[str, FeatureGroup]:
    """Put features [Q, D] and [G, D] and what is known of their images together, for a file."""
    return {
        name: FeatureGroup(
            features=rows.numpy(), identities=records.identities, cameras=records.cameras,
            views=records.views, paths=records.paths,
        )
        for name, rows, records in zip(
            ("query", "gallery"), features, (query, gallery), strict=True
        )
    }


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast context of a precision."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.split(":")[0], dtype=kind, enabled=precision != "fp32")


