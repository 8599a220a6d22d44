"""How a step's time and memory grow with identities and with the size of images.

Identities: those of Market-1501, of VehicleID, and ten times as many. The order of an epoch,
against listing for each batch which identities have images left. Stage 1 as in the `stage1` part, a
batch of 64; of stage 2 the losses over identities, the classifiers and their Adam, without the
encoder, which does not depend on them. Memory is all that the process holds at its peak, beside
what it holds before anything of this is made.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.training import ranks
from svll import stage1, stage2
from svll.config import Stage1, Stage2
from svll.data.sampler import identity_batches
from svll.models.clip import load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import BNNeck, ProjectionHead, ReIDModel
from svll.models.vit import ImageFeatures
from tests.benchmarks.timing import Row, apart, in_turns, row, seconds, times
from tests.svll.data.test_sampler import listed_anew

MODEL = "ViT-B-16-quickgelu"
IDENTITIES = (751, 13_164, 131_640)
MANY = 1_000_000
BATCH, WIDTH, OUT = 64, 768, 512
IMAGES = 8
MOST_LISTED = 100_000
"""Of more, listing takes minutes."""
SAMPLED = 16_384
SIZES = ((256, 128), (256, 256), (384, 192))
REPEATS = 3


def measure() -> Iterator[Row]:
    """Yield rows for the order, stage 1, stage 2's losses over identities, and sizes of images."""
    for count in IDENTITIES:
        yield _order(count)
    for count in IDENTITIES:
        yield apart(_prompts, count)
    for count in IDENTITIES:
        yield apart(_classifiers, count, 0)
    yield apart(_classifiers, IDENTITIES[-1], SAMPLED)
    for size in SIZES:
        yield apart(_images, *size)


def _order(count: int) -> Row:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(count), IMAGES))

    def drawn(way: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: way(labels, batch=BATCH, instances=4, seed=1, epoch=1)

    ours, standard = drawn(identity_batches), drawn(listed_anew)
    several = in_turns(ours, standard) if count < MOST_LISTED else in_turns(ours)
    return row(
        f"order of an epoch, {count:,} identities", "s/epoch", *several,
        note=f"{IMAGES} images each, {len(ours()):,} batches of {BATCH}",
    )


def _prompts(count: int) -> Row:
    clip = load_clip(MODEL, None, height=256, width=128, stride=12)
    del clip.image.visual
    before = ranks.peak_memory_gb()
    prompts = PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=count, tokens=4, noun="person"
    )
    head = ProjectionHead(clip.text.out, hidden=4096, out=256)
    objective = stage1.PromptObjective(prompts, clip.text, head, Stage1()).to(ranks.device())
    optimizer = stage1.optimizer(objective, objective.config)
    features = torch.randn(BATCH, clip.text.out, device=ranks.device())
    labels = torch.randint(count, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        losses = objective(stage1.PromptBatch(features, labels, 1))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    each = 4 * prompts.tokens[0].numel() * prompts.tokens.element_size()
    return _row(
        f"stage-1 step, {count:,} identities", step, before,
        f"prompts, gradient and moments: {each * count / 1e9:.2f} GB; of {MANY:,}: "
        f"{each * MANY / 1e9:.0f} GB",
    )


def _classifiers(count: int, sampled: int) -> Row:
    config = Stage2(vss_weight=0.0, triplet_weight=0.0, sampled_classes=sampled)
    before = ranks.peak_memory_gb()
    model = ReIDModel(_Nothing(), None)  # type: ignore[arg-type]
    objective = stage2.ImageObjective(
        model, torch.randn(count, OUT), None, config, identities=count
    ).to(ranks.device())
    assert isinstance(objective.neck12, BNNeck)
    optimizer = stage2.optimizer(objective, config)
    labels = torch.randint(count, (BATCH,))
    given = ImageFeatures(
        *(torch.randn(BATCH, w, device=ranks.device()) for w in (WIDTH, WIDTH, OUT))
    )
    weights = stage2.loss_weights(config)

    def step() -> None:
        optimizer.zero_grad()
        losses = objective.losses(given, [], labels, 1)
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        optimizer.step()

    each = (4 * (WIDTH + OUT) + OUT) * 4
    logits = 3 * BATCH * (sampled or count) * 4
    return _row(
        f"stage 2's losses over {count:,}" + (f", {sampled:,} sampled" if sampled else ""), step,
        before, f"classifiers, gradient, moments and texts: {each * count / 1e9:.2f} GB, logits "
        f"{logits / 1e9:.2f} GB; of {MANY:,}: {each * MANY / 1e9:.0f} GB and "
        f"{3 * BATCH * (sampled or MANY) * 4 / 1e9:.2f} GB",
    )


class _Nothing(nn.Module):
    """In place of an encoder whose features are given."""

    width, out = WIDTH, OUT


def _images(height: int, width: int) -> Row:
    before = ranks.peak_memory_gb()
    encoder = load_clip(MODEL, None, height=height, width=width, stride=12).image
    encoder = encoder.to(ranks.device())
    images = torch.randn(4, 3, height, width, device=ranks.device())

    def step() -> None:
        encoder.zero_grad()
        encoder(images).fp.sum().backward()

    rows, columns = encoder.grid
    return _row(
        f"encoder, 4 images of {height}x{width}", step, before, f"{rows * columns + 1} tokens"
    )


def _row(name: str, step: Callable[[], Any], before_gb: float, note: str) -> Row:
    step()
    taken = [seconds(step) for _ in range(REPEATS)]
    memory_mb = 1000 * (ranks.peak_memory_gb() - before_gb)
    return row(name, "s/step", times(taken, memory_mb), note=note)
