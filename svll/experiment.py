"""One run of SVLL-ReID in the order of events: data, stage 1, stage 2, features, evaluation.

Each step leaves a file in the run folder (prompts, weights, features, result), so a stopped run
resumes at the interrupted step, and within a stage at its last checkpoint.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.locks import job_id
from harness.base.units import counted
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs.execute import Report
from harness.runs.run import Run
from harness.runs.takeovers import changed_settings
from harness.training import ranks
from harness.training.loop import Recording
from harness.training.precision import use_full_precision
from harness.training.writers import finish_curves, open_writers
from svll import curves, stage1, stage2
from svll.config import Config
from svll.inputs import check_inputs, load_inputs
from svll.scoring import final_metrics

log = logging.getLogger(__name__)


def run(run: Run, report: Report | None = None) -> dict[str, Any]:
    """Execute the run that `run.config_file` describes, and return its result on every rank.

    Raises UserError for the user's mistakes, `harness.runs.stopping.Stopped` after a stop request.
    """
    started = time.time()
    config = build(Config, [*read_recipe(run.config_file, Config), *changed_settings(run)])
    set_up(config)
    if ranks.rank() == 0:
        for line in _plan(config):
            log.info("%s", line)
    place = config.run
    with open_writers(run, tensorboard=place.tensorboard, wandb=place.wandb,
                      about=lambda: curves.about(run, config)) as writers:
        inputs = load_inputs(run, config)
        check_inputs(inputs)
        recording = Recording(
            place.log_every, 60 * place.save_every, place.divergence, report, writers,
            score_key=Config.experiment.metric, metrics=("prompts.mAP", "validation.mAP"),
        )
        with _memory_of("stage 1", "stage1.batch, or evaluation.batch if it was encoding images"):
            text = stage1.learn_prompts(inputs, recording) if config.stage1.epochs else None
        with _memory_of("stage 2", "stage2.batch, or evaluation.batch if it was validating"):
            model = stage2.tune_encoder(inputs, text, recording)
        with _memory_of("the test", "evaluation.batch"):
            result = final_metrics(inputs, model)
        result["seconds"] = time.time() - started
        ranks.on_leader(lambda: write_json(run.result_file, result))
        shape = config.data.width / config.data.height
        finish_curves(writers, curves.final_scores(result), lambda: curves.ranked_images(
            run.features_file, inputs.staged, shape
        ))
    if ranks.rank() == 0 and not place.keep_checkpoints:
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # only a resume needs them
    return result


def _plan(config: Config) -> Iterator[str]:
    """Yield lines on what a run does."""
    data, model, first, second = config.data, config.model, config.stage1, config.stage2
    share = f"{data.validation:.0%} of the identities"
    held_out = f", {share} for validation" if data.validation else ""
    yield (f"data: train on {'+'.join(data.train or [data.name])}{held_out}; "
           f"test on {', '.join(data.test or [data.name])}")
    yield (f"model: {model.name}, weights: {model.weights or 'random'}, "
           f"{data.height} x {data.width} pixels, seed {config.seed}")
    yield (f"stage 1: {counted(first.epochs, 'epoch')}, batch {first.batch}, lr {first.lr:g}, "
           f"lss_weight {first.lss_weight:g}" if first.epochs else "stage 1: none")
    yield (f"stage 2: {counted(second.epochs, 'epoch')}, batch {second.batch}, lr {second.lr:g}, "
           f"vss_weight {second.vss_weight:g}")
    yield f"on {counted(ranks.world_size(), 'rank')}: {ranks.device()}, {config.engine.precision}"


@contextmanager
def _memory_of(part: str, lower: str) -> Iterator[None]:
    """Turn a full GPU memory in the body into a UserError that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).removeprefix("CUDA out of memory").strip(" .,").split())
        raise UserError(f"{part}: the GPU's memory is full ({reason}); lower {lower}") from error


def set_up(config: Config) -> None:
    """Join the other ranks and make computation deterministic and float32 full precision."""
    if job_id() is not None:  # the launcher has fetched what a job needs
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ranks.init_ranks(config.engine.timeout)
    if config.engine.precision == "bf16" and not ranks.has_fast_bf16():
        log.warning(
            "this machine emulates bf16, many times slower than fp32; set engine.precision=fp32"
        )
    ranks.be_repeatable()
    use_full_precision()
