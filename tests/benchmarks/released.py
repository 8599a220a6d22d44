"""Both stages as the released code computes them: the baselines of the training benchmarks.

The losses are ours, so that what both ways compute can be compared. Letters: B images, n distinct
identities, N identities, L = 77 tokens, W width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from svll.config import Stage1
from svll.losses import agreement_loss, supcon_loss
from svll.models.prompts import PromptLearner
from svll.models.text_encoder import TextEncoder
from svll.models.vit import ImageFeatures
from svll.stage2 import ImageBatch, ImageObjective


class ReleasedPrompts:
    """Stage 1: all 77 tokens, one prompt per sample, and the copies augmented one by one."""

    def __init__(
        self, prompts: PromptLearner, text: TextEncoder, head: nn.Module, config: Stage1
    ) -> None:
        self.prompts, self.text, self.head, self.config = prompts, text, head, config
        self.end = prompts.length - 1
        rest = torch.as_tensor(prompts.padding).expand(text.context_length - prompts.length, -1)
        self.rest = rest

    def embedded(self, labels: Tensor) -> Tensor:
        """Return the prompts [B, 77, W] of samples by their labels [B]."""
        return torch.cat(
            [self.prompts(labels), self.rest.expand(len(labels), -1, -1)], dim=1
        )

    def augmented(self, prompts: Tensor, generator: torch.Generator) -> Tensor:
        """Return a copy of prompts [n, 77, W] with a share of their numbers set to zero."""
        scale = self.config.augment_scale
        return torch.stack([
            prompt * (torch.rand(prompt.shape, generator=generator) >= scale).to(prompt)
            for prompt in prompts
        ])

    def encode(self, prompts: Tensor) -> Tensor:
        """Return the text features [B, D] of embedded prompts [B, 77, W]."""
        text = self.text
        x = prompts + text.positional_embedding
        x = text.transformer(x, attn_mask=text.mask)
        return text.ln_final(x)[:, self.end] @ text.text_projection

    def losses(self, features: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the losses of a batch of image features [B, D] and labels [B]."""
        text = self.encode(self.embedded(labels))
        losses = {
            "i2t": supcon_loss(features, text, labels, labels),
            "t2i": supcon_loss(text, features, labels, labels),
        }
        if not self.config.lss_weight:
            return losses
        distinct = self.embedded(labels.unique())
        copies = [
            self.encode(self.augmented(distinct, torch.Generator().manual_seed(seed + copy)))
            for copy in (0, 1)
        ]
        return losses | {
            "lss": agreement_loss(
                self.head, *copies, kind="ntxent", temperature=self.config.lss_temperature
            ),
        }


def encode_image(visual: Any, images: Tensor, side: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return f11, f12 and fp of normalised images [B, 3, H, W] by CLIP's own modules.

    ln_post and the projection are of all tokens, of which one is then taken.
    """
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    token = visual.class_embedding.expand(len(images), 1, -1)
    if side is not None:
        token = token + side.unsqueeze(1)
    x = visual.ln_pre(torch.cat([token, patches], dim=1) + visual.positional_embedding)
    *body, last = visual.transformer.resblocks
    for block in body:
        x = block(x)
    normed = visual.ln_post(last(x))
    return x[:, 0], normed[:, 0], (normed @ visual.proj)[:, 0]


def image_losses(objective: ImageObjective, batch: ImageBatch) -> dict[str, Tensor]:
    """Return the losses of a batch in stage 2: three calls of CLIP's own modules, our formulas."""
    model = objective.model
    visual = model.encoder.visual
    side = None if model.side is None else model.side(batch.camera, batch.view)
    main, *others = batch.views
    return objective.losses(
        ImageFeatures(*encode_image(visual, main, side)),
        [encode_image(visual, view)[1] for view in others], batch.identities,
    )


def optimizer(objective: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam with a group for each parameter, biases at twice the learning rate."""
    groups = [
        {"params": [p], "lr": lr * (2 if "bias" in name else 1), "weight_decay": weight_decay}
        for name, p in objective.named_parameters() if p.requires_grad
    ]
    return torch.optim.Adam(groups)
