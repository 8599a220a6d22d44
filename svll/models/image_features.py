"""The output of an image encoder, and position embeddings at another size."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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
