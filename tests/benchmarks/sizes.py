"""How much the training benchmarks compute, and in which precision.

All rows of a run are of one size: a CPU's or a GPU's; `TINY` only shows that the rows can be made.
"""

import os
from dataclasses import dataclass, replace

import torch

from harness.training import ranks
from harness.training.engine import Precision


@dataclass(frozen=True)
class Sizes:
    """The model, and how many images and repeats; by default those for a CPU."""

    model: str = "ViT-B-16-quickgelu"
    height: int = 256
    width: int = 128
    stride: int = 12
    identities: int = 751
    training: int = 12_936
    """Images of the training set."""
    prompts: tuple[int, ...] = (64, 256)
    """Batches of stage 1."""
    images: int = 8
    """Of a step of stage 2."""
    fewer: int = 4
    """Of a step of stage 2 where a row is about something else; on each rank, of several."""
    fed: int = 8
    """Steps of stage 2 that are fed from files."""
    encoded: int = 32
    """Images for features of `model`."""
    encoded_tiny: int = 4096
    """Images for features of the shipped tiny model; 0: no row of it."""
    files: int = 1536
    """Images that the loader reads in an epoch."""
    batch: int = 64
    """Images of the loader's and the extraction's batches."""
    product: int = 1536
    """Rows and columns of a bare product's matrices."""
    products: int = 9
    """Bare products that are timed together."""
    calls: int = 1
    """Steps that are timed together: each alone would end with an idle GPU."""
    repeats: int = 3
    more_repeats: int = 5
    """Of what is quick, or varies."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes of the released way's loader."""
    compiles: bool = False
    """Whether blocks are compiled, as training on a GPU does."""
    hidden: int = 4096
    """Width of the projection heads within."""


CPU = Sizes()
GPU = Sizes(
    images=64, fewer=64, fed=40, encoded=4096, product=8192, products=20, calls=5,
    compiles=True,
)
SMALL_GPU = replace(GPU, images=16, fewer=16)
"""The released way keeps some 26 GB for 64 images x 3 views."""
SMALL_GB = 40
TINY = Sizes(
    model="svll-tiny", height=16, width=16, stride=8, identities=4, training=8, prompts=(4,),
    images=4, fewer=4, fed=2, encoded=2, encoded_tiny=0, files=2, batch=2, product=32,
    products=1, repeats=1, more_repeats=1, workers=0, hidden=16,
)


def here() -> Sizes:
    """Return the sizes for this process's device."""
    if not torch.cuda.is_available():
        return CPU
    return GPU if gpu_gb() > SMALL_GB else SMALL_GPU


def gpu_gb() -> float:
    """Return the memory of this process's GPU."""
    return torch.cuda.get_device_properties(ranks.device()).total_memory / 1e9


def gpu_precision() -> Precision:
    """Return the precision of rows on a GPU: bf16, where it has it; of rows on a CPU: fp32."""
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if ranks.has_fast_bf16() else "fp16"
