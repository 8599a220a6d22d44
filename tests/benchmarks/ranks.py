"""A step of stage 2 on two ranks of one core each, against one rank on one core.

Each rank has as many images as the one alone, so that equal times are equal work per core. ViT-B/16
at 256 x 128, stride 12, three views; DeepSpeed as in training. What the ranks say to each other is
timed apart: all gradients once, by the same means. Then what each ZeRO stage leaves a rank to hold.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.engine import free_port
from tests.benchmarks.timing import Row

COUNT = 2
IMAGES = 4
"""Of a rank, at a step."""
SPLIT = 4
"""Ranks between which ZeRO splits; one image each, so that most of the memory is the model's."""
REPEATS = 3
TURNS = 8
"""Steps of one rank, and of two, that are compared."""


def measure() -> Iterator[Row]:
    """Yield the row of speed, and one for each ZeRO stage."""
    alone, together, sent = _in_turns()
    ours, baseline = statistics.median(together), statistics.median(alone)
    shares = [one / other for one, other in zip(alone, together, strict=True)]
    yield Row(
        f"stage-2 step, {COUNT} ranks of one core", "s/image and core", ours / IMAGES,
        baseline / IMAGES, None,
        note=f"images/s per core: {statistics.median(shares):.0%} of one rank's, "
             f"{min(shares):.0%} to {max(shares):.0%} in {TURNS} turns; gradients take "
             f"{statistics.median(sent):.2f} s of {ours:.1f} s",
        spread=(max(together) - min(together)) / 2 / ours,
        baseline_spread=(max(alone) - min(alone)) / 2 / baseline,
    )
    for zero in (0, 1, 2):
        with _ranks(SPLIT, 1, zero) as ranks:
            taken = [ranks.step() for _ in range(REPEATS)]
            memory = ranks.end()["memory_mb"]
        yield Row(
            f"{SPLIT} ranks, one image each, ZeRO {zero}", "s/step", statistics.median(taken),
            None, None, memory, note="memory: all that a rank holds at its peak",
        )


def _in_turns() -> tuple[list[float], list[float], list[float]]:
    """Return seconds of steps of one rank, of steps of two, and of sending their gradients.

    All live at once and step in turns, so that a machine that slows down slows both.
    """
    with _ranks(1, IMAGES) as one, _ranks(COUNT, IMAGES) as two:
        taken = [(one.step(), two.step()) for _ in range(TURNS)]
        sent = two.end()["sent"]
    return [alone for alone, _ in taken], [together for _, together in taken], sent


@dataclass(frozen=True)
class _Ranks:
    """Processes that make a step whenever they are told to."""

    processes: list[subprocess.Popen[str]]

    def step(self) -> float:
        """Return the seconds of one step, of the rank that took longest."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
        return max(told["step"] for told in self.told())

    def end(self) -> dict[str, Any]:
        """Return what the rank that held most tells when there are no more steps."""
        for process in self.processes:
            assert process.stdin is not None
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
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.ranks", str(images), str(zero)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
                "CORE": str(cores[rank % len(cores)]),
            },
        )
        for rank in range(count)
    ]
    try:
        ranks = _Ranks(processes)
        ranks.told()  # they are ready: one step that does not count was made
        yield ranks
    finally:
        for process in processes:
            with process:
                process.kill()


def _rank(images: int, zero: int) -> None:
    """Be one rank: for each line that is read make a step and print its seconds.

    After the last print the memory that was held at most, and the seconds of sending gradients.
    """
    os.sched_setaffinity(0, {int(os.environ["CORE"])})
    import torch

    from harness import engine
    from svll import stage2
    from tests.benchmarks.stage2 import made
    from tests.benchmarks.timing import seconds

    engine.init_ranks()
    objective, every = made(images * engine.world_size())
    own = slice(images * engine.rank(), images * (engine.rank() + 1))
    batch = stage2.ImageBatch(
        [view[own] for view in every.views], every.identities[own], every.camera[own],
        every.view[own],
    )
    weights = stage2.loss_weights(objective.config)
    trained = engine.start_engine(
        objective, stage2.optimizer(objective, objective.config), batch=len(every.identities),
        precision="fp32", zero=zero, accumulation=1, clipping=0.0,
    )

    def step() -> None:
        losses = trained(batch)
        trained.backward(torch.stack([weights[n] * loss for n, loss in losses.items()]).sum())
        trained.step()

    step()
    engine.forget_peak()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        engine.barrier()
        print(json.dumps({"step": seconds(step)}), flush=True)
    memory = 1000 * engine.peak_memory_gb()
    numbers = torch.zeros(sum(p.numel() for p in objective.parameters() if p.requires_grad))
    sent = [
        seconds(lambda: torch.distributed.all_reduce(numbers)) for _ in range(REPEATS)
    ] if engine.world_size() > 1 else []
    print(json.dumps({"sent": sent, "memory_mb": memory}), flush=True)
    trained.destroy()


if __name__ == "__main__":
    _rank(*map(int, sys.argv[1:]))
