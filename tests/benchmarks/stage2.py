"""A step of stage 2 with CLIP's ViT-B/16 at 256 x 128, stride 12 and three views of each image.

Against the released code's way: three calls of CLIP's own modules, a group of Adam for each
parameter. Images and weights are random. The floor is the matrix products of our step at the speed
of a bare one. In fp32; in bf16 too where the processor computes in it; on a GPU in bf16 alone.
Then steps that are fed from JPEG files, and steps that compute blocks again. Memory is what a step
needs beyond weights and moments.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from harness.training import ranks
from harness.training.engine import Precision, start_engine
from svll import stage2
from svll.config import EngineConfig, Stage2
from svll.features.extract import autocast
from svll.models.clip import load_clip
from svll.models.reid import ProjectionHead, ReIDModel, SideInformation
from tests.benchmarks import released
from tests.benchmarks.data import three_views, write_images
from tests.benchmarks.products import products_row
from tests.benchmarks.timing import Row, apart, in_turns, row, times

MODEL = "ViT-B-16-quickgelu"
IDENTITIES, CAMERAS, VIEWS = 751, 6, 3
IMAGES, FEWER = (64, 64) if torch.cuda.is_available() else (8, 4)
"""At a step; fewer where a row is about something else."""
FED_STEPS = 8


def measure() -> Iterator[Row]:
    """Yield a row for each precision computed in here, for steps from files, for recomputing."""
    if not torch.cuda.is_available():
        yield apart(_step, "fp32")
    if ranks.has_fast_bf16():
        yield apart(_step, "bf16")
    yield apart(_fed)
    yield apart(_recomputed)


def _step(precision: Precision) -> Row:
    ranks.init_ranks()
    objective, batch = made(IMAGES)
    config = objective.config
    plain = released.optimizer(objective, config.lr, config.weight_decay)
    step = started(objective, IMAGES, precision)
    device = str(ranks.device())

    def baseline() -> None:
        # the released code has autocast on GPUs alone; its fp16 there is bf16 here
        with autocast(device, precision if torch.cuda.is_available() else "fp32"):
            loss = _total(objective, released.image_losses(objective, batch))
        loss.backward()
        plain.step()
        plain.zero_grad()

    with torch.no_grad(), autocast(device, precision):
        ours_loss = _total(objective, objective(batch)).item()
        other_loss = _total(objective, released.image_losses(objective, batch)).item()
    return products_row(
        f"stage-2 step, {precision}, {IMAGES} images x 3 views", "s/image", lambda: step(batch),
        baseline, precision=precision, images=IMAGES, per=IMAGES, repeats=5,
        told=[f"losses {ours_loss:.6g} and {other_loss:.6g}"],
    )


def started(
    objective: stage2.ImageObjective, images: int, precision: Precision, zero: int = 0
) -> Callable[[stage2.ImageBatch], None]:
    """Return our step of `images` over all ranks, as training makes it."""
    optimizer = stage2.optimizer(objective, objective.config)
    engine = start_engine(objective, optimizer, images, EngineConfig(precision, zero))

    def step(batch: stage2.ImageBatch) -> None:
        loss = _total(objective, engine(batch))
        loss.item()  # training looks at it before it goes on
        engine.backward(loss)
        engine.step()

    return step


def _total(objective: stage2.ImageObjective, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = stage2.loss_weights(objective.config)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _fed() -> Row:
    """Steps whose views are made from files meanwhile: how long they wait for them."""
    ranks.init_ranks()
    objective, batch = made(FEWER)
    precision: Precision = "bf16" if ranks.has_fast_bf16() else "fp32"
    step = started(objective, FEWER, precision)
    step(batch)
    rows = [np.arange(i, i + FEWER) for i in range(0, FED_STEPS * FEWER, FEWER)]
    waits, taken = [], []
    with tempfile.TemporaryDirectory(prefix="stage2-") as folder:
        loader = three_views(write_images(Path(folder), 128, 64, FED_STEPS * FEWER), FEWER)
        batches = loader.epoch(rows, rows, epoch=1)
        for _ in rows:
            began = time.perf_counter()
            found = next(batches)
            waits.append(time.perf_counter() - began)
            views = [found[name] for name in ("main", "a", "b")]
            step(stage2.ImageBatch(views, batch.identities, batch.camera, batch.view))
            taken.append(time.perf_counter() - began)
        loader.close()
    return row(
        f"stage-2 steps from JPEGs, {precision}, {FEWER} images x 3 views", "s/image",
        times(taken), per=FEWER, note=f"the next batch is waited for in "
        f"{sum(waits[1:]) / sum(taken[1:]):.2%} of the time, the first one {waits[0]:.2f} s",
    )


def _recomputed() -> Row:
    """What it costs, and spares, to compute blocks again; the baseline keeps what they computed."""
    ranks.init_ranks()
    objective, batch = made(FEWER)
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    objective.train()

    def step(recompute: bool) -> None:
        objective.zero_grad()
        objective.model.encoder.recompute = recompute
        with autocast(str(ranks.device()), precision):
            losses = objective(batch)
        _total(objective, losses).backward()

    in_order = in_turns(lambda: step(True), lambda: step(False))
    return row(
        f"engine.recompute, {precision}, {FEWER} images x 3 views", "s/image", *in_order,
        per=FEWER,
        note="against keeping what blocks compute; forward and backward without the optimizer",
    )


def made(images: int) -> tuple[stage2.ImageObjective, stage2.ImageBatch]:
    """Return the objective of Market-1501's size, and a batch of random images."""
    torch.manual_seed(1)
    clip = load_clip(MODEL, None, height=256, width=128, stride=12)
    side = SideInformation("camera", cameras=CAMERAS, views=1, width=clip.image.width, weight=1.0)
    head = ProjectionHead(clip.image.width, hidden=4096, out=256)
    objective = stage2.ImageObjective(
        ReIDModel(clip.image, side), torch.randn(IDENTITIES, clip.image.out), head, Stage2(),
        identities=IDENTITIES,
    ).to(ranks.device())
    device = ranks.device()
    views = [torch.randn(images, 3, 256, 128, device=device) for _ in range(VIEWS)]
    labels = torch.arange(images) // 2
    cameras = torch.arange(images, device=device) % CAMERAS
    return objective, stage2.ImageBatch(views, labels, cameras, torch.zeros_like(cameras))
