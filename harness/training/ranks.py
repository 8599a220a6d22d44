"""The ranks of a run: their start, their devices and their collectives.

Every rank computes the loss of the global batch from rows gathered with gradient. The gather's
backward sums over the W ranks and DeepSpeed divides by W, so gradients equal those of one rank.
"""

import atexit
import faulthandler
import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from harness.base.caches import quick_imports
from harness.base.errors import Hindered, UserError
from harness.base.machine import (
    allotted_gpus,
    cuda_fault,
    cuda_versions,
    machine_gpus,
    visible_gpus,
)
from harness.runs import peers, stopping
from harness.runs.stopping import Stopped

log = logging.getLogger(__name__)
T = TypeVar("T")

ON_CPU = "CUDA_VISIBLE_DEVICES= (in a sweep resources.gpus=0) computes on the CPU"
NCCL_LATER = timedelta(minutes=2)
"""How much later than gloo NCCL gives up, as it ends the process and not only the collective."""
LEAVE_S = 60.0
"""How long NCCL's end may take once all ranks are there; then the process is ended."""
_timeout = timedelta(minutes=30)


def init_ranks(timeout_minutes: float = 30.0) -> None:
    """Join the other ranks of this run, once per process.

    Tensors of a GPU travel by NCCL. All others, such as votes, travel by gloo, which neither waits
    for the GPU nor ends the process when a rank is lost. A collective fails when it waits for a
    rank longer than the timeout. RANK, WORLD_SIZE and LOCAL_RANK name the ranks; without them this
    process is the only one. They meet at MASTER_ADDR and MASTER_PORT; without a port rank 0 takes a
    free one and tells those that are connected with it (`harness.runs.peers`). Raises UserError for
    variables that do not fit together and for ranks that share a GPU, Hindered as `check_gpus`.
    """
    global _timeout
    if dist.is_initialized():
        return
    own, world = peers.own_place()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    check_gpus()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    set_gpu()
    if on_gpu:
        try_gpu()
        peers.end_at_once()  # NCCL neither tells the main thread of a lost rank nor lets it live
    deepspeed = import_deepspeed()
    _timeout = timeout = timedelta(minutes=timeout_minutes)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=_store(own, world, timeout), rank=own,
        world_size=world, timeout=timeout,
    )
    atexit.register(leave)
    if world > 1:
        _check_together(on_gpu)
    if on_gpu and world > 1:  # NCCL connects now, and not in the first step
        dist.get_backend_impl(device=device()).set_timeout(timeout + NCCL_LATER)
        dist.all_reduce(torch.zeros(1, device=device()))
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timeout)
    if rank() == 0 and (message := idle_gpus()):
        log.warning("%s", message)


def _store(own: int, world: int, timeout: timedelta) -> dist.Store | None:
    """Return the store through which the ranks join; None: the one at MASTER_PORT."""
    if world == 1:
        return dist.HashStore()  # no port, no network
    if "MASTER_PORT" in os.environ:  # torchrun's, with its own store
        return None
    if not peers.is_joined():
        raise UserError("WORLD_SIZE and RANK are set and MASTER_PORT is not; unset them to run in "
                        "one process, or start the ranks with torchrun")
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    kept: list[dist.TCPStore] = []

    def listen() -> int:
        kept.append(dist.TCPStore(host, 0, world, is_master=True, timeout=timeout,
                                  wait_for_workers=False))
        return kept[0].port

    port = peers.agree("store", listen)
    return kept[0] if kept else dist.TCPStore(host, port, world, timeout=timeout,
                                              wait_for_workers=False)


def check_gpus() -> None:
    """Raise Hindered when this process was given GPUs and torch cannot use them."""
    given = allotted_gpus()
    if not given or torch.cuda.is_available():
        return
    reason = cuda_fault()
    if not reason:
        try:
            torch.cuda.init()
            reason = "torch finds none"
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
        reason = f"{reason} ({cuda_versions()})"
    raise Hindered(f"{given}, but torch cannot use a GPU: {reason}; {ON_CPU}")


def try_gpu() -> None:
    """Compute on this rank's GPU. Raises Hindered when that fails: the GPU is too old for torch,
    another process has it for itself, or it is broken."""
    try:
        torch.ones(1, device=device()).add_(1).item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Hindered(f"{device()} cannot compute: {reason} ({cuda_versions()}); "
                       f"{ON_CPU}") from None


def _check_together(on_gpu: bool) -> None:
    """Raise UserError, on every rank, when only some have a GPU, or some share one."""
    own = str(torch.cuda.get_device_properties(device()).uuid) if on_gpu else ""
    every: list[Any] = [None] * world_size()
    dist.all_gather_object(every, (own, socket.gethostname()))
    without = [f"{r} on {host}" for r, (gpu, host) in enumerate(every) if not gpu]
    if 0 < len(without) < len(every):
        raise UserError(f"rank {', '.join(without)} has no GPU, the other ranks have: give each "
                        f"its own, or none a GPU; {ON_CPU}")
    for gpu, host in dict.fromkeys(every) if on_gpu else ():
        if len(sharing := [str(r) for r, one in enumerate(every) if one == (gpu, host)]) > 1:
            raise UserError(f"ranks {', '.join(sharing)} on {host} have one GPU ({gpu}), and each "
                            "needs its own: start no more ranks on a node than it has GPUs "
                            "(torchrun --nproc-per-node, resources.tasks), or give each rank one "
                            "(srun --gpus-per-task=1)")


def limit_waits(group: dist.ProcessGroup) -> None:
    """Apply the timeout of `init_ranks` to a group that a library has made, with torch's own."""
    dist.set_timeout(_timeout + NCCL_LATER, group)


def leave() -> None:
    """Leave the other ranks, at the latest when the process ends. NCCL, which would wait for a lost
    rank, is left only if all are there."""
    if not dist.is_initialized():
        return
    may_leave = not torch.cuda.is_available() or (not peers.has_failed() and _are_all_here())
    if world_size() > 1:
        # Gives gloo's threads, which wait for the GIL, time to drop the tensors of the last
        # collective. Dropping them later aborts the process (one or two of four ranks on two
        # cores), even with the process group destroyed.
        time.sleep(0.1)
    if may_leave:
        faulthandler.dump_traceback_later(LEAVE_S, exit=True)  # not Python: NCCL may hold the GIL
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


def _are_all_here() -> bool:
    """Wait for all ranks; return whether they came."""
    try:
        barrier()
    except RuntimeError:  # gloo's, as soon as a rank is gone
        return False
    return True


def set_gpu() -> None:
    """Select this rank's GPU: a separate one if the machine has enough."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def idle_gpus() -> str:
    """Return how many GPUs of this machine its ranks leave idle, and why; "" if none."""
    if torch.cuda.is_available():
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", max(1, world_size() // nodes)))
        count = torch.cuda.device_count()
        return "" if local >= count else (
            f"this run leaves {count - local} of {count} GPUs idle, as each rank uses one: start "
            f"{count} ranks (torchrun --nproc-per-node={count}, in a sweep resources.gpus={count})"
        )
    if not (count := len(machine_gpus())):
        return ""
    why = "CUDA_VISIBLE_DEVICES hides them (resources.gpus=0 does so)"
    if visible_gpus():
        why = cuda_fault() or "python -c 'import torch; torch.cuda.init()' says why"
    return f"Training on the CPU; {count} GPU{' is' if count == 1 else 's are'} idle: {why}"


def import_deepspeed() -> Any:
    """Import DeepSpeed, with little logging and without compiling its shared-memory op (36 s)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with quick_imports():
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # the import resets it
    ops = getattr(deepspeed.ops, "__compatible_ops__", None)
    if isinstance(ops, dict):
        ops["deepspeed_shm_comm"] = False
    return deepspeed


def be_repeatable() -> None:
    """Make computation on a CPU deterministic; GPUs stay fast, and agree up to rounding."""
    with quick_imports():  # torch imports its compiler here
        torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # filling uninitialised memory would cost up to a tenth of the training time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def has_fast_bf16() -> bool:
    """Return whether this rank's device computes in bf16; CPUs without it are 80 times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    with suppress(OSError):
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(words))
    return True  # unknown: no warning


def device() -> torch.device:
    """Return the device of this rank: its GPU if there is one, else the CPU."""
    on_gpu = torch.cuda.is_available()
    return torch.device(f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu")


def rank() -> int:
    """Return the rank of this process, 0 when it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def forget_peak() -> None:
    """Reset the peak that `peak_memory_gb` returns."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # not Linux: the peak stays that of the whole process
        control = os.open("/proc/self/clear_refs", os.O_WRONLY)
        os.write(control, b"5")
        os.close(control)


def peak_memory_gb() -> float:
    """Return this rank's peak memory: of its GPU, else of its process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def barrier() -> None:
    """Wait until every rank calls this."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; every rank must call this."""
    return bool(largest(int(flag)))


def largest(value: int) -> int:
    """Return the largest value of all ranks; every rank must call this."""
    if world_size() == 1:
        return value
    vote = torch.tensor([value])
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return int(vote.item())


def check_stop(doing: str) -> None:
    """Raise Stopped on every rank if any was asked to stop; every rank must call this. doing: what
    the message says, after "while"."""
    if any_rank(stopping.stop_requested()):
        raise Stopped(f"on request while {doing}")


def stoppable(items: stopping.Counted[T], doing: str) -> Iterator[T]:
    """Yield this rank's items; `check_stop` before each. Every rank must go through all of its
    items, whose numbers may differ."""
    return stopping.stoppable(items, doing, largest)


def at_once(doing: str, function: Callable[[], T]) -> T:
    """Call a function on every rank, which a stop ends at once (see `stopping.at_once`); Stopped is
    then raised on every rank. In the function no rank may wait for another."""
    found: list[T] = []
    with suppress(Stopped):
        found.append(stopping.at_once(doing, function))
    check_stop(doing)
    return found[0]


@contextmanager
def leader_first() -> Iterator[bool]:
    """Yield True on rank 0 and False elsewhere; the others wait until rank 0's body ends. A failure
    of rank 0 is raised on every rank, so that none waits forever; Stopped stays Stopped."""
    caught: BaseException | None = None
    try:
        yield rank() == 0
    except BaseException as error:
        caught = error
    is_plain = caught is None or isinstance(caught, Stopped)
    failure = from_leader(caught if is_plain else f"{type(caught).__name__}: {caught}")
    if caught is not None:
        raise caught
    if isinstance(failure, Stopped):
        raise failure
    if failure is not None:
        raise RuntimeError(f"rank 0 failed: {failure}")


def on_leader(function: Callable[[], T]) -> T:
    """Call a function on rank 0, as `leader_first` does; return its result on every rank."""
    result = None
    with leader_first() as acts:
        if acts:
            result = function()
    return from_leader(result)


def from_leader(value: Any) -> Any:
    """Return rank 0's value on every rank; it is pickled between the processes of one run."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


class _GatherRows(torch.autograd.Function):
    """Concatenate all ranks' rows; gradients are summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # a copy: autograd may share this tensor
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = rank() * ctx.count
        return total[start : start + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all W ranks [W n, ...], n from each, in rank order and with gradient."""
    return rows if world_size() == 1 else _GatherRows.apply(rows)


def shard(count: int) -> slice:
    """Return this rank's contiguous share of `count` items; sizes differ by at most one."""
    size, rest = divmod(count, world_size())
    start = rank() * size + min(rank(), rest)
    return slice(start, start + size + (rank() < rest))


def padded_shard(count: int) -> Tensor:
    """Return this rank's share of the indices 0..count-1, equally long on every rank. The final
    index pads the last shares; cut gathered rows back to `count`."""
    size = -(-count // world_size())
    return (rank() * size + torch.arange(size)).clamp(max=count - 1)
