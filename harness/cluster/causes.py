"""Why a trial failed, in one line, and what to do about it."""

import re
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from harness.base.files import tail
from harness.runs.failures import LOST_RANK

TAIL_BYTES = 8192
"""How much of the end of a job's log is read."""
QUOTED_LINES = 3
"""How many lines of an unexplained death's output are quoted."""
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
    r"exit status 0:53":
        "the node does not see the folder, or cannot write to it: name one that all nodes share "
        "(run.runs)",
    r"execve\(\)|command not found|exit status 12[67]:0":
        "a program is not on the node: name the right Python (slurm.python), or load what is "
        "missing (slurm.setup)",
    LOST_RANK: f"another rank was lost or hangs: see the logs of all ranks; {RESUMES}",
}
"""What to do, by a pattern in a status, SLURM's accounting or a log; the first match counts."""
NOT_BEGUN = "the trial had not begun: --doctor checks what jobs need"
EXIT_WORDS = {
    "0:53": "SLURM could not open the job's output file", "0:125": "out of memory",
    "2:0": "often a file or program that is missing", "126:0": "a program cannot be executed",
    "127:0": "a program is missing",
}
"""What exit statuses of SLURM (exit code:signal) mean; others are explained by their signal."""


def with_next_step(
    error: str, advice: Mapping[str, str] | None = None, *, begun: bool = True
) -> str:
    """Return an error's message, followed by what to do about it where that is known. advice: the
    experiment's own next steps, which come before NEXT_STEPS. begun: whether the trial had."""
    is_puzzling = not begun and re.search(r"FAILED \(|output", error)  # not cancelled or preempted
    end = f"; {NOT_BEGUN}" if is_puzzling else ""
    for pattern, step in [*(advice or {}).items(), *NEXT_STEPS.items()]:
        if re.search(pattern, error):
            # the message may name the step itself
            return f"{error}{end}" if "(run.runs" in error else f"{error}; {step}{end}"
    return f"{error}{end}"


def exit_status(status: str) -> str:
    """Return an exit status as SLURM prints it (exit code:signal), with its meaning if known."""
    code, _, number = status.partition(":")
    words = EXIT_WORDS.get(status, "")
    with suppress(ValueError):  # not a number, or not a signal
        words = words or f"killed by {signal.Signals(int(number) or int(code) - 128).name}"
    return f"exit status {status}" + (f": {words}" if words else "")


def cause_in_logs(logs: Iterable[Path], about: str = "") -> str:
    """Return the last line of the logs that contains a known cause and `about`, with its file; ""
    for none."""
    for log in sorted(logs):
        for line in reversed(tail(log, TAIL_BYTES).splitlines()):
            if about in line and any(re.search(pattern, line) for pattern in NEXT_STEPS):
                return f"{line.strip()} ({log})"
    return ""


def end_of_output(folder: Path, job: str) -> str:
    """Return the last lines that a job wrote, with their file, or that there are none. Its batch
    script, SLURM and its first rank write to the same files."""
    files = [folder / f"{job}_0_log.{kind}" for kind in ("err", "out")]
    for file in files:
        if lines := [line.strip() for line in tail(file, TAIL_BYTES).splitlines() if line.strip()]:
            return f"its output ends with: {' | '.join(lines[-QUOTED_LINES:])} ({file})"
    if there := [file for file in files if file.exists()]:
        return f"it wrote nothing ({there[0]})"
    return f"no output of it is in {folder}"
