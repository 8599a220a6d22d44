"""The trained state of a DeepSpeed engine, read and restored: weights, moments, step counts.
Tensors are whole and named by parameter, whether or not ZeRO splits them over the ranks."""

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.training import ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
ADVICE = "use Adam, AdamW or SGD without momentum"


def check_saved(optimizer: torch.optim.Optimizer) -> None:
    """Raise UserError unless checkpoints hold an optimizer's whole state: Adam's, or none. A copy
    of the optimizer shows its state after one step of small parameters."""
    probe = copy.copy(optimizer)
    probe.state = defaultdict(dict)
    probe.param_groups = [dict(group) for group in optimizer.param_groups]
    for group in probe.param_groups:
        like = group["params"][0]
        # on the CPU: a GPU's faults, such as a full memory, are none of the optimizer
        small = torch.zeros([1] * like.dim(), dtype=like.dtype)
        group["params"] = [nn.Parameter(small)]
        group["params"][0].grad = small.clone()
    name = type(optimizer).__name__
    try:
        probe.step()
    except (TypeError, RuntimeError) as error:  # as of LBFGS, SparseAdam
        raise UserError(f"{name}: not an optimizer for this loop ({error}); {ADVICE}") from None
    kept = {key for state in probe.state.values() for key in state}
    if kept and kept != {"step", *MOMENTS}:
        lost = sorted(kept - {"step", *MOMENTS}) or ["other state than Adam"]
        raise UserError(f"{name}: keeps {', '.join(lost)}, which a checkpoint does not hold, so a "
                        f"resumed run would lose it; {ADVICE}")


def collect(engine: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """Return whole weights (with buffers), moments and step counts, copied to the CPU. Every rank
    must call this, but only rank 0 gets copies; the others return empty mappings."""
    is_split, keeps = _is_split(engine), ranks.rank() == 0
    if not (keeps or is_split):
        return {}, {}, {}
    _link_moments(engine)
    weights, moments = dict[str, Tensor](), dict[str, Tensor]()
    parameters = trained(engine.module)
    steps = {name: _step_of(engine, parameter) for name, parameter in parameters}
    for name, parameter in parameters:
        for moment in ("", *(MOMENTS if steps[name] else ())):
            whole = _whole(engine, parameter, moment)  # under ZeRO, made by all ranks together
            if keeps:
                to, key = (moments, f"{name}.{moment}") if moment else (weights, name)
                to[key] = whole.detach().to("cpu", copy=not is_split)
    if not keeps:
        return {}, {}, {}
    running = {n: b.detach().to("cpu", copy=True) for n, b in buffers(engine.module).items()}
    return weights | running, moments, steps


def restore(
    engine: Any, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: dict[str, float]
) -> None:
    """Load what `collect` returned into a fresh engine; names and shapes must fit."""
    if moments:
        _make_state(engine)
    parameters = trained(engine.module)
    with torch.no_grad():
        for name, tensor in [*buffers(engine.module).items(), *parameters]:
            tensor.copy_(weights[name])
    if not _is_split(engine):
        for name, parameter in parameters if moments else ():
            for key, value in _inner(engine).state[parameter].items():
                value.fill_(steps[name]) if key == "step" else value.copy_(moments[f"{name}.{key}"])
        return
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    for name, parameter in parameters:
        safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
        for moment in MOMENTS if moments else ():
            value = moments[f"{name}.{moment}"].to(parameter.device)
            safe_set_full_optimizer_state(parameter, value, moment)
    for state in _inner(engine).state.values() if moments else ():
        state["step"].fill_(max(steps.values()))


def trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trained parameters of a module by name."""
    return [(n, p) for n, p in module.named_parameters() if p.requires_grad]


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of trained parts that belong to the state: running statistics."""
    prefixes = {n.rpartition(".")[0] for n, _ in trained(module)}
    saved = set(module.state_dict())
    return {
        n: b for n, b in module.named_buffers() if n in saved and n.rpartition(".")[0] in prefixes
    }


def _inner(engine: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer; under ZeRO, the one over this rank's flat partitions."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _is_split(engine: Any) -> bool:
    return _inner(engine) is not engine.optimizer


def _link_moments(engine: Any) -> None:
    """Link each parameter to its moments under ZeRO. DeepSpeed 0.19.8 does so only after the first
    group's first step, before the others have any."""
    if not _is_split(engine):
        return
    from deepspeed.utils import lazy_init_hp_params_optimizer_state as link

    zero, state = engine.optimizer, _inner(engine).state
    groups = zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True)
    for parameters, partition in groups:
        link(parameters, partition, state)


def _whole(engine: Any, parameter: nn.Parameter, moment: str = "") -> Tensor:
    """Return a parameter, or one of its moments; under ZeRO as a new tensor, by a collective."""
    if not _is_split(engine):
        return _inner(engine).state[parameter][moment] if moment else parameter
    from deepspeed.utils import safe_get_full_fp32_param
    from deepspeed.utils import safe_get_full_optimizer_state as get

    return get(parameter, moment) if moment else safe_get_full_fp32_param(parameter)


def _step_of(engine: Any, parameter: nn.Parameter) -> float:
    """Return the optimizer steps of a parameter; under ZeRO all parameters have the same count."""
    states = _inner(engine).state
    own = states.values() if _is_split(engine) else [states.get(parameter, {})]
    return max((float(state["step"]) for state in own if "step" in state), default=0.0)


def _make_state(engine: Any) -> None:
    """Make the optimizer create its moments, by a step; its result is overwritten by `restore`."""
    optimizer = _inner(engine)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _link_moments(engine)
