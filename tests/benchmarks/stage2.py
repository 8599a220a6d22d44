"""A step of stage 2 with CLIP's ViT-B/16 at 256 x 128, stride 12 and three views of each image.

Against the released code's way: three calls of CLIP's own modules, a group of Adam for each
parameter. Images and weights are random. The floor is the matrix products of our step at the speed
of a bare one. In fp32; in bf16 too where the processor computes in it; on a GPU in bf16 alone.
Then steps that are fed from JPEG files, and steps that compute blocks again.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from harness import engine as ranks
from svll import stage2
from svll.config import Stage2
from svll.encode import autocast
from svll.models.clip import load_clip
from svll.models.reid import ProjectionHead, ReIDModel, SideInformation
from tests.benchmarks import products, released
from tests.benchmarks.data import three_views, write_images
from tests.benchmarks.timing import Row, apart, in_turns, row

MODEL = "ViT-B-16-quickgelu"
IDENTITIES, CAMERAS, VIEWS = 751, 6, 3
FED_STEPS = 20 if torch.cuda.is_available() else 2


def measure() -> Iterator[Row]:
    """Yield a row for each precision that this machine computes in, and the two others."""
    if not torch.cuda.is_available():
        yield apart(_step, "fp32", 8)
    if ranks.has_fast_bf16():
        yield apart(_step, "bf16", 64 if torch.cuda.is_available() else 8)
    yield apart(_fed, 64 if torch.cuda.is_available() else 4)
    yield apart(_recomputed, 64 if torch.cuda.is_available() else 4)


def _step(precision: ranks.Precision, images: int) -> Row:
    ranks.init_ranks()
    objective, batch = made(images)
    config = objective.config
    plain = released.optimizer(objective, config.lr, config.weight_decay)
    ours = _started(objective, images, precision)
    device = str(ranks.device())

    def baseline() -> float:
        plain.zero_grad()
        # the released code has only what a GPU of its time had: autocast, in fp16
        with autocast(device, precision if torch.cuda.is_available() else "fp32"):
            loss = _total(objective, released.image_losses(objective, batch))
        loss.backward()
        plain.step()
        return loss.item()

    with torch.no_grad(), autocast(device, precision):
        ours_loss = _total(objective, objective(batch)).item()
        other_loss = _total(objective, released.image_losses(objective, batch)).item()
    done = products.operations(lambda: ours(batch))
    times = in_turns(lambda: ours(batch), baseline, repeats=5)
    floor = done / products.speed(torch.bfloat16 if precision == "bf16" else torch.float32)
    told = [
        f"losses {ours_loss:.6g} and {other_loss:.6g}",
        f"bare products are {floor / times[0].median:.0%} of our step",
        products.utilisation(done, times[0].median),
    ]
    return row(
        f"stage-2 step, {precision}, {images} images x 3 views", "s/image", *times, floor=floor,
        per=images, note=", ".join(filter(None, told)),
    )


def _started(
    objective: stage2.ImageObjective, images: int, precision: ranks.Precision
) -> Callable[[stage2.ImageBatch], float]:
    """Return our step, as training does it; it returns its loss."""
    engine = ranks.start_engine(
        objective, stage2.optimizer(objective, objective.config), batch=images,
        precision=precision, zero=0, accumulation=1, clipping=0.0,
    )

    def step(batch: stage2.ImageBatch) -> float:
        loss = _total(objective, engine(batch))
        engine.backward(loss)
        engine.step()
        return loss.item()

    return step


def _total(objective: stage2.ImageObjective, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = stage2.loss_weights(objective.config)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def _fed(images: int) -> Row:
    """How long the device waits for data: steps fed from files, against one batch held ready."""
    ranks.init_ranks()
    objective, batch = made(images)
    precision: ranks.Precision = "bf16" if ranks.has_fast_bf16() else "fp32"
    step = _started(objective, images, precision)
    rows = [np.arange(i, i + images) for i in range(0, FED_STEPS * images, images)]
    with tempfile.TemporaryDirectory(prefix="stage2-") as folder:
        loader = three_views(write_images(Path(folder), 128, 64, FED_STEPS * images), images)

        def fed() -> None:
            for made_views in loader.epoch(rows, rows, epoch=1):
                views = [made_views[name] for name in ("main", "a", "b")]
                step(stage2.ImageBatch(views, batch.identities, batch.camera, batch.view))

        def held() -> None:
            for _ in rows:
                step(batch)

        try:
            times = in_turns(fed, held)
        finally:
            loader.close()
    waiting = 1 - times[1].median / times[0].median
    return row(
        f"stage-2 steps from JPEGs, {precision}, {images} images x 3 views", "s/image", *times,
        per=FED_STEPS * images,
        note=f"against a batch held ready: the device waits {max(0, waiting):.1%} of the time",
    )


def _recomputed(images: int) -> Row:
    """What it costs, and spares, to compute blocks again; the baseline keeps what they computed."""
    ranks.init_ranks()
    objective, batch = made(images)
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    objective.train()

    def step(recompute: bool) -> None:
        objective.zero_grad()
        objective.model.encoder.recompute = recompute
        with autocast(str(ranks.device()), precision):
            losses = objective(batch)
        _total(objective, losses).backward()

    times = in_turns(lambda: step(True), lambda: step(False))
    return row(
        f"engine.recompute, {precision}, {images} images x 3 views", "s/image", *times, per=images,
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
    labels = torch.arange(images, device=device) // 2
    cameras = torch.arange(images, device=device) % CAMERAS
    return objective, stage2.ImageBatch(views, labels, cameras, torch.zeros_like(labels))
