"""Augmented copies of prompt embeddings for language self-supervision (SVLL-ReID, section 3.2).

Letters: B prompts, L tokens, W width. Random numbers come from the caller's generator, so a batch
is augmented alike on any number of ranks and on a GPU, which is sent them without waiting.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

from harness.images.transfer import to_device

Kind = Literal["mask", "swap", "swap_prompt", "mix"]


def augment_prompts(
    prompts: Tensor, *, kind: Kind, scale: float, generator: Generator, padding: Tensor,
    context_length: int, keep: slice | None = None,
) -> Tensor:
    """Return an augmented copy of embedded prompts [B, L, W].

    `scale` is s of the paper; `padding` [W] the embedding of the padding token, which follows the
    prompt up to `context_length`; `keep`, if given, the only tokens to augment, such as the
    learnable ones.
    """
    if kind == "mask":
        changed = mask(prompts, scale, generator)
    elif kind == "mix":
        changed = mix(prompts, scale, generator)
    else:
        length = context_length if kind == "swap" else prompts.shape[1]
        changed = swap(prompts, scale, generator, padding, length)
    if keep is None:
        return changed
    limited = prompts.clone()
    limited[:, keep] = changed[:, keep]
    return limited


def mask(prompts: Tensor, scale: float, generator: Generator) -> Tensor:
    """Set each element to zero with probability `scale`, independently, without rescaling."""
    draw = torch.rand(prompts.shape, generator=generator)
    return prompts * to_device(draw >= scale, prompts.device)


def swap(
    prompts: Tensor, scale: float, generator: Generator, padding: Tensor, context_length: int
) -> Tensor:
    """Permute a random share `scale` of the `context_length` token positions of each prompt.

    Padding positions take part. Only the first L positions are returned: the causal encoder reads
    no further than the original end-of-text position.
    """
    count, length, _ = prompts.shape
    moved = int(scale * context_length)
    chosen = torch.rand(count, context_length, generator=generator).argsort(dim=1)[:, :moved]
    target = chosen.gather(1, torch.rand(count, moved, generator=generator).argsort(dim=1))
    source = torch.arange(context_length).repeat(count, 1).scatter(1, target, chosen)
    source = to_device(source[:, :length], prompts.device)
    index = source.clamp(max=length - 1)[..., None].expand(-1, -1, prompts.shape[2])
    taken = prompts.gather(1, index)
    return torch.where((source < length)[..., None], taken, padding.to(prompts.dtype))


def mix(prompts: Tensor, scale: float, generator: Generator) -> Tensor:
    """Return (1 - scale) * own + scale * another identity's prompt; a lone prompt stays itself.

    Prompts are of distinct identities, so another row is another identity.
    """
    count = len(prompts)
    if count == 1:
        return prompts.clone()
    step = torch.randint(1, count, (count,), generator=generator)
    other = (torch.arange(count) + step) % count
    return (1 - scale) * prompts + scale * prompts[to_device(other, prompts.device)]
