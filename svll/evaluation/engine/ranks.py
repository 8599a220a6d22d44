"""Ranks that share one evaluation: each looks at its part of the gallery, and results are added.

What is exchanged are counts (whole numbers), exact scores of true matches, and the best few of each
query. None of them depends on who computed it, so any number of ranks gives the same digits.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Share:
    """This process is number `index` of `count` that evaluate together; alone, nothing is sent."""

    index: int = 0
    count: int = 1

    @staticmethod
    def of_this_rank() -> "Share":
        """The share of a process in `torch.distributed`, or of one that is alone."""
        from harness.training import ranks  # torch: not for a process that is alone with its files

        return Share(ranks.rank(), ranks.world_size())

    def span(self, total: int) -> tuple[int, int]:
        """From where to where, of `total` things in order, this process looks."""
        return total * self.index // self.count, total * (self.index + 1) // self.count

    def add(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum of all processes' arrays."""
        return self._reduced(values, "SUM")

    def largest(self, values: NDArray[Any]) -> NDArray[Any]:
        """The elementwise maximum of all processes' arrays."""
        return self._reduced(values, "MAX")

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """All processes' arrays, one after another along a new first axis."""
        if self.count == 1:
            return values[None]
        import torch
        import torch.distributed as dist

        sent = _sent(values)
        parts = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(parts, sent)
        return np.stack([part.cpu().numpy() for part in parts])

    def _reduced(self, values: NDArray[Any], how: str) -> NDArray[Any]:
        if self.count == 1:
            return values
        import torch.distributed as dist

        sent = _sent(values)
        dist.all_reduce(sent, op=getattr(dist.ReduceOp, how))
        found: NDArray[Any] = sent.cpu().numpy()
        return found


def _sent(values: NDArray[Any]) -> Any:
    """A copy as a tensor where the processes can exchange it."""
    import torch
    import torch.distributed as dist

    from harness.training import ranks

    device = "cpu" if dist.get_backend() == "gloo" else ranks.device()
    return torch.from_numpy(np.array(values, order="C")).to(device)


@contextmanager
def join_ranks(*, encoding: bool) -> Iterator[Share]:
    """Join the processes that `torchrun` started with this one; alone without them.

    With `encoding`, they are set up for running a model, too.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
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
    finally:
        dist.destroy_process_group()
