"""What the harness is told about this experiment fits what runs leave and commands offer."""

import pytest
import torch

from harness.cluster.causes import with_next_step
from harness.runs.experiment import experiment_of
from harness.runs.failures import one_line
from launch.slurm import METRICS
from svll.config import Config

EXPERIMENT = experiment_of(Config)


def test_sweeps_are_ranked_by_a_metric_that_results_have() -> None:
    assert EXPERIMENT.metric == "validation.mAP"
    assert {EXPERIMENT.metric, *EXPERIMENT.columns.values()} <= set(METRICS)


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate", "out of memory"])
def test_a_gpu_without_memory_names_the_key_of_the_batch(message: str) -> None:
    line = one_line(torch.OutOfMemoryError(message))
    assert with_next_step(line, EXPERIMENT.advice) == (
        f"{line}; the GPU's memory is too small: lower stage2.batch, or use engine.precision=bf16"
    )
