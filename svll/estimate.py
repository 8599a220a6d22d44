"""What a run would cost on this machine: memory, and hours, from a few images that are really run.

Nothing is trained. Both stages are built as they would be, with random weights; a small batch goes
forward and backward once while what autograd keeps is counted, and the rest is multiplication.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import engine as ranks
from harness.errors import UserError
from svll import stage1, stage2
from svll.config import Config, Data
from svll.data.benchmarks import describe
from svll.data.datasets import load_datasets, needed_root, root_of, trained_on, world_of
from svll.data.splits import split
from svll.data.synthetic import CAMERAS, shots_of
from svll.encode import autocast
from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import ReIDModel, SideInformation, agreement_head

PROBE_IMAGES = 2
"""Images that are really run; each is an identity of its own, so that triplets have negatives."""
PROBE_PROMPTS = 8
LONG_S = 3.0


@dataclass(frozen=True)
class Size:
    """How large the training part is."""

    images: int
    identities: int
    cameras: int
    views: int


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    stage: str
    what: str
    tensors: int
    parameters: int
    lr_first: float
    """At the first epoch."""
    lr: float
    """After warm-up."""
    weight_decay: float


@dataclass(frozen=True)
class Cost:
    """Of one stage, on one rank that has this machine's device to itself."""

    stage: str
    steps: int
    """Of all epochs."""
    step_s: float
    before_s: float
    """Once, before the first step: encoding what is cached."""
    memory_gb: float
    """Weights, gradients, moments and activations at a step."""

    @property
    def hours(self) -> float:
        return (self.before_s + self.steps * self.step_s) / 3600


@dataclass(frozen=True)
class Estimate:
    """All of a run."""

    groups: tuple[Group, ...]
    costs: tuple[Cost, ...]
    precision: str
    """In which the probe ran: fp32 where the device would only imitate bf16, for minutes."""


def size_of(config: Config) -> tuple[Size, str]:
    """Return the size of the training part and where that is known from.

    From the files where there are any, else as published; a world that is not drawn yet is counted.
    """
    data = config.data
    missing = [name for name in trained_on(data) if root_of(data, name) is None]
    if not missing:
        found = split(
            load_datasets(data, Path(config.run.runs) / "cache" / "data"),
            validation=data.validation, seed=config.seed, protocol=config.evaluation.protocol,
        )
        size = Size(len(found.train), found.identities, found.side_labels.camera_count,
                    found.side_labels.view_count)
        return size, "as found"
    if missing == ["synthetic"]:
        world = world_of(data.world)
        images = sum(shot.identity in world.train_ids for shot in shots_of(world))
        return _without_validation(data, images, world.train_identities, CAMERAS), "to be drawn"
    images = identities = cameras = 0
    for name in trained_on(data):
        known = describe(name)
        if known is None or known.published is None:
            raise UserError(needed_root(name))
        identities += known.published.train.identities
        images += known.published.train.images or 0
        cameras += known.published.cameras
    return _without_validation(data, images, identities, cameras), "as published"


def _without_validation(data: Data, images: int, identities: int, cameras: int) -> Size:
    kept = 1 - data.validation
    return Size(round(images * kept), round(identities * kept), cameras, views=1)


def estimate(config: Config, size: Size) -> Estimate:
    """Build both stages, run a small batch of each and multiply; takes seconds to a minute.

    Raises UserError for a model that does not exist or does not fit the input size.
    """
    if config.engine.precision == "bf16" and not ranks.has_fast_bf16():
        config = replace(config, engine=replace(config.engine, precision="fp32"))
    with _quietly():  # that weights are random is no news here
        clip = load_clip(
            config.model.name, None, height=config.data.height, width=config.data.width,
            stride=config.model.stride, seed=config.seed,
        )
    clip.image.recompute = clip.text.recompute = config.engine.recompute
    groups: list[Group] = []
    costs: list[Cost] = []
    if config.stage1.epochs:
        prompts = _stage1(config, clip, size)
        groups += _groups("stage1", prompts, stage1.optimizer(prompts, config.stage1),
                          stage1.lr_factor(config.stage1, 1))
        costs.append(_stage1_cost(config, clip, prompts, size))
        del prompts
    images = _stage2(config, clip, size)
    groups += _groups("stage2", images, stage2.optimizer(images, config.stage2),
                      stage2.lr_factor(config.stage2, 1))
    costs.append(_stage2_cost(config, clip, images, size))
    return Estimate(tuple(groups), tuple(costs), config.engine.precision)


def _stage1(config: Config, clip: Clip, size: Size) -> stage1.PromptObjective:
    prompts = PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=size.identities,
        tokens=config.model.prompt_tokens, noun=config.model.noun,
    )
    head = agreement_head(config.model, clip.text.out, config.stage1.lss_loss)
    return stage1.PromptObjective(prompts, clip.text, head, config.stage1).to(ranks.device())


def _stage2(config: Config, clip: Clip, size: Size) -> stage2.ImageObjective:
    side = None
    if config.model.sie != "none":
        side = SideInformation(
            config.model.sie, cameras=size.cameras, views=size.views, width=clip.image.width,
            weight=config.model.sie_weight,
        )
    text = torch.zeros(size.identities, clip.image.out)
    head = agreement_head(config.model, clip.image.width, config.stage2.vss_loss)
    model = ReIDModel(clip.image.requires_grad_(True), side)
    # losses of no weight are left out
    objective = stage2.ImageObjective(
        model, text, head, config.stage2, identities=size.identities
    )
    return objective.to(ranks.device())


def _groups(
    stage: str, objective: nn.Module, optimizer: torch.optim.Optimizer, first: float
) -> list[Group]:
    names = {parameter: name for name, parameter in objective.named_parameters()}
    found = []
    for group in optimizer.param_groups:
        own = [names[parameter] for parameter in group["params"]]
        biases = all(name.endswith("bias") for name in own)
        found.append(Group(
            stage, "prompts" if stage == "stage1" else "biases" if biases else "weights",
            len(own), sum(p.numel() for p in group["params"]), first * group["lr"], group["lr"],
            group["weight_decay"],
        ))
    return found


def _stage1_cost(
    config: Config, clip: Clip, objective: stage1.PromptObjective, size: Size
) -> Cost:
    """Prompts of a step grow with the identities in its batch; images are encoded once."""
    device, stage = ranks.device(), config.stage1
    count = min(PROBE_PROMPTS, size.identities)
    labels = torch.arange(count, device=device)
    batch = stage1.PromptBatch(torch.randn(count, clip.text.out, device=device), labels, 0)
    seconds, activations = _probe(config, objective, batch, stage1.loss_weights(stage))
    # identities that a random batch is expected to hold
    n, b = size.identities, min(stage.batch, size.images)
    expected = n * (1 - (1 - 1 / n) ** b)
    with torch.no_grad():
        images = _images(config)
        encode = _timed(lambda: clip.image(images))
    steps = -(-size.images // stage.batch) * stage.epochs
    return Cost(
        "stage1", steps, seconds * expected / count, size.images * encode / len(images),
        _memory_gb(objective, activations * expected / count),
    )


def _stage2_cost(
    config: Config, clip: Clip, objective: stage2.ImageObjective, size: Size
) -> Cost:
    device, stage = ranks.device(), config.stage2
    views = [_images(config) for _ in range(3 if stage.vss_weight else 1)]
    zeros = torch.zeros(PROBE_IMAGES, dtype=torch.int64, device=device)
    labels = torch.arange(PROBE_IMAGES, device=device)
    batch = stage2.ImageBatch(views, labels, zeros, zeros)
    seconds, activations = _probe(config, objective, batch, stage2.loss_weights(stage))
    optimizer = stage2.optimizer(objective, stage)
    update = _timed(optimizer.step)
    share = stage.batch / PROBE_IMAGES
    return Cost(
        "stage2", size.images // stage.batch * stage.epochs, seconds * share + update, 0.0,
        _memory_gb(objective, activations * share),
    )


@contextmanager
def _quietly() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _images(config: Config) -> Tensor:
    shape = (PROBE_IMAGES, 3, config.data.height, config.data.width)
    return torch.randn(shape, device=ranks.device())


def _probe(
    config: Config, objective: nn.Module, batch: Any, weights: dict[str, float]
) -> tuple[float, int]:
    """Return the seconds of a step forward and backward, and the bytes that autograd kept for it.
    """
    held = {p.untyped_storage().data_ptr() for p in (*objective.parameters(), *objective.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        with autocast(str(ranks.device()), config.engine.precision):
            losses = objective(batch)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        total.backward()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        first = _timed(step)
    # a long step is not made much longer by what is only done the first time
    return first if first > LONG_S else _timed(step), sum(kept.values())


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _memory_gb(objective: nn.Module, activations: float) -> float:
    """Weights once, trained ones again as gradient and as two moments, and the activations."""
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    trained = sum(p.numel() * 4 for p in objective.parameters() if p.requires_grad)
    return (weights + 3 * trained + activations) / 2**30
