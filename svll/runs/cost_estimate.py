"""Memory and hours of a run on this machine, measured on a part of a batch, without training.

Both stages have random weights. The bytes that autograd keeps are counted on two images. On a CPU
growing batches go forward and backward, the last size several times; the rest is multiplication. A
GPU takes the whole batch, since with a part of it launching kernels takes longer than computing.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.training import ranks
from svll import stage1, stage2
from svll.config import Config
from svll.features.extract import autocast
from svll.inputs import starting_clip
from svll.models.clip import Clip
from svll.models.reid import ReIDModel, learned_side_information
from svll.runs.preflight import TrainingSize, quietly

PROBE_IMAGES = 2
"""Images of the first probe, of different identities, so that triplets have negatives."""
LONG_S, GROWTH = 2.0, 4
"""Probes grow GROWTH-fold until one takes LONG_S seconds of all cores."""
LARGEST = 4 * 2**30
"""Limit on a probe's activations on a CPU, in bytes."""
REPEATS, TIME_S = 4, 3.0
"""Limits on the repetitions of a probe (at least two) and their seconds."""


class ParameterGroup(NamedTuple):
    """Parameters that share a learning rate."""

    stage: str
    name: str
    tensors: int
    parameters: int
    lr_first: float
    """At the first epoch."""
    lr: float
    """After warm-up."""
    weight_decay: float


class Range(NamedTuple):
    """The shortest and the longest of several measurements."""

    low: float
    high: float

    def times(self, factor: float) -> "Range":
        return Range(self.low * factor, self.high * factor)

    def plus(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __str__(self) -> str:
        low, high = (f"{n:.0f}" if n >= 10 else f"{n:.2g}" for n in self)
        return low if low == high else f"{low} to {high}"


class StageCost(NamedTuple):
    """Cost of a stage on one rank that has this machine's device to itself."""

    stage: str
    steps: int
    """Of all epochs."""
    step_s: Range
    before_s: Range
    """Once, before the first step: encoding what is cached."""
    memory_gb: float
    """Weights, gradients, moments and activations at a step."""

    @property
    def hours(self) -> Range:
        return self.before_s.plus(self.step_s.times(self.steps)).times(1 / 3600)


class Estimate(NamedTuple):
    """Cost of a run."""

    groups: tuple[ParameterGroup, ...]
    costs: tuple[StageCost, ...]
    precision: str
    """Of the probes: fp32 where the device would emulate bf16, for minutes."""


def estimate(config: Config, size: TrainingSize) -> Estimate:
    """Build both stages, run a part of a batch of each and multiply; takes seconds to a minute.

    Raises UserError for a model that does not exist or does not fit the input size.
    """
    if config.engine.precision == "bf16" and not ranks.has_fast_bf16():
        config = replace(config, engine=replace(config.engine, precision="fp32"))
    with quietly():  # random weights need no warning here
        clip = starting_clip(replace(config, model=replace(config.model, weights=None)))
    clip.image.recompute = clip.text.recompute = config.engine.recompute
    stages = [_stage1, _stage2] if config.stage1.epochs else [_stage2]
    groups, costs = zip(*[stage(config, clip, size) for stage in stages], strict=True)
    return Estimate(tuple(chain(*groups)), costs, config.engine.precision)


def _stage1(
    config: Config, clip: Clip, size: TrainingSize
) -> tuple[list[ParameterGroup], StageCost]:
    """Prompts of a step grow with the identities in its batch; images are encoded once."""
    device, stage = ranks.device(), config.stage1
    objective = stage1.make_objective(config, clip, size.identities).to(device)
    optimizer, first = stage1.optimizer(objective, stage), stage1.lr_factor(stage, 1)
    groups = _groups("stage1", objective, optimizer, first)
    # the expected number of identities in a random batch
    n, b = size.identities, min(stage.batch, size.images)
    expected = n * (1 - (1 - 1 / n) ** b)

    def batch(count: int) -> stage1.PromptBatch:
        features = torch.randn(count, clip.text.out, device=device)
        return stage1.PromptBatch(features, torch.arange(count), 0)

    most = max(1, round(expected))
    step_s, activations = _probe(config, objective, batch, stage1.loss_weights(stage),
                                 first=min(PROBE_IMAGES, most), most=most, target=expected)
    steps, before_s = -(-size.images // stage.batch) * stage.epochs, _encoding(config, clip, size)
    return groups, StageCost("stage1", steps, step_s, before_s, _memory_gb(objective, activations))


def _stage2(
    config: Config, clip: Clip, size: TrainingSize
) -> tuple[list[ParameterGroup], StageCost]:
    device, stage = ranks.device(), config.stage2
    side = learned_side_information(config.model, clip.image.width, cameras=size.cameras,
                                    views=size.views)
    model = ReIDModel(clip.image.requires_grad_(True), side)
    text = torch.zeros(size.identities, clip.image.out)
    objective = stage2.make_objective(config, model, text, size.identities).to(device)
    optimizer, first = stage2.optimizer(objective, stage), stage2.lr_factor(stage, 1)
    groups = _groups("stage2", objective, optimizer, first)

    def batch(count: int) -> stage2.ImageBatch:
        views = [_images(config, count) for _ in range(3 if stage.vss_weight else 1)]
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        labels = torch.arange(count) % size.identities
        return stage2.ImageBatch(views, labels, zeros, zeros)

    step_s, activations = _probe(config, objective, batch, stage2.loss_weights(stage),
                                 first=PROBE_IMAGES, most=stage.batch, target=stage.batch)
    step_s = step_s.plus(_measured(optimizer.step))
    batches = size.images // stage.batch if size.batches is None else size.batches
    memory_gb = _memory_gb(objective, activations)
    return groups, StageCost("stage2", batches * stage.epochs, step_s, Range(0.0, 0.0), memory_gb)


def _groups(
    stage: str, objective: nn.Module, optimizer: torch.optim.Optimizer, first: float
) -> list[ParameterGroup]:
    names = {parameter: name for name, parameter in objective.named_parameters()}
    found = []
    for group in optimizer.param_groups:
        own, lr = group["params"], group["lr"]
        biases = all(names[parameter].endswith("bias") for parameter in own)
        found.append(ParameterGroup(
            stage, "prompts" if stage == "stage1" else "biases" if biases else "weights",
            len(own), sum(p.numel() for p in own), first * lr, lr, group["weight_decay"],
        ))
    return found


def _images(config: Config, count: int) -> Tensor:
    shape = (count, 3, config.data.height, config.data.width)
    return torch.randn(shape, device=ranks.device())


def _encoding(config: Config, clip: Clip, size: TrainingSize) -> Range:
    """Return the seconds in which the frozen encoder encodes all training images."""
    encoder = clip.image.to(ranks.device())

    def encode(count: int) -> Callable[[], Any]:
        batch = _images(config, count)
        return lambda: encoder(batch)

    with torch.no_grad(), autocast(str(ranks.device()), config.engine.precision):
        count = _grown(encode, PROBE_IMAGES, config.evaluation.batch)
        return _measured(encode(count)).times(size.images / count)


def _probe(
    config: Config, objective: nn.Module, batch: Callable[[int], Any], weights: dict[str, float],
    *, first: int, most: int, target: float,
) -> tuple[Range, float]:
    """Return the seconds of a step on `target` samples, and the bytes that autograd keeps."""

    def step(count: int) -> Callable[[], None]:
        made = batch(count)

        def forward_and_backward() -> None:
            with autocast(str(ranks.device()), config.engine.precision):
                losses = objective(made)
            torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()

        return forward_and_backward

    kept = _kept_by(objective, step(first)) / first
    if ranks.device().type == "cpu":
        most = min(most, max(first, int(LARGEST // max(1.0, kept))))
    count = _grown(step, first, most)
    return _measured(step(count)).times(target / count), kept * target


def _kept_by(objective: nn.Module, work: Callable[[], Any]) -> int:
    """Return the bytes that autograd keeps during `work`, without parameters."""
    held = {p.untyped_storage().data_ptr() for p in (*objective.parameters(), *objective.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())


def _grown(work: Callable[[int], Callable[[], Any]], count: int, most: int) -> int:
    """Return the samples, from `count` to `most`, of a probe that takes long enough; on a GPU as
    many as fit into its memory."""
    if ranks.device().type == "cuda":
        return _fitting(work, count, most)
    work(count)()  # one-time costs, such as choosing kernels
    while count < most:
        # CPU time: on a busy machine even a small step may wait for seconds
        started, probe = time.process_time(), work(count)
        _timed(probe)
        if time.process_time() - started > LONG_S * torch.get_num_threads():
            break
        count = min(GROWTH * count, most)
    return count


def _fitting(work: Callable[[int], Callable[[], Any]], least: int, most: int) -> int:
    """Return the samples, `most` or a part of them, of a probe that the GPU's memory holds. Raises
    UserError if it does not hold `least`."""
    count = most
    while True:
        with suppress(torch.OutOfMemoryError):
            work(count)()  # one-time costs, such as choosing kernels
            return count
        torch.cuda.empty_cache()
        if count <= least:
            raise UserError(f"the GPU's memory does not hold a step of {least} images; free it, or "
                            "use engine.precision=bf16, a smaller model or a smaller input size")
        count = max(least, count // 2)


def _measured(work: Callable[[], Any]) -> Range:
    """Return the seconds of `work`, repeated after one run that is not counted."""
    started, found = time.perf_counter(), [_timed(work)]
    while len(found) < 3 or (len(found) <= REPEATS and time.perf_counter() - started < TIME_S):
        found.append(_timed(work))
    return Range(min(found[1:]), max(found[1:]))


def _timed(work: Callable[[], Any]) -> float:
    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def _memory_gb(objective: nn.Module, activations: float) -> float:
    """Return GiB of weights, of gradient and two moments of trained ones, and of activations."""
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    trained = sum(p.numel() * 4 for p in objective.parameters() if p.requires_grad)
    return (weights + 3 * trained + activations) / 2**30
