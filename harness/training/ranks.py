"""The ranks of a run: how they are set up, which device each uses, and the collectives we need.

Every rank computes the loss of the global batch from rows gathered with gradient. The gather's
backward sums over the ranks and DeepSpeed averages, so gradients equal those of one rank (the scale
is 1: a gathered row's gradient is summed W times, then divided by W).
"""

import atexit
import logging
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.base.machine import machine_gpus, visible_gpus
from harness.base.network import free_port

log = logging.getLogger(__name__)


def init_ranks(timeout_minutes: float = 30.0) -> None:
    """Join the other ranks of this run (gloo on CPU, NCCL on GPU); once per process.

    A collective that waits longer than the time-out for some rank fails. Rank and world size come
    from RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; without them this process is the
    only rank, at a port that is free now and that no process it starts gets to know.
    """
    if dist.is_initialized():
        return
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = {name: value for name, value in own.items() if name not in os.environ}
    os.environ.update(own)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    set_gpu()
    deepspeed = import_deepspeed()
    deepspeed.init_distributed(
        auto_mpi_discovery=False, verbose=False, timeout=timedelta(minutes=timeout_minutes)
    )
    for name in own:
        del os.environ[name]
    if rank() == 0 and (told := idle_gpus()):
        log.warning("%s", told)
    if not torch.cuda.is_available() and world_size() > 1:
        atexit.register(_let_go)


def set_gpu() -> None:
    """Have this rank use a GPU that no other rank of this machine uses, where there are enough."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def idle_gpus() -> str:
    """Say which GPUs of this machine its ranks leave idle, and why; "" when there are none."""
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", max(1, world_size() // nodes)))
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if ranks >= count:
            return ""
        return (
            f"this run leaves {count - ranks} of {count} GPUs idle, as each rank uses one: start "
            f"{count} ranks (torchrun --nproc-per-node={count}, in a sweep resources.gpus={count})"
        )
    there = len(machine_gpus())
    if not there:
        return ""
    why = "CUDA_VISIBLE_DEVICES hides them (resources.gpus=0 does so)"
    if visible_gpus():
        why = "torch cannot use them; python -c 'import torch; torch.cuda.init()' says why"
    idle = "1 GPU is" if there == 1 else f"{there} GPUs are"
    return f"Training on the CPU; {idle} idle: {why}"


def _let_go() -> None:
    """Let gloo's threads drop the tensors of the last collective before Python ends.

    One that is about to, and finds Python ending, aborts the process: in most runs of four ranks
    on two cores that ended right after a collective, one or two did. Leaving the group first does
    not help.
    """
    time.sleep(0.1)  # without Python's lock, which is what they wait for


def import_deepspeed() -> Any:
    """Import DeepSpeed, quiet and without compiling an op for shared memory on CPU (36 s)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    ops = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(ops, dict):
        ops["deepspeed_shm_comm"] = False
    return deepspeed


def be_repeatable() -> None:
    """Have a CPU compute the same every time.

    On a GPU this would cost speed; there, runs agree to rounding.
    """
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # torch would also fill memory that is about to be written, for a tenth of stage 1
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def has_fast_bf16() -> bool:
    """Return whether this rank's device computes in bf16; other CPUs imitate it, 80 times slower.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with suppress(OSError):
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(words))
    return True  # not known: nothing is said


def device() -> torch.device:
    """Return the device of this rank: its GPU where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else (
        torch.device("cpu")
    )


def rank() -> int:
    """Return this process' rank, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def forget_peak() -> None:
    """Have `peak_memory_gb` tell the most that is held from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # not Linux: it stays the most since the process began
        control = os.open("/proc/self/clear_refs", os.O_WRONLY)
        os.write(control, b"5")
        os.close(control)


def peak_memory_gb() -> float:
    """Return the most memory that this rank has held: of its GPU, else of its process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; every rank must ask."""
    return bool(largest(int(flag)))


def largest(value: int) -> int:
    """Return the largest of what the ranks say; every rank must ask."""
    if world_size() == 1:
        return value
    vote = torch.tensor([value], device=device())
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return int(vote.item())


@contextmanager
def leader_first() -> Iterator[bool]:
    """Run the body on rank 0 alone while the others wait; gives whether this rank is to act.

    A failure of rank 0 is raised on every rank, so that nobody waits for it.
    """
    failure: list[Any] = [None]
    caught: BaseException | None = None
    try:
        yield rank() == 0
    except BaseException as error:
        caught = error
        failure = [f"{type(error).__name__}: {error}"]
    if world_size() > 1:
        dist.broadcast_object_list(failure, src=0)
    if caught is not None:
        raise caught
    if failure[0] is not None:
        raise RuntimeError(f"rank 0 failed: {failure[0]}")


def from_leader(value: Any) -> Any:
    """Return rank 0's value on every rank; it travels as a pickle between processes of one run."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, one below the other; gradients are summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # a copy: autograd may hand this very tensor to others as well
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = rank() * ctx.count
        return total[start : start + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks [W n, ...] given n on each, with gradient; in rank order."""
    return rows if world_size() == 1 else _GatherRows.apply(rows)


def shard(count: int) -> slice:
    """Return which of `count` things are this rank's, in contiguous shares as equal as can be."""
    size, rest = divmod(count, world_size())
    start = rank() * size + min(rank(), rest)
    return slice(start, start + size + (rank() < rest))


def padded_shard(count: int) -> Tensor:
    """Return this rank's share of indices 0..count-1, equally many on each rank.

    The last ones repeat the final index; cut gathered rows back to `count`.
    """
    size = -(-count // world_size())
    first = rank() * size
    return torch.arange(first, first + size).clamp(max=count - 1)
