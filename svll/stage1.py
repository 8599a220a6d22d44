"""Stage 1, prompt learning: both encoders frozen, M tokens per identity trained.

SVLL-ReID, section 3.2; CLIP-ReID, section 3.2. Letters: B images of the global batch, n distinct
identities in it, N identities, L tokens, D joint space.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.training import ranks
from svll.config import Stage1
from svll.losses import agreement_loss, supcon_loss
from svll.models.prompts import PromptLearner
from svll.models.text_encoder import TextEncoder
from svll.prompt_augmentation import augment_prompts


@dataclass(frozen=True)
class PromptBatch:
    """A step's global batch, the same on every rank."""

    features: Tensor
    """[B, D] frozen image features."""
    identities: Tensor
    """[B] labels 0..N-1."""
    seed: int
    """Of the augmentations of this step."""


class PromptObjective(nn.Module):
    """The losses of stage 1, by name: i2t, t2i and, if its weight is not 0, lss."""

    def __init__(
        self, prompts: PromptLearner, text: TextEncoder, head: nn.Module, config: Stage1
    ) -> None:
        super().__init__()
        self.prompts = prompts
        self.text = text.requires_grad_(False)
        self.head = head.requires_grad_(config.train_head and config.lss_weight > 0)
        self.config = config

    def forward(self, batch: PromptBatch) -> dict[str, Tensor]:
        """Return the losses of a global batch; every rank encodes its share of the prompts."""
        identities, of_sample = batch.identities.unique(return_inverse=True)
        own, *copies = self._encode(identities, batch.seed)
        text = own[of_sample]  # [B, D]
        losses = {
            "i2t": supcon_loss(batch.features, text, batch.identities, batch.identities),
            "t2i": supcon_loss(text, batch.features, batch.identities, batch.identities),
        }
        if self.config.lss_weight and len(identities) > 1:
            losses["lss"] = agreement_loss(
                self.head, *copies, kind=self.config.lss_loss,
                temperature=self.config.lss_temperature,
            )
        elif self.config.lss_weight:  # a single identity has nothing to be told from
            losses["lss"] = text.sum() * 0.0
        return losses

    def _encode(self, identities: Tensor, seed: int) -> list[Tensor]:
        """Return text features [n, D] of the prompts and, for lss, of two augmented copies.

        The sets go through the encoder together, each rank taking its share of the identities.
        """
        share = ranks.padded_shard(len(identities)).to(identities.device)
        sets = [self.prompts(identities[share])]
        if self.config.lss_weight:
            sets += [self._augmented(identities, share, seed, copy) for copy in (0, 1)]
        encoded = self.encode(sets).float().chunk(len(sets))
        return [ranks.gather_rows(part)[: len(identities)] for part in encoded]

    def encode(self, sets: list[Tensor]) -> Tensor:
        """Encode prompts [n, L, W] and any copies of them in one call; returns [sets * n, D].

        Tokens before the learnable ones need no gradient unless swapped with them. All prompts
        begin with the same, and so do copies of which only the learnable tokens are augmented.
        """
        kind, first = self.config.augment, self.prompts.learnable.start
        is_all = self.config.augment_tokens == "all"
        if len(sets) > 1 and is_all and kind in ("swap", "swap_prompt"):
            return self.text(torch.cat(sets))
        beginnings, which = [sets[0][:1, :first]], [torch.zeros_like(sets[0][:, 0, 0]).long()]
        for number, copy in enumerate(sets[1:]):
            if is_all:
                beginnings.append(copy[:, :first])
                which.append(torch.arange(len(copy), device=copy.device) + 1 + number * len(copy))
            else:
                which.append(which[0])
        rest = torch.cat([each[:, first:] for each in sets])
        return self.text(rest, (torch.cat(beginnings), torch.cat(which)))

    def _augmented(self, identities: Tensor, share: Tensor, seed: int, copy: int) -> Tensor:
        """Return this rank's share of an augmented copy; the draws are those of the whole batch.

        All n prompts are augmented and the share is taken from that, so that the draws (and the
        partners of mix) do not depend on the number of ranks; that costs no encoding.
        """
        generator = torch.Generator().manual_seed(2 * seed + copy)
        augmented = augment_prompts(
            self.prompts(identities),
            kind=self.config.augment,
            scale=self.config.augment_scale,
            generator=generator,
            padding=self.prompts.padding,  # type: ignore[arg-type]
            context_length=self.text.context_length,
            keep=self.prompts.learnable if self.config.augment_tokens == "learnable" else None,
        )
        return augmented[share]


def loss_weights(config: Stage1) -> dict[str, float]:
    """Return what each loss of stage 1 counts."""
    return {"i2t": 1.0, "t2i": 1.0, "lss": config.lss_weight}


def optimizer(objective: PromptObjective, config: Stage1) -> torch.optim.Optimizer:
    """Adam with L2 decay over the prompts; identities outside a batch move by their moments too."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    return torch.optim.Adam(
        parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
    )


def lr_factor(config: Stage1, epoch: int) -> float:
    """Return the learning rate of an epoch (1 the first) in multiples of `config.lr`.

    Linear from `warmup_lr` over the warm-up epochs, then the cosine over all epochs to `lr_min`.
    """
    if epoch < config.warmup_epochs:
        rise = (config.lr - config.warmup_lr) / config.warmup_epochs
        return (config.warmup_lr + epoch * rise) / config.lr
    half = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    return (config.lr_min + (config.lr - config.lr_min) * half) / config.lr
