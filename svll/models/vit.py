"""CLIP's vision transformer as ReID uses it, and the features that any image encoder returns."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.base.errors import UserError
from svll.models.blocks import BlockCompiler, blocks_of, run_block, run_for_one


class ImageFeatures(NamedTuple):
    """An image's three features; letters as in the paper."""

    f11: Tensor
    """[B, W] class token before the last block, not normalised by ln_post; ResNet: [B, W / 2]."""
    f12: Tensor
    """[B, W] class token after the last block and ln_post."""
    fp: Tensor
    """[B, D] f12 projected into the joint space."""


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize positions [1 + h w, W], except the class token, from grid `old` to `new`, bilinear."""
    if tuple(old) == tuple(new):
        return positions
    token, grid = positions[:1], positions[1:]
    image = grid.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bilinear", align_corners=False)
    return torch.cat([token, image.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)])


class ImageEncoder(nn.Module):
    """CLIP's vision transformer at any input size and patch stride (OLP: stride < patch)."""

    per_sample = True
    """Features do not depend on the other images of a call (in a ResNet they do: batch norm)."""
    recompute = False
    """Compute blocks again in the backward pass, to save memory."""
    compiler: BlockCompiler | None = None
    """Compiles the blocks for training."""

    def __init__(self, visual: Any, *, height: int, width: int, stride: int | None) -> None:
        super().__init__()
        patch = visual.conv1.kernel_size
        step = stride or patch[0]
        if step > patch[0] or height < patch[0] or width < patch[1]:
            raise UserError(f"model.stride={step} and data {height}x{width} do not fit patches of "
                            f"{patch[0]}x{patch[1]} pixels")
        self.grid = ((height - patch[0]) // step + 1, (width - patch[1]) // step + 1)
        visual.conv1.stride = (step, step)
        visual.positional_embedding = nn.Parameter(
            resize_positions(visual.positional_embedding.detach(), visual.grid_size, self.grid)
        )
        self.visual = visual
        self.width = int(visual.class_embedding.shape[0])
        self.out = int(visual.proj.shape[1])

    def forward(self, images: Tensor, side: Tensor | None = None) -> ImageFeatures:
        """Encode normalised images [B, 3, H, W]; `side` [B, W] is added to the class token, SIE."""
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, L - 1, W]
        # not len(images): an ONNX export would make it a constant
        token = visual.class_embedding.expand(images.shape[0], 1, -1)
        if side is not None:
            token = token + side.unsqueeze(1)
        x = torch.cat([token.to(patches.dtype), patches], dim=1)
        x = visual.ln_pre(x + visual.positional_embedding.to(x.dtype))
        *body, last = blocks_of(visual.transformer)
        for block in body:
            x = run_block(block, x, recompute=self.recompute, compiler=self.compiler)
        f11 = x[:, 0]
        f12 = visual.ln_post(run_for_one(last, x, 0))
        return ImageFeatures(f11, f12, f12 @ visual.proj)
