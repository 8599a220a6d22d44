"""CLIP's residual blocks, computed with less work than their modules do; weights stay in open_clip.

Letters: B sequences, L tokens, K tokens before them, H heads, W width.
"""

import logging
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

log = logging.getLogger(__name__)
Compute = Callable[[Any, Tensor, Tensor | None, "KeysValues | None"], Tensor]
"""From a block, x, mask and `before` to the block's output, as in `run_block`."""
QUICK = 1.702
"""QuickGELU(x) = x sigmoid(1.702 x)."""


class KeysValues(NamedTuple):
    """Keys and values of a block's attention, each [B, H, K, W / H]."""

    keys: Tensor
    values: Tensor


def blocks_of(transformer: Any) -> list[nn.Module]:
    """Return a transformer's blocks; this module computes only the block of CLIP's paper."""
    blocks = list(transformer.resblocks)
    # compared by name: importing open_clip takes seconds
    assert {type(block).__name__ for block in blocks} == {"ResidualAttentionBlock"}, transformer
    return blocks


def run_block(
    block: Any, x: Tensor, *, mask: Tensor | None = None, before: KeysValues | None = None,
    recompute: bool = False, compiler: "BlockCompiler | None" = None,
) -> Tensor:
    """Return a block's output [B, L, W] for x [B, L, W].

    mask [L, K + L]: added to the attention logits over `before` and x. recompute: keep only x for
    the backward pass, which computes the block again. compiler: compiles the block for training.
    """
    if not torch.is_grad_enabled():
        return _computed(block, x, mask, before)
    compute = _computed if compiler is None else compiler.tried_on(block, x, mask, before)
    if recompute:
        return checkpoint(
            compute, block, x, mask, before, use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
        )
    return compute(block, x, mask, before)


class BlockCompiler:
    """Compiles one encoder's blocks by torch.compile, all to the same code; where that fails, they
    are computed as without it."""

    FAULTS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
    """What torch.compile raises, itself or through Triton and the compilers that it starts."""

    def __init__(self) -> None:
        self._compute: Compute | None = None

    def tried_on(
        self, block: Any, x: Tensor, mask: Tensor | None, before: KeysValues | None
    ) -> Compute:
        """Return what computes blocks; the first call tries it on these arguments. torch compiles
        when it first computes, the backward pass too."""
        if self._compute is not None:
            return self._compute
        probe = x.detach().requires_grad_()
        try:
            self._compute = torch.compile(_computed)
            torch.autograd.grad(self._compute(block, probe, mask, before).sum(), probe)
        except torch.OutOfMemoryError:  # also without compiling
            raise
        except self.FAULTS as error:
            reason = " ".join(str(error).split("\n")[:2])  # the first says only who failed
            log.warning("engine.compile: torch.compile failed, so blocks are not compiled: %s: %s",
                        type(error).__name__, reason)
            self._compute = _computed
        return self._compute


def _computed(
    block: Any, x: Tensor, mask: Tensor | None, before: KeysValues | None
) -> Tensor:
    query, own = _project(block, x)
    mixed = F.scaled_dot_product_attention(query, *_joined(before, own), attn_mask=mask)
    return _rest(block, x, mixed.transpose(1, 2).flatten(2))


def keys_values(block: Any, x: Tensor) -> KeysValues:
    """Return the keys and values of x [B, K, W], which the tokens after x attend to."""
    return _project(block, x)[1]


def run_for_one(block: Any, x: Tensor, at: int, *, before: KeysValues | None = None) -> Tensor:
    """Return the output [B, W] of the token at `at` of x [B, L, W] alone: a sixth of the work."""
    normed, layer = block.ln_1(x), block.attn
    width = x.shape[2]
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    query = _heads(layer, F.linear(normed[:, at : at + 1 or None], weight[:width], bias[:width]))
    own = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=2)
    own_heads = KeysValues(*(_heads(layer, part) for part in own))
    mixed = F.scaled_dot_product_attention(query, *_joined(before, own_heads))
    return _rest(block, x[:, at], mixed.flatten(1))


def _project(block: Any, x: Tensor) -> tuple[Tensor, KeysValues]:
    """Return the queries [B, H, L, W / H] of x [B, L, W], and its keys and values."""
    layer = block.attn
    parts = F.linear(block.ln_1(x), layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=2)
    query, keys, values = (_heads(layer, part) for part in parts)
    return query, KeysValues(keys, values)


def _heads(layer: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (layer.num_heads, -1)).transpose(1, 2)


def _joined(before: KeysValues | None, own: KeysValues) -> KeysValues:
    if before is None:
        return own
    return KeysValues(*(torch.cat(pair, dim=2) for pair in zip(before, own, strict=True)))


def _rest(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """Return a block's output for its input x [..., W] and the output of its attention heads."""
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """Return the MLP's output; QuickGELU as silu(1.702 x) / 1.702, the factors in the weights."""
    if type(mlp.gelu).__name__ != "QuickGELU":
        return mlp(x)
    hidden = F.silu(F.linear(x, QUICK * mlp.c_fc.weight, QUICK * mlp.c_fc.bias))
    return F.linear(hidden, mlp.c_proj.weight / QUICK, mlp.c_proj.bias)
