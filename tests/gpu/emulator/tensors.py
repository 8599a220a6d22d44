"""Tensors that say that they are on a GPU, with their memory on the CPU.

Python sees a `GpuTensor` on "cuda"; torch's C++ (kernels, autograd, gloo) sees an ordinary tensor
and computes real numbers. Every call of torch goes through `handle`: it raises what a GPU would
refuse and records where the host would wait for the GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from tests.gpu.emulator.state import INSTALLED, Emulator, GpuError, place

CPU = torch.device("cpu")
WAITING = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__format__", "__repr__",
    "__contains__", "nonzero", "argwhere", "unique", "_unique2", "unique_dim", "unique_consecutive",
    "masked_select", "bincount", "equal", "allclose", "is_nonzero",
}
"""Functions whose result the host needs."""
FACTORIES = {"tensor", "as_tensor", "asarray"}
"""Functions that copy what they are given."""
MIXED = {
    "type_as", "expand_as", "view_as", "reshape_as", "new_tensor", "is_same_size", "index_put_",
    "_has_compatible_shallow_copy_type",
}
"""Functions that take tensors of both kinds, of those that `_SPECIAL` does not have."""
HOST_ONLY = {"numpy": "numpy()", "__array__": "np.asarray"}


class GpuTensor(Tensor):
    """A tensor on the GPU of this process."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return handle(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise GpuError(f"the emulator does not pickle tensors of a GPU, at {place()}")

    def __deepcopy__(self, memo: dict[int, Any]) -> "GpuTensor":
        copy = on_gpu(run(Tensor.clone, (run(Tensor.detach, (self,)),)))
        copy.requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            copy.__class__ = GpuParameter
        return memo.setdefault(id(self), copy)


class GpuParameter(GpuTensor, nn.Parameter):
    """A parameter on the GPU of this process."""


class Mode(TorchFunctionMode):
    """Shows all calls of torch in one thread to `handle`, those without a GPU's tensors too."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return handle(func, args, kwargs or {})


def handle(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Carry out a call of torch as a machine with a GPU would."""
    if not INSTALLED:
        return run(func, args, kwargs)
    emulator, name = INSTALLED[-1], _name(func)
    if name in _SPECIAL:
        return _SPECIAL[name](emulator, func, args, kwargs)
    tensors = list(tensors_in((args, kwargs)))
    given = [t for t in tensors if is_gpu(t)]
    device = kwargs.get("device")
    if device is not None and is_cuda(device):
        return _made(emulator, name, func, args, kwargs, given)
    if not given:
        return run(func, args, kwargs)
    if name in HOST_ONLY:
        raise TypeError(f"can't convert cuda:{emulator.current} device type tensor to numpy. Use "
                        f"Tensor.cpu() to copy the tensor to host memory first ({HOST_ONLY[name]} "
                        f"at {place()})")
    _check_devices(emulator, name, args, kwargs, tensors)
    if name in WAITING or (name == "repeat_interleave" and "output_size" not in kwargs
                           and len(tensors) > 1) or (name == "where" and len(args) == 1):
        emulator.waited(name.strip("_"))
    if name in _COMPUTED:
        return on_gpu(_COMPUTED[name](*args, **kwargs))
    found = run(func, args, kwargs)
    if device is not None:  # zeros_like(x, device="cpu")
        return found
    return on_gpu(found)


def run(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call torch, to which all tensors are the CPU's."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **(kwargs or {}))


def on_gpu(found: Any) -> Any:
    """Mark the tensors in a result as the GPU's; they stay the objects that they are, since
    `p.grad.data = x` must reach the gradient."""

    def mark(tensor: Tensor) -> Tensor:
        if type(tensor) is Tensor:
            tensor.__class__ = GpuTensor
        elif type(tensor) is nn.Parameter:
            tensor.__class__ = GpuParameter
        return tensor

    if isinstance(found, Tensor):
        return mark(found)
    return tree_map_only(Tensor, mark, found) if any(True for _ in tensors_in(found)) else found


def is_gpu(tensor: Any) -> bool:
    """Return whether a tensor says that it is on the GPU."""
    return isinstance(tensor, GpuTensor)


def is_cuda(device: Any) -> bool:
    """Return whether a device, as torch takes it, is a GPU."""
    return isinstance(device, int) or torch.device(device).type == "cuda"


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(tuple(values.values()))


def _name(func: Callable[..., Any]) -> str:
    """Return a function's name; "get device" of a property."""
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return f"{name.strip('_')} {getattr(getattr(func, '__self__', None), '__name__', '')}"
    return name


def _dims(tensor: Tensor) -> int:
    return int(run(Tensor.dim, (tensor,)))


def _check_devices(
    emulator: Emulator, name: str, args: Any, kwargs: Mapping[str, Any], tensors: list[Tensor]
) -> None:
    """Raise GpuError for tensors of both kinds, unless a GPU takes them together; a number on the
    CPU is one that it takes. Backward passes hand tensors over that say nothing."""
    _check_generator(kwargs)
    off = [t for t in tensors if not is_gpu(t) and (_dims(t) or name in ("cat", "stack"))]
    if not off or emulator.in_backward:
        return
    if name in ("__getitem__", "__setitem__"):
        if is_gpu(args[0]):
            if any(t is not args[-1] or name == "__getitem__" for t in off):
                emulator.waited("CPU index")
            return
    elif name in MIXED:
        return
    kinds = ", ".join(f"{'cuda' if is_gpu(t) else 'cpu'}{list(t.shape)}" for t in tensors)
    message = (f"Expected all tensors to be on the same device, but found at least two devices, "
               f"cuda:{emulator.current} and cpu! ({name}: {kinds}, at {place()})")
    emulator.mismatches.append(message)
    raise GpuError(message)


def _check_generator(kwargs: Mapping[str, Any]) -> None:
    """Raise GpuError for a generator, which can only be the CPU's here."""
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise GpuError(f"Expected a 'cuda' device type for generator but found 'cpu' at {place()}")


def _made(
    emulator: Emulator, name: str, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any],
    given: list[Tensor],
) -> Any:
    """Make a tensor on the GPU, of numbers or of nothing."""
    emulator.index_of(kwargs["device"])
    _check_generator(kwargs)
    found = run(func, args, {**kwargs, "device": CPU})
    if name in FACTORIES and not given:
        emulator.waited("copy to the GPU")
        found = run(Tensor.clone, (found,))
    return on_gpu(found)


# --- copies ---


def send(emulator: Emulator, source: Tensor, value: Tensor, *, waits: bool) -> None:
    """Record a copy of `source` to the GPU, of which `value` is the result."""
    if not run(Tensor.numel, (source,)):
        return
    if waits:
        emulator.waited("copy to the GPU")
    elif not is_pinned(emulator, source):
        emulator.waited("copy of pageable memory to the GPU")  # the driver may wait
    else:
        emulator.sent.append((source, run(Tensor.detach, (value,)).clone()))


def fetch(emulator: Emulator, target: Tensor, value: Tensor, *, waits: bool) -> None:
    """Fill `target` on the CPU with a GPU's numbers: now, or once the host waits for them."""
    if waits:
        emulator.waited("copy to the CPU")
        run(Tensor.copy_, (target, value))
        return
    emulator.copies += 1
    emulator.late.append((emulator.copies, target, run(Tensor.clone, (value,))))
    bad = float("nan") if run(Tensor.is_floating_point, (target,)) else 0
    run(Tensor.fill_, (target, bad))


def is_pinned(emulator: Emulator, tensor: Tensor) -> bool:
    """Return whether a tensor's memory is pinned."""
    return run(Tensor.untyped_storage, (tensor,)).data_ptr() in emulator.pinned


def _pin(emulator: Emulator, tensor: Tensor) -> Tensor:
    if is_gpu(tensor):
        raise GpuError(f"cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned"
                       f" (at {place()})")
    if not is_pinned(emulator, tensor):
        tensor = run(Tensor.clone, (tensor,))
        emulator.pinned[run(Tensor.untyped_storage, (tensor,)).data_ptr()] = tensor
    return tensor


def _moved(emulator: Emulator, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Tensor.to, .cuda and .cpu."""
    source, *rest = args
    name, options = _name(func), dict(kwargs)
    if name == "cpu":
        device, dtype, late, layout = CPU, None, False, None
    elif name == "cuda":
        given = rest[0] if rest else options.get("device")
        device = torch.device("cuda", emulator.index_of(given))
        late, dtype, layout = bool(options.get("non_blocking")), None, None
    else:
        options.pop("copy", None)
        if rest and isinstance(rest[0], Tensor):
            like = rest.pop(0)
            options.setdefault("dtype", run(Tensor.dtype.__get__, (like,)))
            options["device"] = torch.device("cuda") if is_gpu(like) else CPU
        device, dtype, late, layout = torch._C._nn._parse_to(*rest, **options)
    was, will = is_gpu(source), is_gpu(source) if device is None else device.type == "cuda"
    if will and device is not None:
        emulator.index_of(device)
    change = {"dtype": dtype} if dtype is not None else {}
    if layout is not None:
        change["memory_format"] = layout
    if was == will:
        again = {**change, "copy": True} if kwargs.get("copy") else change
        same = run(Tensor.to, (source,), again) if again else source
        return on_gpu(same) if will and same is not source else same
    value = run(Tensor.to, (source,), {**change, "copy": True, "device": CPU})
    if will:
        send(emulator, source, value, waits=not late)
        return on_gpu(value)
    if late:
        target = _pin(emulator, run(torch.empty_like, (value,)))
        fetch(emulator, target, value, waits=False)
        return target
    emulator.waited("copy to the CPU")
    return value


def _copied(emulator: Emulator, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Tensor.copy_."""
    target, source, *rest = args
    late = bool(kwargs.get("non_blocking", rest and rest[0]))
    if is_gpu(target) and not is_gpu(source) and not emulator.in_backward:
        run(func, (target, source))
        send(emulator, source, source, waits=not late)
        return target
    if is_gpu(source) and not is_gpu(target) and not emulator.in_backward:
        fetch(emulator, target, source, waits=not (late and is_pinned(emulator, target)))
        return target
    return run(func, (target, source))


def _indexed(emulator: Emulator, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Tensor.__getitem__ and __setitem__: a mask of booleans is counted, except to fill with one
    number; what is written is copied."""
    target, index, *value = args
    tensors = list(tensors_in((target, index, value)))
    if not any(map(is_gpu, tensors)):
        return run(func, args)
    _check_devices(emulator, _name(func), args, kwargs, tensors)
    masks = any(run(Tensor.dtype.__get__, (t,)) == torch.bool and _dims(t)
                for t in tensors_in(index))
    is_number = value and (not isinstance(value[0], Tensor)
                           or run(Tensor.numel, (value[0],)) == 1)
    if masks and not is_number:
        emulator.waited("boolean index")
    if value and isinstance(value[0], Tensor) and _dims(value[0]) and not emulator.in_backward:
        if is_gpu(target) and not is_gpu(value[0]):
            emulator.waited("copy to the GPU")
        if is_gpu(value[0]) and not is_gpu(target):
            emulator.waited("copy to the CPU")
    found = run(func, args)
    return on_gpu(found) if is_gpu(target) else found


def _typed(emulator: Emulator, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Tensor.type, which names a kind of tensor or converts to one."""
    found = run(func, args, kwargs)
    if isinstance(found, str):
        return found.replace("torch.", "torch.cuda.") if is_gpu(args[0]) else found
    return on_gpu(found) if is_gpu(args[0]) else found


def _set(emulator: Emulator, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """`x.data = y`, after which x is where y is, and `x.grad = y`."""
    target, value = args
    is_grad = _name(func) == "set grad"
    if is_grad and value is not None and is_gpu(value) != is_gpu(target):
        raise GpuError(f"assigned grad has data of a different device, at {place()}")
    run(func, args)
    if is_grad:
        return
    if is_gpu(value):
        on_gpu(target)
    elif is_gpu(target):
        target.__class__ = nn.Parameter if isinstance(target, nn.Parameter) else Tensor


# --- what runs on GPUs only ---


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """torch.batch_norm_stats of x [n, C, ...]: mean and 1 / std of each channel."""
    values = run(Tensor.transpose, (x, 0, 1)).flatten(1).float()
    return values.mean(1), (values.var(1, unbiased=False) + eps).rsqrt()


def _gathered(
    x: Tensor, means: Tensor, inverses: Tensor, running_mean: None, running_var: None,
    momentum: float, eps: float, counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """torch.batch_norm_gather_stats_with_counts: those of all ranks [W, C], and counts [W].
    Running statistics, which nothing here asks for, are not updated."""
    assert running_mean is running_var is None
    weight = (counts / counts.sum())[:, None]
    mean = (means * weight).sum(0)
    var = ((inverses.pow(-2) - eps + (means - mean) ** 2) * weight).sum(0)
    return mean, (var + eps).rsqrt()


def _shaped(values: Tensor, x: Tensor) -> Tensor:
    """Return values [C] as they multiply x [n, C, ...]."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def _normalised(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    """torch.batch_norm_elemt."""
    out = (x - _shaped(mean, x)) * _shaped(inverse, x)
    out = out if weight is None else out * _shaped(weight, x)
    return (out if bias is None else out + _shaped(bias, x)).to(x.dtype)


def _reduced(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, *needed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torch.batch_norm_backward_reduce: sums over all but channels."""
    axes = [0, *range(2, x.dim())]
    total = grad.float().sum(axes)
    times = (grad.float() * (x - _shaped(mean, x))).sum(axes)
    return total, times, times * inverse, total


def _propagated(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, total: Tensor,
    times: Tensor, counts: Tensor,
) -> Tensor:
    """torch.batch_norm_backward_elemt."""
    count = counts.sum()
    centred = (x - _shaped(mean, x)) * _shaped(inverse**2 * times / count, x)
    scale = inverse if weight is None else inverse * weight
    return ((grad - _shaped(total / count, x) - centred) * _shaped(scale, x)).to(x.dtype)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: run(function, args, kwargs)


_COMPUTED: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": _plain(_stats), "batch_norm_gather_stats_with_counts": _plain(_gathered),
    "batch_norm_elemt": _plain(_normalised), "batch_norm_backward_reduce": _plain(_reduced),
    "batch_norm_backward_elemt": _plain(_propagated),
}
"""Functions that torch has on GPUs only."""
_SPECIAL: dict[str, Callable[[Emulator, Callable[..., Any], Any, Any], Any]] = {
    "get device": lambda e, f, a, k: torch.device("cuda", e.current) if is_gpu(a[0]) else CPU,
    "get is_cuda": lambda e, f, a, k: is_gpu(a[0]),
    "get is_cpu": lambda e, f, a, k: not is_gpu(a[0]),
    "get_device": lambda e, f, a, k: e.current if is_gpu(a[0]) else -1,
    "is_pinned": lambda e, f, a, k: not is_gpu(a[0]) and is_pinned(e, a[0]),
    "pin_memory": lambda e, f, a, k: _pin(e, a[0]),
    "type": _typed, "to": _moved, "cpu": _moved, "cuda": _moved, "copy_": _copied,
    "__getitem__": _indexed, "__setitem__": _indexed, "set data": _set, "set grad": _set,
}
