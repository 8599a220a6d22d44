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

from harness.engine import free_port
from tests.benchmarks.timing import Row

COUNT = 2
IMAGES = 4
"""Of a rank, at a step."""
SPLIT = 4
"""Ranks between which ZeRO splits; one image each, so that most of the memory is the model's."""
REPEATS = 3


def measure() -> Iterator[Row]:
    """Yield the row of speed, and one for each ZeRO stage."""
    # in turns, twice: a busy machine slows both
    taken: dict[int, list[list[float]]] = {1: [], COUNT: []}
    sent: list[float] = []
    for _ in range(2):
        for count in (1, COUNT):
            told = _run(count, IMAGES)
            taken[count].append(told["steps"])
            sent += told["sent"] if count > 1 else []
    alone, together = (
        [s / IMAGES for steps in taken[count] for s in steps] for count in (1, COUNT)
    )
    ours, baseline = statistics.median(together), statistics.median(alone)
    yield Row(
        f"stage-2 step, {COUNT} ranks of one core", "s/image and core", ours, baseline, None,
        note=f"images/s per core: {baseline / ours:.0%} of one rank's; gradients take "
             f"{statistics.median(sent):.2f} s of {ours * IMAGES:.1f} s",
        spread=(max(together) - min(together)) / 2 / ours,
        baseline_spread=(max(alone) - min(alone)) / 2 / baseline,
    )
    for zero in (0, 1, 2):
        told = _run(SPLIT, 1, zero)
        yield Row(
            f"{SPLIT} ranks, one image each, ZeRO {zero}", "s/step",
            statistics.median(told["steps"]), None, None, told["memory_mb"][0],
            note="memory: all that a rank holds at its peak",
        )


def _run(count: int, images: int, zero: int = 0) -> dict[str, list[float]]:
    """Return what the first of `count` ranks has measured."""
    port = str(free_port())
    cores = sorted(os.sched_getaffinity(0))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.ranks", str(images), str(zero)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
                "CORE": str(cores[rank % len(cores)]),
            },
        )
        for rank in range(count)
    ]
    told = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return json.loads(told[0][0].splitlines()[-1])


def _rank(images: int, zero: int) -> None:
    """Be one rank: print the seconds of some steps, and of sending gradients."""
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
    steps = []
    for _ in range(REPEATS):
        engine.barrier()
        steps.append(seconds(step))
    memory = [1000 * engine.peak_memory_gb()]
    numbers = torch.zeros(sum(p.numel() for p in objective.parameters() if p.requires_grad))
    sent = [
        seconds(lambda: torch.distributed.all_reduce(numbers)) for _ in range(REPEATS)
    ] if engine.world_size() > 1 else []
    if engine.rank() == 0:
        print(json.dumps({"steps": steps, "sent": sent, "memory_mb": memory}))
    trained.destroy()


if __name__ == "__main__":
    _rank(*map(int, sys.argv[1:]))
