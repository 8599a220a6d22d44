"""DeepSpeed around a module: precision, ZeRO, accumulation and clipping."""

from types import SimpleNamespace
from typing import Any, Literal, Protocol

import torch
from torch import nn

from harness.base.errors import UserError
from harness.training import engine_state, ranks

Precision = Literal["bf16", "fp16", "fp32"]
BUCKET = 50_000_000
"""Most numbers in one of ZeRO's buckets, which are allocated at every step: with its default of
500 million a step of a small model took ten times as long."""

OVERLAPPED = 8
"""Buckets of a backward pass that sends gradients meanwhile."""


class EngineSettings(Protocol):
    """The experiment's settings of the engine."""

    precision: Precision
    zero: Literal[0, 1, 2]
    accumulation: int
    clipping: float


def sends_meanwhile(settings: EngineSettings) -> bool:
    """Return whether a bucket of gradients is sent while the backward pass computes the next one:
    by ZeRO, on GPUs, for which DeepSpeed has a second stream."""
    return settings.zero > 0 and ranks.world_size() > 1 and ranks.device().type == "cuda"


def start_engine(
    module: nn.Module, optimizer: torch.optim.Optimizer, batch: int, settings: EngineSettings
) -> Any:
    """Return a DeepSpeed engine around a module; `batch` counts a step's samples on all ranks.

    Trained weights stay fp32; bf16 and fp16 are autocast in the forward pass (fp16 with a gradient
    scaler). DeepSpeed's checkpoints are not used. Raises UserError for fp16 with ZeRO, and for an
    optimizer with state that checkpoints do not hold.
    """
    engine_state.check_saved(optimizer)
    if settings.precision == "fp16" and settings.zero:
        # on overflow DeepSpeed 0.19.8 skips the step before it updates its scaler
        raise UserError(f"engine.precision=fp16 does not go with engine.zero={settings.zero}: "
                        "after an overflow the scale is never lowered and nothing is trained; use "
                        "engine.precision=bf16 or engine.zero=0")
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    overlaps = sends_meanwhile(settings)
    parts = OVERLAPPED if overlaps else 1
    bucket = min(-(-trained // (1024 * parts)) * 1024, BUCKET)  # NCCL wants an even number
    config = {
        "train_micro_batch_size_per_gpu": max(1, batch // ranks.world_size()),
        "gradient_accumulation_steps": settings.accumulation,
        "gradient_clipping": settings.clipping,  # DeepSpeed's default is 1.0
        "zero_optimization": {
            "stage": settings.zero, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket,
            "overlap_comm": overlaps,
        },
        "zero_allow_untested_optimizer": True,  # torch's
        "torch_autocast": {
            "enabled": settings.precision != "fp32",
            "dtype": "float16" if settings.precision == "fp16" else "bfloat16",
            "lower_precision_safe_modules": [],  # none: gradients are averaged in fp32
        },
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the GPU twice a step
    }
    module.to(ranks.device())
    number = ranks.device().index  # else DeepSpeed takes LOCAL_RANK, of ranks with one GPU each too
    engine, *_ = ranks.import_deepspeed().initialize(
        args=None if number is None else SimpleNamespace(device_rank=number),
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine
