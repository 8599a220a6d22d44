"""Test features from JPEGs: ours, and the released code's loop over a DataLoader.

With CLIP's ViT-B/16 at 256 x 128, stride 12, where the encoder is nearly all, and with the tiny
model, where reading is much of it. The floor is the matrix products of our encoder at the speed of
a bare one. Weights are random, images of the size of Market-1501's.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from harness.training import ranks
from harness.training.engine import Precision
from svll.base.records import Records
from svll.features.extract import Reader, autocast, encode_shard
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel
from tests.benchmarks import released
from tests.benchmarks.data import write_images
from tests.benchmarks.products import products_row
from tests.benchmarks.timing import Row, apart

THREADS = len(os.sched_getaffinity(0))
BATCH = 64


class Images(Dataset):
    """The standard way, without what makes views of training."""

    def __init__(self, paths: Sequence[str], height: int, width: int) -> None:
        self.paths = paths
        self.change = transforms.Compose([
            transforms.Resize((height, width)), transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        return self.change(Image.open(self.paths[row]).convert("RGB"))


def measure() -> Iterator[Row]:
    """Yield a row for each model."""
    many = 4096 if torch.cuda.is_available() else 32
    yield apart(_extraction, "ViT-B-16-quickgelu", 256, 128, 12, many)
    yield apart(_extraction, "svll-tiny", 64, 32, 8, 4096)


def _extraction(name: str, height: int, width: int, stride: int, count: int) -> Row:
    ranks.init_ranks()
    torch.manual_seed(1)
    model = ReIDModel(load_clip(name, None, height=height, width=width, stride=stride).image, None)
    model = model.to(ranks.device()).eval()
    device = str(ranks.device())
    precision: Precision = "bf16" if torch.cuda.is_available() else "fp32"
    with tempfile.TemporaryDirectory(prefix="features-") as folder:
        paths = write_images(Path(folder), 128, 64, count)
        zeros = np.zeros(count, dtype=np.int64)
        records = Records(tuple(paths), zeros, zeros, zeros)
        reader = Reader(height, width, BATCH, THREADS, device, precision)
        loader = DataLoader(
            Images(paths, height, width), batch_size=BATCH, num_workers=THREADS,
            pin_memory=torch.cuda.is_available(),
        )

        def ours() -> Tensor:
            return encode_shard(records, reader, lambda images, _: model.encode_image(images))

        def baseline() -> Tensor:
            found = []
            with torch.no_grad():
                for images in loader:
                    with autocast(device, precision):
                        _, f12, fp = released.encode_image(
                            model.encoder.visual, images.to(device)
                        )
                    found.append(torch.cat([f12, fp], dim=1).float().cpu())
            return torch.cat(found)

        near = torch.nn.functional.cosine_similarity(ours(), baseline()).min().item()
        return products_row(
            f"feature extraction, {name}", "ms/image", ours, baseline, precision=precision,
            images=count, per=count / 1000, told=(
                f"{count} images, features' least cosine {near:.6f}",
                "its baseline's memory is without its workers",
            ),
        )
