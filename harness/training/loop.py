"""The one training loop: batch, losses by name, backward, step, record, save, stop. A `Stage` says
what is trained. All stages of an experiment run here."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from harness.base.errors import UserError
from harness.base.mappings import lookup
from harness.runs.execute import Report
from harness.runs.run import Run
from harness.runs.stopping import Stopped, stop_requested
from harness.training import checkpoints, progress, ranks
from harness.training.checkpoints import CheckpointWriter, Progress
from harness.training.engine import EngineSettings, start_engine
from harness.training.writers import CurveWriter, scalars_of

log = logging.getLogger(__name__)
MEASURED = ("images_per_s", "memory_gb")
"""Entries of an epoch's line that depend on the machine and on interruptions."""
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
"""The parts of a step, by their names in a profile."""
SAVE, STOP = 1, 2
"""Requests of a rank to all ranks between two steps; the largest counts."""


@dataclass
class Stage:
    """One stage of training: everything that the loop needs."""

    name: str
    objective: nn.Module
    """Called with a batch, returns losses by name, each a scalar over the global batch."""
    weights: Mapping[str, float]  # of each loss in the total that is minimised
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]  # from the epoch (1 the first), for all learning rates
    epochs: int
    batch: int  # samples per step, over all ranks
    steps: Callable[[int], int]  # from the epoch to its number of batches
    batches: Callable[[int, int], Iterator[Any]]
    """Maps (epoch, first step) to the batches of the epoch from that step on."""
    validate: Callable[[int], dict[str, Any]]
    """Called after each epoch on every rank; returns metrics to log, possibly none. May raise
    Stopped, on every rank."""


@dataclass(frozen=True)
class Recording:
    """What is logged, saved and checked while a stage is trained."""

    log_every: int  # steps between two lines of the metric log
    save_every_s: float = math.inf
    """Seconds between checkpoints within an epoch; each epoch also ends with one."""
    divergence: float = math.inf
    """Training ends when a step's loss exceeds the first epoch's mean by this factor."""
    report: Report | None = None  # called on rank 0 with the line of each epoch
    writers: tuple[CurveWriter, ...] = ()  # of curves, on rank 0
    score_key: str = ""
    """The metric, such as `validation.accuracy`, that is highest at the best checkpoint."""
    metrics: tuple[str, ...] = ()
    """Metrics, by dotted key, that each epoch's line in the log shows."""


def train(stage: Stage, run: Run, settings: EngineSettings, recording: Recording) -> nn.Module:
    """Train a stage to its end, from its last checkpoint if there is one; returns the module.

    A stage whose checkpoint says that it is done is only loaded. Raises Stopped after a stop was
    requested and everything was saved, UserError when a loss is not finite or has diverged: on a
    CPU before the weights change, on a GPU one step later, in any case before they are saved.
    """
    for group in stage.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    ranks.forget_peak()
    engine = start_engine(stage.objective, stage.optimizer, stage.batch, settings)
    try:
        at, pace = _resume(stage, run, engine), progress.Pace()
        before = at.epoch
        with CheckpointWriter(
            run.checkpoints, signature=run.signature, log_file=run.metrics_file
        ) as writer:
            while at.epoch <= stage.epochs:
                _train_epoch(stage, run, engine, settings, recording, writer, at, pace)
        if at.epoch > before:
            most = ranks.largest(round(1e3 * ranks.peak_memory_gb()))
            log.info("%s: peak memory %.2f GB a rank", stage.name, most / 1e3)
        return stage.objective
    finally:
        engine.destroy()


def _resume(stage: Stage, run: Run, engine: Any) -> Progress:
    """Return where training resumes: at the last checkpoint, if it is one of this stage."""
    last = ranks.on_leader(lambda: _last_checkpoint(run))
    if last is not None and last[1].stage == stage.name:
        path, at = last
        checkpoints.restore(path, engine)
        ranks.on_leader(lambda: checkpoints.remove_newer(path))
        log.info("%s resumes at epoch %d, step %d", stage.name, at.epoch, at.step)
    else:
        at = Progress(stage.name, 1, 0, ranks.on_leader(lambda: _lines_before(stage, run)))
    ranks.on_leader(lambda: run.keep_metrics(at.metric_lines))
    return at


def _last_checkpoint(run: Run) -> tuple[Path, Progress] | None:
    """Return the newest checkpoint whose lines are all in the metric log, and its place.

    Raises UserError when a run without checkpoints must have had some. An epoch's line is written
    before its checkpoint, which is written during the next epoch.
    """
    lines = run.metrics()
    epochs = sum(line.get("kind") == "epoch" for line in lines)
    if epochs > 2 and not checkpoints.exist(run.checkpoints):
        raise UserError(f"{run.checkpoints}: there is no checkpoint, but {run.metrics_file.name} "
                        f"has {epochs} epochs; restore one, or delete the folder {run.folder} "
                        "to start over")
    return checkpoints.latest(run.checkpoints, signature=run.signature, lines=len(lines))


def _lines_before(stage: Stage, run: Run) -> int:
    """Return how many lines of the metric log come before the first of a stage."""
    stages = [line.get("stage") for line in run.metrics()]
    return stages.index(stage.name) if stage.name in stages else len(stages)


def _train_epoch(
    stage: Stage, run: Run, engine: Any, settings: EngineSettings, recording: Recording,
    writer: CheckpointWriter, at: Progress, pace: progress.Pace,
) -> None:
    """Train one epoch from step `at.step`, and move `at` to the start of the next epoch."""
    factor, count, every = stage.lr_factor(at.epoch), stage.steps(at.epoch), settings.accumulation
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    lr = float(engine.optimizer.param_groups[0]["lr"])
    first, started = at.step, time.perf_counter()
    saved = started
    stage.objective.train()
    losses = _EpochLosses(stage, run, recording, at, lr)
    title = f"{stage.name} epoch {at.epoch}/{stage.epochs}"
    with progress.bar(title, total=count, done=first) as advance:
        for batch in stage.batches(at.epoch, first):
            last = at.step + 1 == count
            boundary = last or (at.step + 1) % every == 0
            # an epoch's last optimizer step may have fewer batches to average over
            window = min(every, count - at.step + at.step % every)
            losses.add(train_step(stage, engine, batch, at, boundary=boundary, window=window,
                                  divergence=recording.divergence))
            at.step, at.steps_total = at.step + 1, at.steps_total + 1
            pace.step()
            losses.read(all_steps=last)
            speed = stage.batch * (at.step - first) / (time.perf_counter() - started)
            left = pace.left((stage.epochs - at.epoch + 1) * count - at.step)
            advance(_beside_the_bar(losses.newest, left, speed))
            if last or not boundary:
                continue
            due = time.perf_counter() - saved >= recording.save_every_s
            request = ranks.largest(STOP if stop_requested() else SAVE if due else 0)
            if request:
                losses.read(all_steps=True)
                writer.save(engine, at)
                saved = time.perf_counter()
            if request == STOP:
                writer.finish()
                raise Stopped(f"on request in {stage.name}, epoch {at.epoch}, after step {at.step}")
    assert at.step == count, f"{stage.name}: got {at.step} batches, expected {count}"
    speed = stage.batch * (count - first) / (time.perf_counter() - started)
    try:
        line = _finish_epoch(stage, run, recording, at, lr, speed, pace)
    except Stopped:  # in the validation, which the next attempt begins with
        writer.save(engine, at)
        writer.finish()
        raise
    at.first = at.first or {name: value / at.step for name, value in at.sums.items()}
    at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
    writer.save(engine, at, lookup(line, recording.score_key))
    if ranks.rank() == 0 and recording.report is not None:
        recording.report(line)
    if at.epoch <= stage.epochs and ranks.any_rank(stop_requested()):
        writer.finish()
        raise Stopped(f"on request in {stage.name}, after epoch {at.epoch - 1}")


class StepLosses:
    """The losses of a step, copied to the host: at once on a CPU, meanwhile on a GPU."""

    def __init__(self, at: Progress, losses: dict[str, Tensor], total: Tensor) -> None:
        self.step, self.steps_total = at.step + 1, at.steps_total + 1
        self._names = [*losses, "loss"]
        # one copy for all numbers, on a GPU to pinned memory: the host need not wait for it
        numbers = torch.stack([*losses.values(), total]).detach()
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream().record_event() if numbers.is_cuda else None

    @property
    def is_late(self) -> bool:
        """Whether reading may have to wait, so that it is done one step later."""
        return self._copied is not None

    def values(self) -> dict[str, float]:
        """Return the losses by name, their total as "loss", when the GPU has computed them."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._names, self._numbers.tolist(), strict=True))


def train_step(
    stage: Stage, engine: Any, batch: Any, at: Progress, *, boundary: bool = True, window: int = 1,
    divergence: float = math.inf,
    phase: Callable[[str], AbstractContextManager[Any]] = record_function,
) -> StepLosses:
    """Run forward, backward and, at a boundary, the optimizer's step; returns the losses.

    window: the number of batches that the optimizer step averages over. phase: names the parts of
    the step. On a CPU, raises UserError for a loss that is not finite or has diverged; on a GPU,
    who reads the losses must check them.
    """
    engine.set_gradient_accumulation_boundary(boundary)
    with phase(FORWARD):
        losses: dict[str, Tensor] = engine(batch)
        total = torch.stack([stage.weights[name] * loss for name, loss in losses.items()]).sum()
        found = StepLosses(at, losses, total)
    if not found.is_late:
        _check(stage, at, found.step, found.values(), divergence)
    with phase(BACKWARD):
        engine.backward(total / window, scale_wrt_gas=False)
    with phase(OPTIMIZER):
        engine.step()
    return found


class _EpochLosses:
    """The losses of an epoch's steps: read, checked, summed and logged in order. On a GPU those of
    the last step stay unread while it computes them, so that the host can prepare the next."""

    def __init__(
        self, stage: Stage, run: Run, recording: Recording, at: Progress, lr: float
    ) -> None:
        self._stage, self._run, self._recording, self._at, self._lr = stage, run, recording, at, lr
        self._unread: deque[StepLosses] = deque()
        self.newest: dict[str, float] = {}
        """Those read last."""

    def add(self, losses: StepLosses) -> None:
        self._unread.append(losses)

    def read(self, *, all_steps: bool) -> None:
        """Read what is there, or wait for all steps. Raises UserError, on all ranks, for losses
        that are not finite or have diverged."""
        stage, at = self._stage, self._at
        while self._unread and (all_steps or len(self._unread) > self._unread[0].is_late):
            losses = self._unread.popleft()
            self.newest = losses.values()
            if losses.is_late:
                _check(stage, at, losses.step, self.newest, self._recording.divergence)
            for name, value in self.newest.items():
                at.sums[name] = at.sums.get(name, 0.0) + value
            is_due = losses.steps_total % self._recording.log_every == 0
            if ranks.rank() == 0 and is_due and losses.step < stage.steps(at.epoch):
                at.metric_lines += 1
                line = _line("step", stage, at, self.newest, self._lr)
                record_line(self._run, self._recording, line | {"step": losses.steps_total})


def _check(
    stage: Stage, at: Progress, step: int, values: dict[str, float], divergence: float
) -> None:
    """Raise UserError, on all ranks, when a loss is not finite or their total has diverged."""
    place = f"{stage.name}, epoch {at.epoch}, step {step}"
    parts = [name for name in values if name != "loss"]
    wrong = [name for name in parts if not math.isfinite(values[name])]
    if wrong:
        raise UserError(f"{place}: {', '.join(wrong)} is {values[wrong[0]]}; lower the learning "
                        "rate, or use engine.precision=fp32")
    before = at.first.get("loss", 0.0)
    if before > 0.0 and values["loss"] > divergence * before:
        most = max(parts, key=lambda name: stage.weights[name] * values[name])
        raise UserError(f"{place}: diverged: the loss is {values['loss']:.4g}, over {divergence:g} "
                        f"times the {before:.4g} of the first epoch; the largest part is {most} "
                        f"({values[most]:.4g}); lower the learning rate, or raise run.divergence")


def _beside_the_bar(losses: Mapping[str, float], left: str, images_per_s: float) -> str:
    """Return what a bar shows of a step, the most important first: a narrow terminal cuts the end
    off. losses: those known, on a GPU at first none."""
    parts = " ".join(f"{name} {value:.3g}" for name, value in losses.items() if name != "loss")
    total = f"loss {losses['loss']:.4f}, " if losses else ""
    return f"{total}{left and f'stage {left}, '}{images_per_s:.0f} images/s, {parts}"


def _line(
    kind: str, stage: Stage, at: Progress, losses: Mapping[str, float], lr: float
) -> dict[str, Any]:
    """Return a line of the metric log; losses: their total too, under the name "loss"."""
    parts = {name: value for name, value in losses.items() if name != "loss"}
    return {"kind": kind, "stage": stage.name, "epoch": at.epoch, "step": at.steps_total,
            "loss": losses["loss"], "losses": parts, "lr": lr}


def _finish_epoch(
    stage: Stage, run: Run, recording: Recording, at: Progress, lr: float, images_per_s: float,
    pace: progress.Pace,
) -> dict[str, Any]:
    """Validate and log the epoch's means; returns the line."""
    metrics = stage.validate(at.epoch)
    means = {name: value / at.step for name, value in at.sums.items()}
    line = _line("epoch", stage, at, means, lr) | {
        "images_per_s": images_per_s, "memory_gb": ranks.peak_memory_gb(), **metrics
    }
    if ranks.rank() != 0:
        return line
    at.metric_lines += 1
    record_line(run, recording, line)
    parts = " ".join(f"{name} {value:.4f}" for name, value in line["losses"].items())
    scores = {key: lookup(metrics, key) for key in recording.metrics}
    text = "".join(f" {key} {value:.4f}" for key, value in scores.items() if value is not None)
    left = pace.left((stage.epochs - at.epoch) * at.step)  # if all epochs are as long
    log.info("%s epoch %d/%d loss %.4f (%s) lr %.3g, %.0f images/s%s%s",
             stage.name, at.epoch, stage.epochs, line["loss"], parts, lr, images_per_s, text,
             left and f", {left}")
    return line


def record_line(run: Run, recording: Recording, line: dict[str, Any]) -> None:
    """Append a line of a step or an epoch to the metric log and to the curves; on rank 0 only."""
    run.log_metrics(line)
    for writer in recording.writers:
        writer.write(scalars_of(line), line["stage"], line["step"])
