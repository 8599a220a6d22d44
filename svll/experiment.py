"""One run of SVLL-ReID: data, stage 1, stage 2, features, evaluation. Where it all meets.

Each step leaves a file in the run folder (prompts, weights, features, result), so a run that was
stopped goes on at the step it was in, and inside a stage from its last checkpoint.
"""

import logging
import os
import time
from typing import Any

from harness.base.files import write_json
from harness.base.locks import job_id
from harness.config.build import build, read_recipe, to_mapping
from harness.runs.run import Run
from harness.runs.takeovers import changed_settings
from harness.training import ranks
from harness.training.loop import Recording, Report
from harness.training.writers import open_writers
from svll import stage1, stage2
from svll.config import Config
from svll.inputs import check_inputs, load_inputs
from svll.runs.run_weights import remove_checkpoints
from svll.testing import final_metrics

log = logging.getLogger(__name__)


def run(run: Run, report: Report | None = None) -> dict[str, Any]:
    """Carry out the run that `run.config_file` describes and return its result on every rank.

    Raises UserError for what the user can mend, `harness.runs.stopping.Stopped` when asked to stop.
    """
    started = time.time()
    config = build(Config, [*read_recipe(run.config_file, Config), *changed_settings(run)])
    set_up(config)
    place = config.run
    with open_writers(
        run, tensorboard=place.tensorboard, wandb=place.wandb, config=to_mapping(config)
    ) as writers:
        inputs = load_inputs(run, config)
        check_inputs(inputs)
        recording = Recording(
            place.log_every, 60 * place.save_every, place.divergence, report, writers,
            score_key=Config.experiment.metric, shown=("prompts.mAP", "validation.mAP"),
        )
        text = stage1.learn_prompts(inputs, recording) if config.stage1.epochs else None
        model = stage2.tune_encoder(inputs, text, recording)
        result = final_metrics(inputs, model)
    result["seconds"] = time.time() - started
    with ranks.leader_first() as acts:
        if acts:
            write_json(run.result_file, result)
            if not place.keep_checkpoints:
                remove_checkpoints(run)
    return result


def set_up(config: Config) -> None:
    """Join the ranks and make this process compute the same every time."""
    if job_id() is not None:  # what it needs was fetched when it was submitted
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ranks.init_ranks(config.engine.timeout)
    if config.engine.precision == "bf16" and not ranks.has_fast_bf16():
        log.warning(
            "this machine has no bf16 arithmetic and imitates it, many times slower than "
            "engine.precision=fp32"
        )
    ranks.be_repeatable()
