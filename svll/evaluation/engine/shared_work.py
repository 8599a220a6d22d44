"""Ranks that share one evaluation: each compares with its part of the gallery; results are added.

Ranks exchange counts (integers), exact scores of true matches, and the best few rows of each query.
None depends on the rank that computed it, so any number of ranks gives the same digits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.runs import peers, stopping

RANKING = "ranking features"
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """This process is number `index` of `count` that evaluate together; alone, nothing is sent."""

    index: int = 0
    count: int = 1

    @staticmethod
    def of_this_rank() -> "Share":
        """Return the share of a rank of `torch.distributed`, or of a single process."""
        from harness.training import ranks  # torch: not needed by one process with feature files

        return Share(ranks.rank(), ranks.world_size())

    def span(self, total: int) -> tuple[int, int]:
        """Return the first and the end of this process's part of `total` items in order."""
        return total * self.index // self.count, total * (self.index + 1) // self.count

    def add(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of all processes' arrays."""
        return self._reduced(values, "SUM")

    def largest(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the elementwise maximum of all processes' arrays."""
        return self._reduced(values, "MAX")

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return all processes' arrays, stacked along a new first axis."""
        if self.count == 1:
            return values[None]
        import torch
        import torch.distributed as dist

        sent = _sent(values)
        parts = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(parts, sent)
        return np.stack([part.numpy() for part in parts])

    def check_stop(self) -> None:
        """Raise Stopped in every process if any was asked to stop; each must call this."""
        if self._largest(int(stopping.stop_requested())):
            raise stopping.Stopped(f"on request while {RANKING}")

    def stoppable(self, items: stopping.Counted[T]) -> Iterator[T]:
        """Yield this process's items; `check_stop` before each. Every process must go through all
        of its items, whose numbers may differ."""
        return stopping.stoppable(items, RANKING, self._largest)

    def _largest(self, number: int) -> int:
        return int(self.largest(np.array([number]))[0])

    def _reduced(self, values: NDArray[Any], operation: str) -> NDArray[Any]:
        if self.count == 1:
            return values
        import torch.distributed as dist

        sent = _sent(values)
        dist.all_reduce(sent, op=getattr(dist.ReduceOp, operation))
        return np.asarray(sent)


def _sent(values: NDArray[Any]) -> Any:
    """Copy an array to a tensor of the CPU, which gloo exchanges."""
    import torch

    return torch.from_numpy(np.array(values, order="C"))


@contextmanager
def join_ranks(*, encoding: bool) -> Iterator[Share]:
    """Join the processes of `torchrun`, ready to run a model if `encoding`; else stay alone."""
    if peers.own_place()[1] == 1:
        yield Share()
        return
    import torch.distributed as dist

    from harness.training import ranks

    if encoding:
        ranks.init_ranks()
    else:
        dist.init_process_group("gloo")
        ranks.set_gpu()
    try:
        yield Share.of_this_rank()
    except BaseException:
        peers.note_failure()
        raise
    finally:
        ranks.leave()
