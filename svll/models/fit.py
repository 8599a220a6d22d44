"""Weights into a module, all of them or none: what does not fit is told by name and size."""

from collections.abc import Mapping

from torch import Tensor, nn

from harness.base.errors import UserError

SHOWN = 3
"""Faults that a message lists; the others are counted."""


def fit(
    module: nn.Module, state: Mapping[str, Tensor], where: str, *,
    prefix: str = "", assign: bool = False, hint: str = "",
) -> None:
    """Load exactly the tensors of `module`; `assign` for a module on torch's meta device.

    Floating point numbers become the module's own kind. `prefix` is what the file puts before the
    names, for the message. Raises UserError naming each tensor that is missing, left over, or of
    another shape, the latter with both sizes; `where` is the file, `hint` what to do about it.
    """
    own = module.state_dict()
    faults = [
        f"{prefix}{name} is {list(state[name].shape)} in the file, {list(own[name].shape)} here"
        for name in own if name in state and state[name].shape != own[name].shape
    ]
    faults += [f"{prefix}{name} is missing" for name in own if name not in state]
    faults += [f"{prefix}{name} is left over" for name in state if name not in own]
    if faults:
        rest = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{where}: does not fit: {'; '.join(faults[:SHOWN])}{rest}{hint}")
    kept = {name: value.to(own[name].dtype) for name, value in state.items()}
    module.load_state_dict(kept, assign=assign)


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, named without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def need(
    state: Mapping[str, Tensor], name: str, where: str, prefix: str = "", axes: int | None = None
) -> Tensor:
    """Return a tensor; raises UserError when it is missing or has not `axes` axes."""
    if name not in state:
        raise UserError(f"{where}: does not fit: {prefix}{name} is missing")
    if axes not in (None, state[name].ndim):
        raise UserError(
            f"{where}: does not fit: {prefix}{name} is {list(state[name].shape)} in the file, "
            f"expected were {axes} axes"
        )
    return state[name]
