"""Why a trial failed, in one line, and what to do about it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.base.files import tail
from harness.runs.failures import LOST_RANK

TAIL_BYTES = 8192
"""How much of the end of a job's log is read."""
RESUMES = "the same command resumes from the last checkpoint"
NEXT_STEPS = {
    r"OutOfMemoryError|CUDA out of memory":
        "the GPU's memory is too small: lower the batch, or use engine.precision=bf16",
    r"OUT_OF_MEMORY|oom.?kill|MemoryError|Cannot allocate memory|DefaultCPUAllocator":
        "ask for more memory (resources.memory), or lower the batch",
    r"ModuleNotFoundError|ImportError|cannot be imported":
        "the job's Python lacks it: name the right one (slurm.python), or load it (slurm.setup)",
    r"No space left|[Qq]uota exceeded|no room": f"make room; {RESUMES}",
    r"Read-only file system|Permission denied":
        "let the nodes write to the run folder (run.runs), then give the same command",
    r"NODE_FAIL|BOOT_FAIL":
        f"the node was lost; {RESUMES} (slurm.exclude=NODE leaves the node out)",
    r"TIMEOUT|DUE TO TIME LIMIT":
        "it was killed at its time limit before it had saved: send the signal earlier "
        "(slurm.signal_delay_s), or give it more time (resources.time)",
    r"PREEMPTED|DUE TO PREEMPTION": RESUMES,
    LOST_RANK: f"another rank was lost or hangs: see the logs of all ranks; {RESUMES}",
}
"""What to do, by a pattern in a status, SLURM's accounting or a log; the first match counts."""


def with_next_step(error: str, advice: Mapping[str, str] | None = None) -> str:
    """Return an error's message, followed by what to do about it where that is known. advice: the
    experiment's own next steps, which come before NEXT_STEPS."""
    for pattern, step in [*(advice or {}).items(), *NEXT_STEPS.items()]:
        if re.search(pattern, error):
            return error if "(run.runs" in error else f"{error}; {step}"  # it names the step itself
    return error


def cause_in_logs(logs: Iterable[Path], about: str = "") -> str:
    """Return the last line of the logs that contains a known cause and `about`; "" for none."""
    for log in sorted(logs):
        for line in reversed(tail(log, TAIL_BYTES).splitlines()):
            if about in line and any(re.search(pattern, line) for pattern in NEXT_STEPS):
                return line.strip()
    return ""
