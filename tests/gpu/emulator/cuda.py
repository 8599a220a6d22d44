"""torch.cuda, autocast, autograd, gloo, DeepSpeed and DALI, as they are on a machine with GPUs."""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import Tensor

from tests.gpu.emulator.state import Emulator, GpuError, place
from tests.gpu.emulator.tensors import Mode, is_gpu, on_gpu, tensors_in

GB = 2**30
NAME = "Emulated H100"
PROPERTIES = SimpleNamespace(
    name=NAME, major=9, minor=0, total_memory=80 * GB, multi_processor_count=132,
    uuid=f"GPU-{os.getpid()}",  # each rank is a process and uses another
)
COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_single", "broadcast",
    "reduce", "reduce_scatter_tensor", "reduce_scatter", "all_to_all_single", "gather", "scatter",
)
OF_OBJECTS = ("broadcast_object_list", "all_gather_object", "gather_object")


def patch_cuda(emulator: Emulator, patch: pytest.MonkeyPatch) -> None:
    """Make torch.cuda report the emulator's GPUs."""
    cuda = torch.cuda

    class Event:
        """A mark in a stream; the copies before it have ended when it has."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.copies = self.step = 0

        def record(self) -> None:
            self.copies, self.step = emulator.copies, emulator.step

        def synchronize(self) -> None:
            late = self.step < emulator.step
            emulator.waited("event of an earlier step" if late else "event", self.copies)

    class Stream:
        """The one stream in which everything has run already."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.device = torch.device("cuda", emulator.current)

        def synchronize(self) -> None:
            emulator.waited("Stream.synchronize")

        def wait_stream(self, stream: Any) -> None: ...

        def record_event(self) -> Any:
            event = Event()
            event.record()
            return event

        def is_capturing(self) -> bool:
            return False

    @contextmanager
    def within(_: Any) -> Iterator[None]:
        yield

    def set_device(device: Any) -> None:
        emulator.current = emulator.index_of(device)

    def set_rng_state(state: Tensor, device: Any = None) -> None:
        if is_gpu(state) or len(state) != 16:
            raise TypeError("RNG state must be a torch.ByteTensor")

    def nothing(*_: Any, **__: Any) -> None: ...

    def always(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    def wait(kind: str) -> Callable[..., None]:
        return lambda *_, **__: emulator.waited(kind)

    values: dict[str, Any] = {
        "is_available": always(True), "device_count": lambda: emulator.devices,
        "current_device": lambda: emulator.current, "set_device": set_device,
        "synchronize": wait("cuda.synchronize"), "current_stream": Stream,
        "default_stream": Stream, "stream": within, "Stream": Stream, "Event": Event,
        "memory_allocated": always(GB), "max_memory_allocated": always(GB),
        "memory_reserved": always(GB), "reset_peak_memory_stats": nothing, "empty_cache": nothing,
        "mem_get_info": always((70 * GB, 80 * GB)), "manual_seed_all": nothing,
        "set_rng_state": set_rng_state,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "is_bf16_supported": always(True), "get_device_name": always(NAME),
        "get_device_properties": always(PROPERTIES), "get_device_capability": always((9, 0)),
        "get_arch_list": always(["sm_90"]), "is_current_stream_capturing": always(False),
    }
    for name, value in values.items():
        patch.setattr(cuda, name, value)
    patch.setattr(cuda.random, "manual_seed_all", nothing)
    patch.setattr(Tensor, "record_stream", nothing)  # takes C++'s streams only
    for name in ("range_push", "range_pop", "mark"):
        patch.setattr(cuda.nvtx, name, nothing)
    patch.setattr(torch.accelerator, "is_available", always(True))
    patch.setattr(torch.accelerator, "current_stream", Stream)
    patch.setattr(torch.accelerator, "current_accelerator", always(torch.device("cuda")))


def patch_torch(emulator: Emulator, patch: pytest.MonkeyPatch) -> None:
    """Autocast of the CPU for a GPU's; backward passes, whose hooks are Python; optimizers, which
    group tensors by device; new threads."""
    started, enabled, kind = (
        torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype
    )

    def cpu(device: str) -> str:
        return "cpu" if device == "cuda" else device

    @functools.wraps(started)
    def start(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        started(self, cpu(device_type), *args, **kwargs)

    patch.setattr(torch.autocast, "__init__", start)
    patch.setattr(torch, "is_autocast_enabled", lambda device="cuda": enabled(cpu(device)))
    patch.setattr(torch, "get_autocast_dtype", lambda device: kind(cpu(device)))

    def no_compiler(function: Any = None, **_: Any) -> Callable[..., Any]:
        """Return what a machine without Triton makes of a function, or of a decorated one."""

        def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError("Cannot find a working triton installation")

        return no_compiler if function is None else fails

    patch.setattr(torch, "compile", no_compiler)
    engine = torch.autograd.graph._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        emulator.in_backward += 1
        try:
            with Mode():
                return engine(*args, **kwargs)
        finally:
            emulator.in_backward -= 1

    patch.setattr(torch.autograd, "_engine_run_backward", backward)
    patch.setattr(torch.autograd.graph, "_engine_run_backward", backward)
    # a saved tensor is seen once as Python has it and once as C++ does
    checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
    patch.setitem(checks, "default", lambda x: {"shape": tuple(x.shape), "dtype": x.dtype})

    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(tensors: Any, *args: Any) -> Any:
        found = group(tensors, *args)
        if not any(map(is_gpu, tensors_in(tensors))):
            return found
        device = torch.device("cuda", emulator.current)
        return {(device, kind): part for (_, kind), part in found.items()}

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)

    run = threading.Thread.run

    def run_seen(self: threading.Thread) -> None:
        with Mode():
            run(self)

    patch.setattr(threading.Thread, "run", run_seen)


def patch_ranks(emulator: Emulator, patch: pytest.MonkeyPatch) -> None:
    """gloo in the place of NCCL, which takes no tensor of the CPU."""
    backends: dict[Any, str] = {}  # of each group, as it was asked for; None: of all ranks
    start, new_group, backend_of = (
        dist.init_process_group, dist.new_group, dist.get_backend
    )

    @functools.wraps(start)
    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> None:
        backends[None] = str(backend or "cpu:gloo,cuda:nccl")
        start("gloo", *args, **kwargs)

    @functools.wraps(new_group)
    def new(
        ranks: Any = None, timeout: Any = None, backend: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        group = new_group(ranks, timeout, backend and "gloo", *args, **kwargs)
        backends[group] = str(backend or backends[None])
        return group

    def asked(group: Any = None) -> str:
        return backends.get(group) or backends.get(None) or str(backend_of(group))

    def on_cpu(group: Any) -> bool:
        """Return whether a group joins CPUs too."""
        return "gloo" in asked(group)

    patch.setattr(dist, "init_process_group", init_process_group)
    patch.setattr(dist, "new_group", new)
    patch.setattr(dist, "get_backend", asked)
    for name in COLLECTIVES:
        patch.setattr(dist, name, _checked(emulator, getattr(dist, name), on_cpu))
    for name in (*OF_OBJECTS, "barrier"):
        patch.setattr(dist, name, _waiting(emulator, getattr(dist, name), on_cpu))


def _checked(
    emulator: Emulator, collective: Callable[..., Any], on_cpu: Callable[[Any], bool]
) -> Callable[..., Any]:
    """Return a collective that refuses tensors of the CPU where only GPUs are joined."""

    @functools.wraps(collective)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not emulator.in_backward and not on_cpu(kwargs.get("group")):
            for tensor in tensors_in((args, kwargs)):
                if not is_gpu(tensor):
                    raise GpuError("No backend type associated with device type cpu "
                                   f"({collective.__name__} at {place()})")
        return collective(*args, **kwargs)

    return checked


def _waiting(
    emulator: Emulator, collective: Callable[..., Any], on_cpu: Callable[[Any], bool]
) -> Callable[..., Any]:
    """Return a collective of objects, which waits for the GPU where only GPUs are joined."""

    @functools.wraps(collective)
    def waiting(*args: Any, **kwargs: Any) -> Any:
        if not on_cpu(kwargs.get("group")):
            emulator.waited(collective.__name__)
        return collective(*args, **kwargs)

    return waiting


def leave_ranks() -> None:
    """Leave the process group, so that the next run joins one for its device, and DeepSpeed chooses
    that anew."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if "deepspeed" in sys.modules:
        from deepspeed.accelerator import real_accelerator
        from deepspeed.comm import comm
        from deepspeed.runtime import torch_autocast
        from deepspeed.utils import groups

        real_accelerator.ds_accelerator = comm.cdb = groups._WORLD_GROUP = None
        # a global of DeepSpeed 0.19.8: one fp16 engine changes all later ones of the process
        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False


# --- DALI ---


class _Output:
    """A batch that a pipeline says to be on the GPU."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def as_tensor(self) -> "_Output":
        return _Output(self._batch.as_tensor())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)


def patch_dali(emulator: Emulator, patch: pytest.MonkeyPatch) -> None:
    """Pipelines of the CPU where those of the GPU are asked for: pixels differ from a GPU's."""
    from nvidia.dali import Pipeline, data_node, fn

    start, share, decode, from_dlpack = (
        Pipeline.__init__, Pipeline.share_outputs, fn.decoders.image, torch.from_dlpack
    )

    @functools.wraps(start)
    def started(self: Any, *args: Any, device_id: int | None = None, **kwargs: Any) -> None:
        self.emulated = device_id is not None
        if device_id is not None:
            emulator.index_of(device_id)
        start(self, *args, device_id=None, **kwargs)

    @functools.wraps(decode)
    def image(*args: Any, device: str | None = None, **kwargs: Any) -> Any:
        for name in ("hw_decoder_load", "affine"):
            kwargs.pop(name, None)
        return decode(*args, device="cpu" if device == "mixed" else device, **kwargs)

    @functools.wraps(share)
    def shared(self: Any, cuda_stream: Any = None) -> Any:
        found: Sequence[Any] = share(self)
        return tuple(map(_Output, found)) if self.emulated else found

    def from_any(batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(batch, _Output):
            return on_gpu(from_dlpack(batch._batch))
        return from_dlpack(batch, *args, **kwargs)

    patch.setattr(Pipeline, "__init__", started)
    patch.setattr(Pipeline, "share_outputs", shared)
    patch.setattr(fn.decoders, "image", image)
    patch.setattr(data_node.DataNode, "gpu", lambda self: self)
    patch.setattr(torch, "from_dlpack", from_any)


def forget_devices() -> None:
    """Forget what the project has found out about this machine's GPUs."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("harness.", "svll.")):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear") and "gpu" in getattr(value, "__name__", ""):
                    value.cache_clear()
