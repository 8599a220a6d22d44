"""The one training loop: batch, losses by name, backward, step, record, save, stop.

The loop does not know what it trains: a `Stage` tells it. All stages of an experiment run here.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from harness.base.errors import UserError
from harness.base.mappings import lookup
from harness.runs.execute import Report
from harness.runs.run import Run, epoch_lines
from harness.runs.stopping import Stopped, stop_requested
from harness.training import checkpoints, progress, ranks
from harness.training.checkpoints import Progress
from harness.training.engine import EngineSettings, start_engine
from harness.training.writers import CurveWriter, scalars_of

log = logging.getLogger(__name__)
MEASURED = ("images_per_s", "memory_gb")
"""Entries of an epoch's line that depend on the machine and change when a run is interrupted."""
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
"""The parts of a step, by their names in a profile."""
SAVE, STOP = 1, 2
"""What a rank may ask all ranks to do between two steps; the largest request counts."""


@dataclass
class Stage:
    """One stage of training: everything that the loop needs."""

    name: str
    objective: nn.Module
    """Called with a batch, returns losses by name, each a scalar over the global batch."""
    weights: Mapping[str, float]
    """The weight of each loss in the total that is minimised."""
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    """Maps the epoch (from 1) to a factor on each group's learning rate."""
    epochs: int
    batch: int
    """Samples per step, over all ranks."""
    steps: Callable[[int], int]
    """Maps the epoch to its number of batches."""
    batches: Callable[[int, int], Iterator[Any]]
    """Maps (epoch, first step) to the batches of the epoch from that step on."""
    validate: Callable[[int], dict[str, Any]]
    """Called after each epoch on every rank; returns metrics to log, possibly none."""


@dataclass(frozen=True)
class Recording:
    """What is logged, saved and checked while a stage is trained."""

    log_every: int
    """Steps between two lines of the metric log."""
    save_every_s: float = math.inf
    """Seconds between checkpoints within an epoch; each epoch also ends with one."""
    divergence: float = math.inf
    """Training ends when a step's loss exceeds the first epoch's mean by this factor."""
    report: Report | None = None
    """Called on rank 0 with the line of each epoch."""
    writers: tuple[CurveWriter, ...] = ()
    """Writers of curves, on rank 0."""
    score_key: str = ""
    """The metric, such as `validation.accuracy`, that is highest at the best checkpoint."""
    shown: tuple[str, ...] = ()
    """Metrics, by dotted key, in each epoch's log line and among the curves."""


def train(stage: Stage, run: Run, settings: EngineSettings, recording: Recording) -> nn.Module:
    """Train a stage to its end, from its last checkpoint if there is one; returns the module.

    A stage whose checkpoint says that it is done is only loaded. Raises Stopped after a stop was
    requested and everything was saved, UserError when a loss is not finite or has diverged.
    """
    for group in stage.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    ranks.forget_peak()
    engine = engine_for(stage, settings)
    try:
        at, pace = _resume(stage, run, engine), progress.Pace()
        with checkpoints.Writer(run.checkpoints, signature=run.signature) as writer:
            before = at.epoch
            while at.epoch <= stage.epochs:
                _train_epoch(stage, run, engine, settings, recording, writer, at, pace)
        if at.epoch > before:
            most = ranks.largest(round(1e3 * ranks.peak_memory_gb()))
            log.info("%s: peak memory %.2f GB a rank", stage.name, most / 1e3)
        return stage.objective
    finally:
        engine.destroy()


def engine_for(stage: Stage, settings: EngineSettings) -> Any:
    """Return a stage's DeepSpeed engine."""
    return start_engine(
        stage.objective, stage.optimizer, batch=stage.batch, precision=settings.precision,
        zero=settings.zero, accumulation=settings.accumulation, clipping=settings.clipping,
    )


def _resume(stage: Stage, run: Run, engine: Any) -> Progress:
    """Return where training resumes: at the last checkpoint, if it is one of this stage."""
    found = None
    with ranks.leader_first() as acts:
        if acts:
            found = checkpoints.latest(run.checkpoints, signature=run.signature)
    found = ranks.from_leader(found)
    if found is None or found[1].stage != stage.name:
        lines = 0 if found is None else found[1].metric_lines
        with ranks.leader_first() as acts:
            if acts:
                if found is None:
                    _refuse_to_start_over(run)
                run.keep_metrics(lines)
        return Progress(stage.name, 1, 0, lines)
    path, at = found
    checkpoints.restore(path, engine)
    with ranks.leader_first() as acts:
        if acts:
            checkpoints.go_on_from(path)
            run.keep_metrics(at.metric_lines)
    log.info("%s resumes at epoch %d, step %d", stage.name, at.epoch, at.step)
    return at


def _refuse_to_start_over(run: Run) -> None:
    """Raise UserError when a run without checkpoints must have had some.

    An epoch's line is written before its checkpoint, which is written during the next epoch.
    """
    epochs = epoch_lines(run)
    if len(epochs) > 2:
        raise UserError(
            f"{run.checkpoints}: there is no checkpoint, but {run.metrics_file.name} has "
            f"{len(epochs)} epochs; restore one, or delete the folder {run.folder} to start over"
        )


def _train_epoch(
    stage: Stage, run: Run, engine: Any, settings: EngineSettings, recording: Recording,
    writer: checkpoints.Writer, at: Progress, pace: progress.Pace,
) -> None:
    """Train one epoch from step `at.step`, and move `at` to the start of the next epoch."""
    lr = _set_lr(engine, stage.lr_factor(at.epoch))
    count = stage.steps(at.epoch)
    first, started = at.step, time.perf_counter()
    saved = started
    stage.objective.train()
    title = f"{stage.name} epoch {at.epoch}/{stage.epochs}"
    with progress.bar(title, total=count, done=first) as advance:
        for batch in stage.batches(at.epoch, first):
            last = at.step + 1 == count
            boundary = last or (at.step + 1) % settings.accumulation == 0
            # an epoch's last optimizer step may have fewer batches to average over
            start = at.step - at.step % settings.accumulation
            window = min(settings.accumulation, count - start)
            losses = train_step(
                stage, engine, batch, at, boundary=boundary, window=window,
                divergence=recording.divergence,
            )
            at.step, at.steps_total = at.step + 1, at.steps_total + 1
            pace.step()
            _record_step(stage, run, recording, at, losses, lr, count)
            step_s = (time.perf_counter() - started) / (at.step - first)
            left = pace.left(_steps_left(stage, at, count))
            advance(_bar_text(losses, stage.batch / step_s, left))
            if last or not boundary:
                continue
            due = time.perf_counter() - saved >= recording.save_every_s
            asked = ranks.largest(STOP if stop_requested() else SAVE if due else 0)
            if asked:
                writer.save(engine, at)
                saved = time.perf_counter()
            if asked == STOP:
                writer.finish()
                raise Stopped(f"on request in {stage.name}, epoch {at.epoch}, after step {at.step}")
    assert at.step == count, f"{stage.name}: got {at.step} batches, expected {count}"
    seconds = time.perf_counter() - started
    step_s = seconds / max(1, count - first)
    line = _finish_epoch(stage, run, recording, at, lr, step_s, pace)
    at.first = at.first or {name: value / at.step for name, value in at.sums.items()}
    at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
    writer.save(engine, at, lookup(line, recording.score_key))
    if line is not None and recording.report is not None:
        recording.report(line)
    if at.epoch <= stage.epochs and ranks.any_rank(stop_requested()):
        writer.finish()
        raise Stopped(f"on request in {stage.name}, after epoch {at.epoch - 1}")


def train_step(
    stage: Stage, engine: Any, batch: Any, at: Progress, *, boundary: bool = True, window: int = 1,
    divergence: float = math.inf,
) -> dict[str, float]:
    """Run forward, backward and, at a boundary, the optimizer's step; returns the losses.

    window: the number of batches that the optimizer step averages over. Raises UserError for a loss
    that is not finite or has diverged.
    """
    engine.set_gradient_accumulation_boundary(boundary)
    with record_function(FORWARD):
        losses: dict[str, Tensor] = engine(batch)
        total = torch.stack([stage.weights[name] * loss for name, loss in losses.items()]).sum()
        # one copy for all numbers: on a GPU, each copy waits for the device
        values = dict(
            zip([*losses, "loss"], torch.stack([*losses.values(), total]).tolist(), strict=True)
        )
    _check(stage, at, values, divergence)
    with record_function(BACKWARD):
        engine.backward(total / window, scale_wrt_gas=False)
    with record_function(OPTIMIZER):
        engine.step()
    for name, value in values.items():
        at.sums[name] = at.sums.get(name, 0.0) + value
    return values


def _check(stage: Stage, at: Progress, values: dict[str, float], divergence: float) -> None:
    """Raise UserError when a loss is not finite, or when their total has diverged.

    Losses are those of the global batch, so all ranks raise together.
    """
    place = f"{stage.name}, epoch {at.epoch}, step {at.step + 1}"
    parts = [name for name in values if name != "loss"]
    wrong = [name for name in parts if not math.isfinite(values[name])]
    if wrong:
        raise UserError(
            f"{place}: {', '.join(wrong)} is {values[wrong[0]]}; lower the learning rate, or use "
            "engine.precision=fp32"
        )
    before = at.first.get("loss", 0.0)
    if before > 0.0 and values["loss"] > divergence * before:
        most = max(parts, key=lambda name: stage.weights[name] * values[name])
        raise UserError(
            f"{place}: diverged: the loss is {values['loss']:.4g}, over {divergence:g} times the "
            f"{before:.4g} of the first epoch; the largest part is {most} ({values[most]:.4g}); "
            "lower the learning rate, or raise run.divergence"
        )


def _set_lr(engine: Any, factor: float) -> float:
    """Set every group's learning rate; returns the first group's."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(engine.optimizer.param_groups[0]["lr"])


def _record_step(
    stage: Stage, run: Run, recording: Recording, at: Progress, losses: dict[str, float],
    lr: float, count: int,
) -> None:
    if ranks.rank() != 0:
        return
    if at.steps_total % recording.log_every == 0 and at.step < count:
        parts = {name: value for name, value in losses.items() if name != "loss"}
        at.metric_lines += 1
        record_line(run, recording, {
            "kind": "step", "stage": stage.name, "epoch": at.epoch, "step": at.steps_total,
            "loss": losses["loss"], "losses": parts, "lr": lr,
        })


def _finish_epoch(
    stage: Stage, run: Run, recording: Recording, at: Progress, lr: float, step_s: float,
    pace: progress.Pace,
) -> dict[str, Any] | None:
    """Validate and log the epoch's means; returns the line on rank 0."""
    metrics = stage.validate(at.epoch)
    if ranks.rank() != 0:
        return None
    means = {name: value / at.step for name, value in at.sums.items()}
    loss = means.pop("loss")
    line = {
        "kind": "epoch", "stage": stage.name, "epoch": at.epoch, "step": at.steps_total,
        "loss": loss, "losses": means, "lr": lr, "images_per_s": stage.batch / step_s,
        "memory_gb": ranks.peak_memory_gb(), **metrics,
    }
    at.metric_lines += 1
    record_line(run, recording, line)
    parts = " ".join(f"{name} {value:.4f}" for name, value in means.items())
    found = {key: lookup(metrics, key) for key in recording.shown}
    scores = "".join(f" {key} {value:.4f}" for key, value in found.items() if value is not None)
    left = pace.left(_steps_left(stage, at, at.step))
    log.info(
        "%s epoch %d/%d loss %.4f (%s) lr %.3g, %.0f images/s%s%s",
        stage.name, at.epoch, stage.epochs, loss, parts, lr, line["images_per_s"], scores,
        f", {left}" if left else "",
    )
    return line


def _steps_left(stage: Stage, at: Progress, count: int) -> int:
    """Return the steps left in the stage, assuming that every epoch has `count` steps."""
    return count - at.step + (stage.epochs - at.epoch) * count


def _bar_text(losses: dict[str, float], images_per_s: float, left: str) -> str:
    """Return the text beside the bar, the most important first: a narrow terminal cuts its end."""
    parts = " ".join(f"{name} {value:.3g}" for name, value in losses.items() if name != "loss")
    stage = f", stage {left}" if left else ""
    return f"loss {losses['loss']:.4f}{stage}, {images_per_s:.0f} images/s, {parts}"


def record_line(run: Run, recording: Recording, line: dict[str, Any]) -> None:
    """Append a line of a step or an epoch to the metric log and to the curves; on rank 0 only."""
    run.log_metrics(line)
    for writer in recording.writers:
        writer.write(scalars_of(line, recording.shown), line["stage"], line["step"])
