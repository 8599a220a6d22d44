"""What a run says: its plan at the start, and what to lower for a full GPU."""

import pytest
import torch

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.sources import parse_overrides
from svll.config import Config
from svll.experiment import _memory_of, _plan


def test_a_full_gpu_is_reported_with_what_to_lower() -> None:
    message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free."
    with pytest.raises(UserError) as caught, _memory_of("stage 2", "stage2.batch"):
        raise torch.OutOfMemoryError(message)
    assert str(caught.value) == (
        "stage 2: the GPU's memory is full (Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free); "
        "lower stage2.batch"
    )
    with pytest.raises(RuntimeError, match="another fault"), _memory_of("stage 2", "stage2.batch"):
        raise RuntimeError("another fault")


def test_the_plan_of_a_run_names_its_data_model_stages_and_device() -> None:
    words = ("data.train=[market1501,msmt17]", "data.test=[dukemtmc]", "data.validation=0.25",
             "stage1.epochs=1", "stage2.epochs=60", "stage2.batch=64", "seed=3")
    lines = list(_plan(build(Config, parse_overrides(words, text_fields(Config)))))
    assert lines[0] == ("data: train on market1501+msmt17, 25% of the identities for validation; "
                        "test on dukemtmc")
    assert lines[1] == "model: ViT-B-16-quickgelu, weights: openai, 256 x 128 pixels, seed 3"
    assert lines[2].startswith("stage 1: 1 epoch, batch 256, lr 0.00035, ")
    assert lines[3].startswith("stage 2: 60 epochs, batch 64, ")
    assert lines[4] == "on 1 rank: cpu, bf16"
