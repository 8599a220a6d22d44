"""Why a trial ended badly, in one line, and what to do about it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.base.files import tail
from harness.runs.failures import LOST_RANK

TAIL_BYTES = 8192
"""How much of the end of a job's log is read."""

NEXT_STEPS = {
    r"OutOfMemoryError|CUDA out of memory": (
        "the GPU's memory is too small: lower the batch, or use engine.precision=bf16"
    ),
    r"OUT_OF_MEMORY|oom.?kill|MemoryError|Cannot allocate memory|DefaultCPUAllocator": (
        "ask for more memory (resources.memory), or lower the batch"
    ),
    r"ModuleNotFoundError|ImportError|cannot be imported": (
        "the job's Python lacks it: name the right one (slurm.python), or load it (slurm.setup)"
    ),
    r"No space left|[Qq]uota exceeded|no room": (
        "make room; the same command goes on from the last checkpoint"
    ),
    r"Read-only file system|Permission denied": (
        "let the nodes write to the run folder (run.runs), then give the same command"
    ),
    r"NODE_FAIL|BOOT_FAIL": (
        "the node was lost; the same command goes on from the last checkpoint (slurm.exclude=NODE "
        "leaves the node out)"
    ),
    r"TIMEOUT|DUE TO TIME LIMIT": (
        "it was killed at its time limit before it had saved: send the signal earlier "
        "(slurm.signal_delay_s), or give it more time (resources.time)"
    ),
    r"PREEMPTED|DUE TO PREEMPTION": "the same command goes on from the last checkpoint",
    LOST_RANK: (
        "another rank was lost or hangs: see the logs of all ranks; the same command goes on from "
        "the last checkpoint"
    ),
}
"""What to do, by what a status, SLURM's accounting or a log says; the first that fits."""


def with_next_step(told: str, advice: Mapping[str, str] | None = None) -> str:
    """Return what went wrong and, where that is known, what to do about it.

    advice: the experiment's own next steps, looked at before NEXT_STEPS.
    """
    for pattern, step in [*(advice or {}).items(), *NEXT_STEPS.items()]:
        if re.search(pattern, told):
            return told if "(run.runs" in told else f"{told}; {step}"  # it has said so itself
    return told


def last_words(logs: Iterable[Path], about: str = "") -> list[str]:
    """Return the last line of the logs that tells a known cause and names `about`, else nothing."""
    for log in sorted(logs):
        for line in reversed(tail(log, TAIL_BYTES).splitlines()):
            if about in line and any(re.search(pattern, line) for pattern in NEXT_STEPS):
                return [line.strip()]
    return []
