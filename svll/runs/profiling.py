"""Where training spends its time: an epoch of stage 1, a step of stage 2, under torch's profiler.

    <run>/profile/stage1.json, stage2.json    traces, for chrome://tracing or ui.perfetto.dev

The run is set up as for training, with its data, model and ranks; the trained weights are dropped.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
"""Operations by the start of their names without `aten::`; the first match counts."""
WARM_UP = 2
MOST_STEPS = 64
"""Of an epoch of stage 1: viewers cannot open a longer trace."""


class Operation(NamedTuple):
    """One operation, or all of a kind; seconds without those of the operations that it calls."""

    name: str
    seconds: float
    calls: int


class StageProfile(NamedTuple):
    """The profile of some steps of a stage."""

    stage: str
    steps: int
    seconds: float
    phases: dict[str, float]
    """Seconds of each of PHASES."""
    operations: list[Operation]
    """The longest first."""
    trace: Path

    def kinds(self) -> list[Operation]:
        """Return the operations by kind, the longest first."""
        found: dict[str, Operation] = {}
        for one in self.operations:
            kind = kind_of(one.name)
            before = found.get(kind, Operation(kind, 0.0, 0))
            found[kind] = Operation(kind, before.seconds + one.seconds, before.calls + one.calls)
        return sorted(found.values(), key=lambda kind: -kind.seconds)


def kind_of(operation: str) -> str:
    """Return the kind of an operation by its name in the trace."""
    name = operation.removeprefix("aten::")
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "other")


def profile_run(run: Run, config: Config) -> list[StageProfile]:
    """Profile both stages of a run from its start, on every rank; UserError as in the run."""
    set_up(config)
    inputs = load_inputs(run, config)
    check_inputs(inputs)
    found, text, identities = [], None, inputs.splits.identities
    if config.stage1.epochs:
        prompts = stage1.make_objective(config, inputs.clip, identities)
        found.append(_profile(stage1.build(inputs, prompts), run, config, MOST_STEPS))
        text = stage1.text_features(prompts)
    with closing(stage2.open_loader(inputs)) as loader:
        images = stage2.make_objective(config, stage2.starting_model(inputs), text, identities)
        found.append(_profile(stage2.build(inputs, images, loader), run, config, 1))
    return found


@contextmanager
def _phase(name: str) -> Iterator[None]:
    """Record the body under a name, with the GPU's work for it."""
    with record_function(name):
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _profile(stage: loop.Stage, run: Run, config: Config, most: int) -> StageProfile:
    engine = start_engine(stage.objective, stage.optimizer, stage.batch, config.engine)
    at, trace = Progress(stage.name, 1, 0, 0), run.folder / "profile" / f"{stage.name}.json"
    stage.objective.train()

    def train(batches: Iterator[Any], count: int) -> int:
        """Train up to `count` steps; returns their number."""
        for step in range(count):
            with _phase(WAIT):
                batch = next(batches, None)
            if batch is None:
                return step
            loop.train_step(stage, engine, batch, at, phase=_phase)
        return count

    has_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
    try:
        train(stage.batches(1, 0), WARM_UP)
        batches = stage.batches(2, 0)
        with profile(activities=activities) as recorded:
            started = time.perf_counter()
            steps = train(batches, most)
            if has_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
    finally:
        engine.destroy()
    with ranks.leader_first() as acts:
        if acts:
            with atomic_write(trace) as private:
                recorded.export_chrome_trace(str(private))
    phases, operations = dict.fromkeys(PHASES, 0.0), []
    for event in recorded.key_averages():
        if event.key in phases:
            phases[event.key] += event.cpu_time_total / 1e6
        elif event.device_type == DeviceType.CPU:  # a kernel's time is also its operation's
            own = event.self_device_time_total if has_gpu else event.self_cpu_time_total
            operations.append(Operation(event.key, own / 1e6, event.count))
    operations.sort(key=lambda operation: -operation.seconds)
    return StageProfile(stage.name, steps, seconds, phases, operations, trace)
