"""The learnable prompts: "A photo of a [S]1..[S]M person.", M tokens per identity."""

from typing import Any

import torch
from torch import Tensor, nn


class PromptLearner(nn.Module):
    """Embedded prompts of N identities; only `tokens` [N, M, W] is trained."""

    def __init__(
        self, embedding: nn.Embedding, tokenizer: Any, *, identities: int, tokens: int, noun: str
    ) -> None:
        super().__init__()
        width = embedding.weight.shape[1]
        before = [tokenizer.sot_token_id, *tokenizer.encode("A photo of a")]
        after = [*tokenizer.encode(f"{noun}."), tokenizer.eot_token_id]
        with torch.no_grad():
            self.register_buffer("before", embedding(torch.tensor(before)), persistent=False)
            self.register_buffer("after", embedding(torch.tensor(after)), persistent=False)
            # the tokenizer pads with id 0, whose embedding is not zero
            self.register_buffer("padding", embedding(torch.tensor([0]))[0], persistent=False)
        self.tokens = nn.Parameter(torch.empty(identities, tokens, width))
        nn.init.normal_(self.tokens, std=0.02)
        self.learnable = slice(len(before), len(before) + tokens)
        """Positions of the learnable tokens in a prompt."""
        self.length = len(before) + tokens + len(after)

    def forward(self, identities: Tensor) -> Tensor:
        """Return the embedded prompts [B, L, W] of identities [B], end-of-text last."""
        count = len(identities)
        before = self.before.expand(count, -1, -1)  # type: ignore[operator]
        after = self.after.expand(count, -1, -1)  # type: ignore[operator]
        return torch.cat([before, self.tokens[identities], after], dim=1)
