"""CLIP's text transformer and its prompts, "A photo of a [S]1..[S]M person.", one per identity.

CLIP-ReID, section 3.2. Letters: N identities, M learnable tokens, L tokens of a prompt from
start-of-text to end-of-text, W width of the text transformer.
"""

from typing import Any

import torch
from torch import Tensor, nn

from svll.models.blocks import (
    BlockCompiler,
    KeysValues,
    blocks_of,
    keys_values,
    run_block,
    run_for_one,
)


class TextEncoder(nn.Module):
    """CLIP's causal text transformer, fed with embeddings instead of token ids."""

    recompute = False
    """Compute blocks again in the backward pass, to save memory."""
    compiler: BlockCompiler | None = None
    """Compiles the blocks for training."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.transformer = model.transformer
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.context_length = int(model.context_length)
        self.width = int(model.token_embedding.weight.shape[1])
        self.out = int(model.text_projection.shape[1])
        mask = torch.full((self.context_length, self.context_length), float("-inf")).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, prompts: Tensor, constant: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Encode embedded prompts [B, L, W] whose last token is end-of-text; returns [B, D].

        Attention is causal, so tokens after end-of-text cannot change the feature: L is the
        prompt's length, not the context length (7 times less work at 12 tokens of 77).
        constant: beginnings of prompts that need no gradient, [P, K, W], and the index of each
        prompt's beginning, [B]. Each beginning is encoded once, without a backward pass.
        """
        first = 0 if constant is None else constant[0].shape[1]
        length = first + prompts.shape[1]
        assert length <= self.context_length
        mask = self.mask[first:length, :length]  # type: ignore[index]
        *body, last = blocks_of(self.transformer)
        nothing = [None] * (len(body) + 1)
        before = nothing if constant is None else self._before(*constant)
        x = prompts + self.positional_embedding[first:length].to(prompts.dtype)
        for block, given in zip(body, before[:-1], strict=True):
            x = run_block(block, x, mask=mask, before=given, recompute=self.recompute,
                          compiler=self.compiler)
        x = run_for_one(last, x, -1, before=before[-1])
        return self.ln_final(x) @ self.text_projection

    @torch.no_grad()
    def _before(self, constant: Tensor, index: Tensor) -> list[KeysValues]:
        """Return each block's keys and values of beginnings [P, K, W], for prompts [B]."""
        length = constant.shape[1]
        mask = self.mask[:length, :length]  # type: ignore[index]
        x = constant + self.positional_embedding[:length].to(constant.dtype)
        *body, last = blocks_of(self.transformer)
        blocks = []
        for block in body:
            blocks.append(keys_values(block, x))
            x = run_block(block, x, mask=mask)
        blocks.append(keys_values(last, x))
        return [KeysValues(keys[index], values[index]) for keys, values in blocks]
