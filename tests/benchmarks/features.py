"""Test features from JPEGs: ours, and the released code's loop over a DataLoader.

With CLIP's ViT-B/16 at 256 x 128, stride 12, where the encoder is nearly all, and with the tiny
model, where reading is much of it. The floor is the matrix products of our encoder at the speed of
a bare one. Weights are random, images of the size of Market-1501's.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from harness.training import ranks
from svll.base.records import Records
from svll.features.extract import Reader, autocast, encode_shard
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel
from tests.benchmarks import released
from tests.benchmarks.data import write_images
from tests.benchmarks.products import products_row
from tests.benchmarks.sizes import Sizes, gpu_precision, here
from tests.benchmarks.timing import Row, apart

THREADS = len(os.sched_getaffinity(0))


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


def measure(sizes: Sizes | None = None) -> Iterator[Row]:
    """Yield a row for each model."""
    sizes = sizes or here()
    tiny = replace(sizes, model="svll-tiny", height=64, width=32, stride=8)
    yield apart(_extraction, sizes, sizes.encoded)
    if sizes.encoded_tiny:
        yield apart(_extraction, tiny, sizes.encoded_tiny)


def _extraction(sizes: Sizes, count: int) -> Row:
    height, width = sizes.height, sizes.width
    ranks.init_ranks()
    torch.manual_seed(1)
    clip = load_clip(sizes.model, None, height=height, width=width, stride=sizes.stride)
    model = ReIDModel(clip.image, None).to(ranks.device()).eval()
    device, precision = str(ranks.device()), gpu_precision()
    with tempfile.TemporaryDirectory(prefix="features-") as folder:
        paths = write_images(Path(folder), 128, 64, count)
        zeros = np.zeros(count, dtype=np.int64)
        records = Records(tuple(paths), zeros, zeros, zeros)
        reader = Reader(height, width, sizes.batch, THREADS, device, precision)
        loader = DataLoader(
            Images(paths, height, width), batch_size=sizes.batch, num_workers=sizes.workers,
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
            f"feature extraction, {sizes.model}", "ms/image", ours, baseline, sizes,
            precision=precision, images=count, per=count / 1000, repeats=sizes.repeats, notes=(
                f"{count} images, features' least cosine {near:.6f}",
                "its baseline's memory is without its workers",
            ),
        )
