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
from typing import Any

import numpy as np
import torch

from harness.training import loop, ranks
from harness.training.checkpoints import Progress
from harness.training.engine import Precision, start_engine
from svll import stage2
from svll.config import EngineConfig, Stage2
from svll.features.extract import autocast
from svll.models.blocks import BlockCompiler
from svll.models.clip import load_clip
from svll.models.reid import ProjectionHead, ReIDModel, SideInformation
from tests.benchmarks import released
from tests.benchmarks.data import three_views, write_images
from tests.benchmarks.products import products_row
from tests.benchmarks.sizes import Sizes, gpu_precision, here
from tests.benchmarks.timing import Row, apart, in_turns, row, times

CAMERAS, VIEWS = 6, 3
SWITCH = "encoder."
"""Rows whose baseline is our own way, too, begin so."""


def measure(sizes: Sizes | None = None) -> Iterator[Row]:
    """Yield a row for each precision computed in here, for steps from files, for recomputing, and
    where blocks are compiled for that."""
    sizes = sizes or here()
    yield apart(_step, gpu_precision(), sizes)
    if not torch.cuda.is_available() and ranks.has_fast_bf16():
        yield apart(_step, "bf16", sizes)
    yield apart(_fed, sizes)
    yield apart(_recomputed, sizes)
    if sizes.compiles:
        yield apart(_compiled, sizes)


def _step(precision: Precision, sizes: Sizes) -> Row:
    ranks.init_ranks()
    objective, batch = made(sizes.images, sizes)
    config = objective.config
    plain = released.optimizer(objective, config.lr, config.weight_decay)
    step = started(objective, sizes.images, precision)
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
        f"stage-2 step, {precision}, {sizes.images} images x 3 views", "s/image",
        lambda: step(batch), baseline, sizes, precision=precision, images=sizes.images,
        per=sizes.images, repeats=sizes.more_repeats, calls=sizes.calls,
        notes=[f"losses {ours_loss:.6g} and {other_loss:.6g}"],
    )


def started(
    objective: stage2.ImageObjective, images: int, precision: Precision, zero: int = 0
) -> Callable[[stage2.ImageBatch], None]:
    """Return our step of `images` over all ranks, as training makes it."""
    optimizer = stage2.optimizer(objective, objective.config)
    engine = start_engine(objective, optimizer, images, EngineConfig(precision, zero))
    stage = loop.Stage(
        name="stage2", objective=objective, weights=stage2.loss_weights(objective.config),
        optimizer=optimizer, lr_factor=lambda _: 1.0, epochs=1, batch=images, steps=lambda _: 1,
        batches=lambda *_: iter(()), validate=lambda _: {},
    )
    unread: list[loop.StepLosses] = []

    def step(batch: stage2.ImageBatch) -> None:
        unread.append(loop.train_step(stage, engine, batch, Progress("stage2", 1, 0, 0)))
        if len(unread) > unread[0].is_late:  # on a GPU training reads them during the next step
            unread.pop(0).values()

    return step


def _total(objective: stage2.ImageObjective, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = stage2.loss_weights(objective.config)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _fed(sizes: Sizes) -> Row:
    """Steps whose views are made from files meanwhile: how long they wait for them."""
    ranks.init_ranks()
    count = sizes.fewer
    objective, batch = made(count, sizes)
    precision = gpu_precision()
    if not torch.cuda.is_available() and ranks.has_fast_bf16():
        precision = "bf16"
    step = started(objective, count, precision)
    step(batch)
    rows = [np.arange(i, i + count) for i in range(0, sizes.fed * count, count)]
    waits, taken = [], []
    with tempfile.TemporaryDirectory(prefix="stage2-") as folder:
        paths = write_images(Path(folder), 128, 64, sizes.fed * count)
        loader = three_views(paths, count, sizes)
        batches = loader.epoch(rows, rows, epoch=1)
        for _ in rows:
            began = time.perf_counter()
            found = next(batches)
            waits.append(time.perf_counter() - began)
            views = [found[name] for name in ("main", "a", "b")]
            step(stage2.ImageBatch(views, batch.identities, batch.camera, batch.view))
            taken.append(time.perf_counter() - began)
        loader.close()
    waiting = sum(waits[1:]) / sum(taken[1:])
    return row(
        f"stage-2 steps from JPEGs, {precision}, {count} images x 3 views", "s/image",
        times(taken), per=count, note=f"the next batch is waited for in {waiting:.2%} of the time, "
        f"the first one {waits[0]:.2f} s",
        images_per_s=count * len(taken[1:]) / sum(taken[1:]), waiting=waiting,
    )


def _recomputed(sizes: Sizes) -> Row:
    """What it costs, and spares, to compute blocks again; the baseline keeps what they computed."""
    return _switched("recompute", True, False, "keeping what blocks compute", sizes)


def _compiled(sizes: Sizes) -> Row:
    """What compiled blocks gain."""
    return _switched("compiler", BlockCompiler(), None, "blocks that are not compiled", sizes)


def _switched(name: str, ours: Any, other: Any, baseline: str, sizes: Sizes) -> Row:
    """Time two values of an attribute of the encoder: forward and backward, all else being equal.
    """
    ranks.init_ranks()
    count, precision = sizes.fewer, gpu_precision()
    objective, batch = made(count, sizes)
    objective.train()

    def steps(value: Any) -> None:
        setattr(objective.model.encoder, name, value)
        for _ in range(sizes.calls):
            objective.zero_grad()
            with autocast(str(ranks.device()), precision):
                losses = objective(batch)
            _total(objective, losses).backward()

    in_order = in_turns(lambda: steps(ours), lambda: steps(other), repeats=sizes.repeats)
    images = count * sizes.calls
    return row(
        f"{SWITCH}{name}, {precision}, {count} images x 3 views", "s/image", *in_order, per=images,
        note=f"against {baseline}; forward and backward without the optimizer",
        images_per_s=images / in_order[0].median,
    )


def made(images: int, sizes: Sizes) -> tuple[stage2.ImageObjective, stage2.ImageBatch]:
    """Return the objective of Market-1501's size, and a batch of random images."""
    torch.manual_seed(1)
    height, width, identities = sizes.height, sizes.width, sizes.identities
    clip = load_clip(sizes.model, None, height=height, width=width, stride=sizes.stride)
    clip.image.compiler = BlockCompiler() if sizes.compiles else None
    side = SideInformation("camera", cameras=CAMERAS, views=1, width=clip.image.width, weight=1.0)
    head = ProjectionHead(clip.image.width, hidden=sizes.hidden, out=256)
    objective = stage2.ImageObjective(
        ReIDModel(clip.image, side), torch.randn(identities, clip.image.out), head, Stage2(),
        identities=identities,
    ).to(ranks.device())
    device = ranks.device()
    views = [torch.randn(images, 3, height, width, device=device) for _ in range(VIEWS)]
    labels = torch.arange(images) // 2
    cameras = torch.arange(images, device=device) % CAMERAS
    return objective, stage2.ImageBatch(views, labels, cameras, torch.zeros_like(cameras))
