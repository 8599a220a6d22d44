"""A step of stage 1 with CLIP's ViT-B/16 text tower: ours, and as the released code computes it.

Identities are those of Market-1501, drawn as a batch is; features and weights are random. The floor
is the matrix products of our step at the speed of a bare one.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from harness.training import ranks
from harness.training.engine import start_engine
from svll import stage1
from svll.config import EngineConfig, Stage1
from svll.features.extract import autocast
from svll.models.blocks import BlockCompiler
from svll.models.clip import load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import ProjectionHead
from tests.benchmarks import released
from tests.benchmarks.products import products_row
from tests.benchmarks.sizes import SMALL_GB, Sizes, gpu_gb, gpu_precision, here
from tests.benchmarks.timing import Row, apart

WHOLE = 64
"""The released way at a batch of 256 would keep some 26 GB for its gradient: where there is less
room it is timed in parts."""
PART = 64


def measure(sizes: Sizes | None = None) -> Iterator[Row]:
    """Yield a row for a small batch, and one for the method's."""
    sizes = sizes or here()
    for batch in sizes.prompts:
        yield apart(_step, batch, sizes)


def _step(batch: int, sizes: Sizes) -> Row:
    ranks.init_ranks()
    objective, features, labels = _made(batch, sizes)
    device, precision = str(ranks.device()), gpu_precision()
    optimizer = stage1.optimizer(objective, objective.config)
    engine = start_engine(objective, optimizer, batch, EngineConfig(precision))
    on_host = labels.cpu()

    def ours() -> None:
        losses = engine(stage1.PromptBatch(features, on_host, 1))
        engine.backward(torch.stack(list(losses.values())).sum())
        engine.step()

    standard = released.ReleasedPrompts(
        objective.prompts, objective.text, objective.head, objective.config
    )
    plain = torch.optim.Adam([objective.prompts.tokens], lr=3.5e-4, weight_decay=1e-4)
    is_whole = batch <= WHOLE or (torch.cuda.is_available() and gpu_gb() > SMALL_GB)

    def baseline() -> None:
        plain.zero_grad()
        with autocast(device, precision):
            if is_whole:
                torch.stack(list(standard.losses(features, labels, 1).values())).sum().backward()
            else:
                for each in _parts(standard, labels):
                    encoded = each()
                    encoded.backward(torch.ones_like(encoded))
        plain.step()

    note = "" if is_whole else (
        f"released way: encoded in parts of {PART}, without its losses, as it would need 26 GB"
    )
    return products_row(
        f"stage-1 step, batch {batch}", "s", ours, baseline, sizes, precision=precision,
        images=batch, repeats=sizes.repeats, calls=sizes.calls,
        notes=(f"{len(labels.unique())} identities", note),
    )


def _parts(
    standard: released.ReleasedPrompts, labels: Tensor
) -> Iterator[Callable[[], Tensor]]:
    """What the released way encodes in a step, in parts: all samples, then two copies."""
    generator = torch.Generator().manual_seed(1)
    for part in labels.split(PART):
        yield partial(_encode, standard, part, None)
    for _ in range(2):
        for part in labels.unique().split(PART):
            yield partial(_encode, standard, part, generator)


def _encode(
    standard: released.ReleasedPrompts, labels: Tensor, generator: torch.Generator | None
) -> Tensor:
    prompts = standard.embedded(labels)
    return standard.encode(
        prompts if generator is None else standard.augmented(prompts, generator)
    )


def _made(batch: int, sizes: Sizes) -> tuple[stage1.PromptObjective, Tensor, Tensor]:
    """Return the objective, and the features and labels of a batch."""
    torch.manual_seed(1)
    clip = load_clip(
        sizes.model, None, height=sizes.height, width=sizes.width, stride=sizes.stride
    )
    del clip.image.visual
    clip.text.compiler = BlockCompiler() if sizes.compiles else None
    prompts = PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=sizes.identities, tokens=4,
        noun="person",
    )
    head = ProjectionHead(clip.text.out, hidden=sizes.hidden, out=256)
    objective = stage1.PromptObjective(prompts, clip.text, head, Stage1()).to(ranks.device())
    of_image = torch.randint(sizes.identities, (sizes.training,))
    labels = of_image[torch.randperm(sizes.training)[:batch]].to(ranks.device())
    return objective, torch.randn(batch, clip.text.out, device=ranks.device()), labels
