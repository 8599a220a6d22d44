"""CLIP's ResNets as CLIP-ReID uses them: the last stage keeps its resolution, pooled three ways.

Letters: B images, C channels, h x w positions of the last feature map, W width, D joint space.
"""

from typing import Any

import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.training import ranks
from svll.models.vit import ImageFeatures, resize_positions

REDUCTION = 16
"""Pixels of the input per position of the last feature map, on each side."""


class ResNetEncoder(nn.Module):
    """open_clip's ModifiedResNet at any input size whose sides are multiples of 16 pixels."""

    per_sample = False
    """Batch norm mixes the images of a call, so each view needs a separate call."""
    recompute = False
    """Never set: recomputing would update the running means of batch norm twice."""

    def __init__(self, visual: Any, *, height: int, width: int, stride: int | None) -> None:
        super().__init__()
        if stride not in (None, REDUCTION):
            raise UserError(f"model.stride={stride}: a ResNet has no stride; use model.stride=null")
        if height % REDUCTION or width % REDUCTION:
            raise UserError(f"data {height}x{width}: a ResNet needs multiples of {REDUCTION}")
        self.grid = (height // REDUCTION, width // REDUCTION)
        # the last stage keeps its resolution: its convolutions have stride 1
        visual.layer4[0].avgpool = visual.layer4[0].downsample[0] = nn.Identity()
        pool = visual.attnpool
        side = round((len(pool.positional_embedding) - 1) ** 0.5)
        pool.positional_embedding = nn.Parameter(
            resize_positions(pool.positional_embedding.detach(), (side, side), self.grid)
        )
        self.visual: Any = synchronised(visual)
        self.width = int(pool.c_proj.in_features)
        self.out = int(pool.c_proj.out_features)

    def forward(self, images: Tensor, side: Tensor | None = None) -> ImageFeatures:
        """Encode normalised images [B, 3, H, W].

        f11 [B, W / 2] and f12 [B, W] are means over the positions of the last two stages' outputs,
        fp [B, D] is the attention pool's. `side` must be None: there is no token to add it to.
        """
        assert side is None, "a ResNet takes no side information"
        visual = self.visual
        third = visual.layer3(visual.layer2(visual.layer1(visual.stem(images))))
        fourth = visual.layer4(third)  # [B, W, h, w]
        f11, f12 = third.mean(dim=(2, 3)), fourth.mean(dim=(2, 3))
        return ImageFeatures(f11, f12, visual.attnpool(fourth))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over all ranks' images; the host never waits for a GPU.

    torch's SyncBatchNorm runs on GPUs only, and the host waits three times in each of its calls.
    Gradients follow the scale stated in harness/training/ranks.py.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, h, w]; in training by the statistics of every rank's rows."""
        if not self.training or ranks.world_size() == 1:
            return super().forward(input)
        x = input.float()
        mean, variance, count = _global_statistics(x)
        self._update(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update(self: Any, mean: Tensor, unbiased: Tensor) -> None:
        """Update the running statistics [C]."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and number of values per channel over all ranks.

    Combining each rank's mean and variance needs one gather and, unlike a mean of squares, loses
    no digits where the mean is large.
    """
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    own = torch.cat([mean, variance, mean.new_full((1,), x.numel() / x.shape[1])])
    parts = ranks.gather_rows(own[None])  # [ranks, 2 C + 1]
    means, variances, counts = parts.split([x.shape[1], x.shape[1], 1], dim=1)
    share = counts / counts.sum()
    mean = (share * means).sum(dim=0)
    variance = (share * (variances + (means - mean).square())).sum(dim=0)
    return mean, variance, counts.detach().sum().double()


def synchronised(module: nn.Module) -> nn.Module:
    """Make every BatchNorm2d below `module` a SyncedBatchNorm2d; returns `module`."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SyncedBatchNorm2d
    return module
