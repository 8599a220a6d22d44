"""A step of stage 2 on two ranks of one core each, against one rank on one core.

Each rank has as many images as the one alone, so that equal times are equal work per core. ViT-B/16
at 256 x 128, stride 12, three views; DeepSpeed as in training. What the ranks say to each other is
timed apart: all gradients once, by the same means. Then what each ZeRO stage leaves a rank to hold.
On GPUs in bf16, one for each rank; rows for which there are too few are left out.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from harness.training import ranks
from svll import stage2
from tests.benchmarks.sizes import Sizes, gpu_precision, here
from tests.benchmarks.stage2 import made, started
from tests.benchmarks.timing import Row, row, seconds, times
from tests.commands import as_rank, free_port

COUNT = 2
SPLIT = 4
"""Ranks between which ZeRO splits; one image each, so that most of the memory is the model's."""
REPEATS = 3
TURNS = 8
"""Steps of one rank, and of two, that are compared."""


def measure(sizes: Sizes | None = None) -> Iterator[Row]:
    """Yield the row of speed, and one for each ZeRO stage, where each rank has a device."""
    if _fit(COUNT):
        yield _side_by_side((sizes or here()).fewer)
    for zero in (0, 1, 2) if _fit(SPLIT) else ():
        with _ranks(SPLIT, 1, zero) as group:
            taken = [group.step() for _ in range(REPEATS)]
            memory_mb = group.end()["memory_mb"]
        yield row(
            f"{SPLIT} ranks, one image each, ZeRO {zero}", "s/step", times(taken, memory_mb),
            note="memory: all that each rank holds at its peak",
        )


def _fit(count: int) -> bool:
    """Return whether so many ranks have a device each: a core may be shared, a GPU may not."""
    return not torch.cuda.is_available() or torch.cuda.device_count() >= count


def _side_by_side(images: int) -> Row:
    """Time steps of one rank and of more; all live at once, so that a busy machine slows both."""
    with _ranks(1, images) as one, _ranks(COUNT, images) as more:
        taken = [(one.step(), more.step()) for _ in range(TURNS)]
        end, other_end = more.end(), one.end()
    alone, together = (list(each) for each in zip(*taken, strict=True))
    shares = [a / b for a, b in taken]
    step_s, place = statistics.median(together), "GPU" if torch.cuda.is_available() else "core"
    return row(
        f"stage-2 step, {COUNT} ranks of one {place}", f"s/image and {place}",
        times(together, end["memory_mb"]), times(alone, other_end["memory_mb"]), per=images,
        note=f"{min(shares):.2f} to {max(shares):.2f} x in {TURNS} turns; gradients sent alone "
             f"take {statistics.median(end['sent']):.2f} s, a step {step_s:.1f} s; "
             "memory: all that a rank holds at its peak",
        images_per_s=COUNT * images / step_s,
    )


@dataclass(frozen=True)
class _Ranks:
    """Processes that make a step whenever they are told to."""

    processes: list[subprocess.Popen[str]]

    def step(self) -> float:
        """Return the seconds of one step, of the rank that took longest."""
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # of one that has failed: told() says so
                process.stdin.write("step\n")
                process.stdin.flush()
        return max(told["step"] for told in self.told())

    def end(self) -> dict[str, Any]:
        """Return what the rank that held most tells when there are no more steps."""
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        return max(self.told(), key=lambda told: told["memory_mb"])

    def told(self) -> list[dict[str, Any]]:
        """Return what each rank tells next."""
        return [_told(process) for process in self.processes]


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):  # DeepSpeed writes there, too
            return json.loads(line)
    raise RuntimeError(f"a rank ended with status {process.wait()}; its errors are above")


@contextmanager
def _ranks(count: int, images: int, zero: int = 0) -> Iterator[_Ranks]:
    """Start `count` ranks of one core each; they end with the block, or with this process."""
    port = str(free_port())
    cores = sorted(os.sched_getaffinity(0))
    processes: list[subprocess.Popen[str]] = []
    try:
        for rank in range(count):
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.ranks", str(images), str(zero)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={
                    **os.environ, **as_rank(rank, count, port), "OMP_NUM_THREADS": "1",
                    "CORE": str(cores[rank % len(cores)]),
                },
            ))
        group = _Ranks(processes)
        group.told()  # they are ready: one step that does not count was made
        yield group
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            with suppress(BrokenPipeError), process:
                pass  # closes its pipes and waits for it


def _rank(images: int, zero: int) -> None:
    """Be one rank: for each line that is read make a step and print its seconds.

    After the last print the memory that was held at most, and the seconds of sending gradients.
    """
    if not torch.cuda.is_available():
        os.sched_setaffinity(0, {int(os.environ["CORE"])})
    ranks.init_ranks()
    objective, every = made(images * ranks.world_size(), here())
    own = slice(images * ranks.rank(), images * (ranks.rank() + 1))
    batch = stage2.ImageBatch(
        [view[own] for view in every.views], every.identities, every.camera[own], every.view[own],
    )
    step = started(objective, len(every.identities), gpu_precision(), zero)
    step(batch)
    ranks.forget_peak()
    _tell({"ready": True})
    for _ in sys.stdin:
        ranks.barrier()
        _tell({"step": seconds(lambda: step(batch))})
    memory_mb = 1000 * ranks.peak_memory_gb()
    count = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    sent = _sent(torch.zeros(count, device=ranks.device())) if ranks.world_size() > 1 else []
    _tell({"sent": sent, "memory_mb": memory_mb})


def _sent(numbers: torch.Tensor) -> list[float]:
    torch.distributed.all_reduce(numbers)
    taken = []
    for _ in range(REPEATS):
        ranks.barrier()
        taken.append(seconds(lambda: torch.distributed.all_reduce(numbers)))
    return taken


def _tell(told: dict[str, Any]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    _rank(*map(int, sys.argv[1:]))
