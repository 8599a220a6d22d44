"""The tensors of a weights file by name; errors name the file, the tensor and both sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.base.errors import UserError

SHOWN = 3
"""Faults that a message lists; the others are counted."""


@dataclass(frozen=True)
class StateDict:
    """Named tensors, and where they come from for error messages."""

    tensors: Mapping[str, Tensor]
    where: str
    """The file."""
    prefix: str = ""
    """What stands before these names in the file."""
    hint: str = ""
    """What to do about a fault."""

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def below(self, prefix: str) -> "StateDict":
        """Return the tensors whose names begin with `prefix`, named without it."""
        found = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        return StateDict(found, self.where, self.prefix + prefix, self.hint)

    def get(self, name: str, *, axes: int, width: int | None = None) -> Tensor:
        """Return a tensor; UserError unless it has `axes` axes, the last of length `width`."""
        if name not in self.tensors:
            raise self.fault(f"{self.prefix}{name} is missing")
        tensor = self.tensors[name]
        if tensor.ndim != axes:
            raise self.fault(
                f"{self.prefix}{name} is {list(tensor.shape)} in the file, expected {axes} axes"
            )
        if width not in (None, tensor.shape[-1]):
            found, here = list(tensor.shape), [*tensor.shape[:-1], width]
            raise self.fault(f"{self.prefix}{name} is {found} in the file, {here} here")
        if fault := _unfit(tensor):
            raise self.fault(f"{self.prefix}{name} {fault}")
        return tensor

    def count(self, prefix: str) -> int:
        """Return the number of numbered parts below a prefix."""
        return len({name.split(".")[0] for name in self.below(prefix).tensors})

    def load_into(self, module: nn.Module, *, assign: bool = False) -> None:
        """Load exactly the tensors of `module`; `assign` for a module on torch's meta device.

        Floating point numbers become the module's type. Raises UserError naming each tensor that is
        missing, unexpected, or of another shape, the latter with both sizes; if there are none,
        each that should hold finite floating point numbers and does not.
        """
        own, state = module.state_dict(), self.tensors
        faults = [
            f"{name} is {list(state[name].shape)} in the file, {list(own[name].shape)} here"
            for name in own if name in state and state[name].shape != own[name].shape
        ]
        faults += [f"{name} is missing" for name in own if name not in state]
        faults += [f"{name} is unexpected" for name in state if name not in own]
        self._raise(faults)
        found = [(name, _unfit(state[name])) for name in own if own[name].is_floating_point()]
        self._raise([f"{name} {fault}" for name, fault in found if fault])
        kept = {name: value.to(own[name].dtype) for name, value in state.items()}
        module.load_state_dict(kept, assign=assign)

    def _raise(self, faults: list[str]) -> None:
        if faults:
            rest = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise self.fault("; ".join(self.prefix + fault for fault in faults[:SHOWN]) + rest)

    def fault(self, text: str) -> UserError:
        """Return the error for tensors that do not fit."""
        return UserError(f"{self.where}: does not fit: {text}{self.hint}")


def _unfit(tensor: Tensor) -> str:
    """Return why a tensor's numbers are no weights, "" if they are. Integers and numbers of 8 bits
    are quantised weights, which mean something else."""
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        return f"is of {tensor.dtype} in the file, expected floating point numbers"
    wrong = int((~torch.isfinite(tensor.float())).sum())
    return f"has {wrong} numbers that are NaN or infinite" if wrong else ""
