"""A GPU that is not there: real code runs on it, with real numbers, and its mistakes are found.

    with emulated(devices=1) as gpu:        # in a test: the fixture `gpu`
        ...                                 # torch.cuda.is_available() is true
    gpu.waits                               # each time the host waited for the GPU, with its line

Tensors say that they are on a GPU while their memory is the CPU's, so results can be compared with
the CPU's bit for bit. What fails on a GPU fails here, with an error like CUDA's:

- an operation on tensors of both kinds (numbers of the CPU, and its indices, are taken as there);
- `.numpy()` and `np.asarray` of a GPU's tensor; a generator of the CPU for numbers on the GPU;
- the number of a GPU that this process does not see; a tensor of the CPU in an NCCL collective;
- a copy to the CPU that nobody waited for holds NaN or 0 until somebody does;
- pinned memory that is overwritten before the GPU has read it.

It does not show kernels' own limits and rounding, races between streams, NCCL's behaviour, memory.
DALI's pipelines run on the CPU; to have the same pixels as a run on the CPU, make the views there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo  # it makes tables of torch.cuda's functions, so before they change
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.gpu.emulator import cuda
from tests.gpu.emulator.state import INSTALLED, Emulator, GpuError
from tests.gpu.emulator.tensors import Mode

__all__ = ["Emulator", "GpuError", "emulated"]


@contextmanager
def emulated(devices: int = 1) -> Iterator[Emulator]:
    """Give this process so many GPUs within the body; process groups are left on both sides."""
    assert not INSTALLED, "there is an emulator"
    emulator = Emulator(devices)
    is_repeatable = torch.are_deterministic_algorithms_enabled()

    def count(*_: Any) -> None:
        emulator.step += 1

    with pytest.MonkeyPatch.context() as patch:
        cuda.leave_ranks()
        cuda.forget_devices()
        INSTALLED.append(emulator)
        hook = register_optimizer_step_post_hook(count)
        try:
            for install in (cuda.patch_cuda, cuda.patch_torch, cuda.patch_ranks, cuda.patch_dali):
                install(emulator, patch)
            patch.setenv("DS_ACCELERATOR", "cuda")
            with Mode():
                yield emulator
        finally:
            hook.remove()
            cuda.leave_ranks()
            cuda.forget_devices()
            torch.use_deterministic_algorithms(is_repeatable)
            INSTALLED.clear()
