"""What `make gpu` checks: its parts, and how the checks of a part are carried out.

A check is a function from the extent to findings. One that raises is a failed finding with its
message, and the others go on. Each part runs in a separate process (`python -m tests.gpu.checks
PART FILE`), since a GPU that met an error serves its process no longer.
"""

import importlib
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.base.errors import UserError

if TYPE_CHECKING:  # torch: the command itself starts without
    from tests.benchmarks.evaluation import Size
    from tests.benchmarks.sizes import Sizes


class Part(NamedTuple):
    """Checks that run in one process."""

    module: str
    limit_s: float
    """How long they may take where all parts run. All but the last are 8 minutes together."""


PARTS = {
    "machine": Part("checks_machine", 20), "decoders": Part("checks_pixels", 25),
    "views": Part("checks_pixels", 25), "ranking": Part("checks_ranking", 50),
    "training": Part("checks_training", 75), "tests": Part("checks_machine", 75),
    "bench": Part("checks_speed", 210),  # of which compiling takes a minute or two
    "ranks": Part("checks_ranks", 200),  # only where there are two GPUs
}
"""In the order in which they run."""
UNUSABLE = "torch can use the gpu"
"""The name of a finding with which nothing else can be checked."""
RUNS = ("fp32", "cpu"), ("bf16", "cpu"), ("fp16", "cpu"), ("fp32", "auto")
"""Tiny runs: their engine.precision, and data.device, where views are made."""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    name: str
    passed: bool | None
    """None: it was not checked, and `why` says why."""
    found: str = ""
    why: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Extent:
    """How much is checked; by default all that a real GPU is for."""

    sizes: "Sizes | None" = None
    """Of the benchmarks; None: those for the GPU."""
    ranked: "Size | None" = None
    """Of the ranking; None: Market-1501's."""
    images: int = 256
    """Files whose views are compared."""
    settings: tuple[str, ...] = ()
    """Of the tiny run, added to its recipe."""
    runs: tuple[tuple[str, str], ...] = RUNS
    tests: tuple[str, ...] | None = None
    """What pytest gets; None: the files with tests that are marked `gpu`."""
    is_timed: bool = True
    """Whether times mean something, so that a row may fail for being slow."""


Check = Callable[[Extent], Iterable[Finding]]


def findings(part: str, extent: Extent) -> Iterator[Finding]:
    """Carry out the checks of a part and yield what they find."""
    checks: dict[str, tuple[Check, ...]] = importlib.import_module(
        f"tests.gpu.{PARTS[part].module}"
    ).CHECKS
    for check in (torch_can_use_the_gpu, *checks[part]):
        started = time.perf_counter()
        try:
            for finding in check(extent):
                yield _placed(finding, part, started)
                started = time.perf_counter()
        except Exception as error:  # whatever a GPU does to a check, the others say more
            traceback.print_exc()
            yield _placed(failed(check, error), part, started)
            if check is torch_can_use_the_gpu:
                return


def torch_can_use_the_gpu(_: Extent) -> Iterator[Finding]:
    """Raise what the project says where torch cannot use the GPU; else every check would pass, on
    the CPU."""
    import torch

    from harness.training import ranks

    if not torch.cuda.is_available():
        ranks.init_ranks()  # raises, where this process was given a GPU
        raise RuntimeError(ranks.idle_gpus() or "torch finds no GPU")
    yield from ()


def failed(check: Check, error: Exception) -> Finding:
    """Return the finding of a check that raised."""
    said = (str(error).strip().splitlines() or [""])[0]
    why = said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"
    return Finding(check.__name__.replace("_", " "), False, why=why)


def _placed(finding: Finding, part: str, started: float) -> Finding:
    """Return a finding with its part and time, and None for numbers that JSON does not have."""
    numbers = {key: None if isinstance(value, float) and not math.isfinite(value) else value
               for key, value in finding.numbers.items()}
    taken = round(time.perf_counter() - started, 3)
    return replace(finding, numbers=numbers, part=part, seconds=taken)


def main(part: str, file: str) -> None:
    """Write the findings of a part to a file, a line of JSON each, as they come."""
    with Path(file).open("a", encoding="utf-8") as lines:
        for finding in findings(part, Extent()):
            print(json.dumps(asdict(finding)), file=lines, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
