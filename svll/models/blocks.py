"""CLIP's residual blocks, computed with less work than their modules do.

The weights stay where open_clip has them. Letters: B sequences, L tokens, K tokens before them,
H heads, W width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUICK = 1.702
"""QuickGELU(x) = x sigmoid(1.702 x)."""


@dataclass(frozen=True)
class KeysValues:
    """What tokens that came before give to the attention of one block."""

    keys: Tensor
    """[B, H, K, W / H]"""
    values: Tensor
    """[B, H, K, W / H]"""


def blocks_of(transformer: Any) -> list[nn.Module]:
    """Return a transformer's blocks, which must be those of CLIP's paper: no other is known here.
    """
    found = list(transformer.resblocks)
    # by their name: to import open_clip takes seconds
    assert {type(block).__name__ for block in found} == {"ResidualAttentionBlock"}, transformer
    return found


def run_block(
    block: Any, x: Tensor, *, mask: Tensor | None = None, before: KeysValues | None = None,
    again: bool = False,
) -> Tensor:
    """Return a block's output [B, L, W] for x [B, L, W].

    mask [L, K + L]: what is added to the logits of the attention, over `before` and x. again: keep
    only x for the backward pass, which then computes the block once more.
    """
    if again and torch.is_grad_enabled():
        return checkpoint(
            run_block, block, x, mask=mask, before=before, use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn
        )
    query, own = _attended(block, x)
    keys, values = _joined(before, own)
    mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return _rest(block, x, mixed.transpose(1, 2).flatten(2))


def keys_values(block: Any, x: Tensor) -> KeysValues:
    """Return what tokens x [B, K, W] give to those after them in this block."""
    return _attended(block, x)[1]


def run_for_one(block: Any, x: Tensor, at: int, *, before: KeysValues | None = None) -> Tensor:
    """Return the output [B, W] of a block for the token at `at` of x [B, L, W], which sees all.

    Of the others only keys and values are computed: a sixth of the work.
    """
    normed, layer = block.ln_1(x), block.attn
    width = x.shape[2]
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    query = _heads(layer, F.linear(normed[:, at : at + 1 or None], weight[:width], bias[:width]))
    own = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=2)
    keys, values = _joined(before, KeysValues(*(_heads(layer, part) for part in own)))
    mixed = F.scaled_dot_product_attention(query, keys, values)
    return _rest(block, x[:, at], mixed.flatten(1))


def _attended(block: Any, x: Tensor) -> tuple[Tensor, KeysValues]:
    """Return the queries [B, H, L, W / H] of x [B, L, W], and its keys and values."""
    layer = block.attn
    parts = F.linear(block.ln_1(x), layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=2)
    query, keys, values = (_heads(layer, part) for part in parts)
    return query, KeysValues(keys, values)


def _heads(layer: Any, x: Tensor) -> Tensor:
    return x.unflatten(2, (layer.num_heads, -1)).transpose(1, 2)


def _joined(before: KeysValues | None, own: KeysValues) -> tuple[Tensor, Tensor]:
    if before is None:
        return own.keys, own.values
    return (
        torch.cat([before.keys, own.keys], dim=2), torch.cat([before.values, own.values], dim=2)
    )


def _rest(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """Return a block's output for its input x [..., W] and what its heads have found."""
    x = x + block.ls_1(block.attn.out_proj(mixed))
    return x + block.ls_2(_mlp(block.mlp, block.ln_2(x)))


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    """Return the MLP's output; QuickGELU as silu(1.702 x) / 1.702, which is one kernel.

    Its factors go to the weights around it: they have a hundredth of the numbers.
    """
    if type(mlp.gelu).__name__ != "QuickGELU":
        return mlp(x)
    hidden = F.silu(F.linear(x, QUICK * mlp.c_fc.weight, QUICK * mlp.c_fc.bias))
    return F.linear(hidden, mlp.c_proj.weight / QUICK, mlp.c_proj.bias)
