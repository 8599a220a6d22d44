"""Where training takes its time: an epoch of stage 1, a step of stage 2, under torch's profiler.

    <run>/profile/stage1.json, stage2.json    traces, for chrome://tracing or ui.perfetto.dev

The run is set up as for training, with its data, model and ranks; nothing that is trained is kept.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from harness.base.files import atomic_write
from harness.runs.run import Run
from harness.training import loop, ranks
from harness.training.checkpoints import Progress
from harness.training.engine import start_engine
from svll import stage1, stage2
from svll.config import Config
from svll.experiment import set_up
from svll.inputs import check_inputs, load_inputs

WAIT = "waiting for data"
PHASES = (WAIT, loop.FORWARD, loop.BACKWARD, loop.OPTIMIZER)
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_convolution", "convolution_backward"),
    "attention": ("_scaled_dot_product", "_flash_attention", "_efficient_attention"),
    "normalisation": ("native_layer_norm", "native_batch_norm", "cudnn_batch_norm"),
    "activations": ("silu", "gelu", "relu", "threshold", "softmax", "_softmax", "_log_softmax"),
    "copies and fills": ("copy_", "cat", "fill_", "zero_", "clone", "_to_copy", "index"),
    "sums and products of elements": ("add", "mul", "div", "sub", "sum", "mean"),
    "Adam": ("_fused_adam",),
    "communication": ("gloo:", "nccl:", "c10d::", "record_param_comms"),
}
"""Operations by the beginning of their names without `aten::`, the first that fits."""
WARM_UP = 2
MOST_STEPS = 64
"""Of an epoch of stage 1: a trace of more cannot be opened."""


@dataclass(frozen=True)
class Item:
    """One operation, or all of a kind."""

    name: str
    seconds: float
    """Its own, without the operations that it calls."""
    calls: int


@dataclass(frozen=True)
class Profile:
    """Of a stage."""

    stage: str
    steps: int
    seconds: float
    phases: dict[str, float]
    """Seconds of each of PHASES."""
    operations: list[Item]
    """The longest first."""
    trace: Path

    def kinds(self) -> list[Item]:
        """Return the operations by kind, the longest first."""
        found: dict[str, Item] = {}
        for one in self.operations:
            kind = kind_of(one.name)
            before = found.get(kind, Item(kind, 0.0, 0))
            found[kind] = Item(kind, before.seconds + one.seconds, before.calls + one.calls)
        return sorted(found.values(), key=lambda item: -item.seconds)


def kind_of(operation: str) -> str:
    """Return the kind of an operation by its name in the trace."""
    name = operation.removeprefix("aten::")
    for kind, beginnings in KINDS.items():
        if name.startswith(beginnings):
            return kind
    return "other"


def profile_run(run: Run, config: Config) -> list[Profile]:
    """Profile both stages of a run as it would begin; every rank must call it.

    Each after steps that do not count. Raises UserError as a run does.
    """
    set_up(config)
    inputs = load_inputs(run, config)
    check_inputs(inputs)
    found, text = [], None
    if config.stage1.epochs:
        prompts = stage1.make_objective(inputs)
        found.append(_profile(stage1.build(inputs, prompts), run, config, MOST_STEPS))
        text = stage1.text_features(prompts)
    with closing(stage2.open_loader(inputs)) as loader:
        images = stage2.make_objective(inputs, stage2.starting_model(inputs), text)
        found.append(_profile(stage2.build(inputs, images, loader), run, config, 1))
    return found


def _profile(stage: loop.Stage, run: Run, config: Config, most: int) -> Profile:
    engine = start_engine(stage.objective, stage.optimizer, stage.batch, config.engine)
    at, trace = Progress(stage.name, 1, 0, 0), run.folder / "profile" / f"{stage.name}.json"
    stage.objective.train()

    def take(batches: Iterator[Any], count: int) -> int:
        """Train up to `count` steps; returns how many."""
        for step in range(count):
            with record_function(WAIT):
                batch = next(batches, None)
            if batch is None:
                return step
            loop.train_step(stage, engine, batch, at)
        return count

    try:
        take(stage.batches(1, 0), WARM_UP)
        batches = stage.batches(2, 0)
        recorded, (steps, seconds) = _recorded(lambda: take(batches, most))
    finally:
        engine.destroy()
    with ranks.leader_first() as acts:
        if acts:
            with atomic_write(trace) as private:
                recorded.export_chrome_trace(str(private))
    return _summary(stage.name, steps, seconds, recorded, trace)


def _recorded(work: Callable[[], int]) -> tuple[profile, tuple[int, float]]:
    """Do some work under the profiler; returns what it returned, and its seconds."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        started = time.perf_counter()
        done = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return recorded, (done, seconds)


def _summary(
    stage: str, steps: int, seconds: float, recorded: profile, trace: Path
) -> Profile:
    phases, operations = dict.fromkeys(PHASES, 0.0), []
    for event in recorded.key_averages():
        if event.key in phases:
            phases[event.key] += event.cpu_time_total / 1e6
            continue
        if event.device_type != DeviceType.CPU:
            continue  # a kernel: the operation that started it has its time, and a telling name
        own = event.self_device_time_total if torch.cuda.is_available() else (
            event.self_cpu_time_total
        )
        operations.append(Item(event.key, own / 1e6, event.count))
    operations.sort(key=lambda item: -item.seconds)
    return Profile(stage, steps, seconds, phases, operations, trace)
