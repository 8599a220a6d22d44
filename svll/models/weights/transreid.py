"""TransReID (He et al., ICCV 2021) as published: a plain ViT, with or without its jigsaw branch.

Unlike CLIP: GELU, an epsilon of 1e-6, one matrix for query, key and value, and side information
added to all tokens. Letters: B images, L tokens, W width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svll.models.fit import below, fit, need
from svll.models.reid import SideInformation
from svll.models.trained_model import LoadedModel, published_labels, side_information
from svll.models.weights.input_size import Wanted

SIE_WEIGHT = 3.0
"""Coefficient of the side information in all published configurations."""
PARTS, GROUPS = 4, 2
"""Local features of the jigsaw branch, and groups that its tokens are dealt into."""
SHIFTS = {True: 8, False: 5}
"""By how many tokens the branch turns them: square inputs (vehicles), others (persons)."""
HALF = (0.5, 0.5, 0.5)


class Block(nn.Module):
    """A transformer block, normalised before attention and MLP."""

    def __init__(self, width: int, *, heads: int, hidden: int, bias: bool, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({
            "qkv": nn.Linear(width, 3 * width, bias=bias), "proj": nn.Linear(width, width),
        })
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({
            "fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width),
        })

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens [B, L, W] after this block."""
        mixed = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # each [B, heads, L, W / heads]
        found = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        x = x + self.attn["proj"](found.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Base(nn.Module):
    """All but what is done with the last block's input; named as in the files."""

    def __init__(self, state: Mapping[str, Tensor], wanted: Wanted) -> None:
        super().__init__()
        first = need(state, "patch_embed.proj.weight", wanted.where, "base.", axes=4)
        width, _, patch, _ = first.shape
        positions = need(state, "pos_embed", wanted.where, "base.", axes=3).shape[1]
        self.size = wanted.size(positions - 1, patch=patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, self.size.stride)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, positions, width))
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        self.blocks = nn.ModuleList(_block(state, width, wanted.where) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)


class TransReID(nn.Module):
    """The test feature of the published models."""

    def __init__(self, state: Mapping[str, Tensor], wanted: Wanted) -> None:
        super().__init__()
        base = below(state, "base.")
        self.base = Base(base, wanted)
        self.size, width = self.base.size, self.base.cls_token.shape[2]
        self.is_jigsaw = any(name.startswith("b1.") for name in state)
        if self.is_jigsaw:
            self.b1, self.b2 = (
                nn.Sequential(_block(base, width, wanted.where), nn.LayerNorm(width, eps=1e-6))
                for _ in range(2)
            )
        # base.fc is a classifier of ImageNet's that nothing uses
        unused = ("base.sie_embed", "base.fc.")
        used = {
            name: value for name, value in state.items()
            if name.startswith(("base.", "b1.", "b2.")) and not name.startswith(unused)
        }
        fit(self, used, wanted.where)
        self.side: SideInformation | None = None
        if "sie_embed" in base:
            vectors = need(base, "sie_embed", wanted.where, "base.", axes=3)[:, 0]
            self.side = side_information(vectors, width, wanted.where, weight=SIE_WEIGHT)

    def encode_image(
        self, images: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return test features [B, W], or [B, 5 W] with the jigsaw branch, before BN."""
        patches = self.base.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        # not len(images), which an export to ONNX would take for a constant
        token = self.base.cls_token.expand(images.shape[0], -1, -1)
        x = torch.cat([token, patches], dim=1)
        x = x + self.base.pos_embed
        if self.side is not None and camera is not None:
            view = torch.zeros_like(camera) if view is None else view
            x = x + self.side(camera, view)[:, None]
        *body, last = self.base.blocks
        for block in body:
            x = block(x)
        return self._with_parts(x) if self.is_jigsaw else self.base.norm(last(x))[:, 0]

    def _with_parts(self, x: Tensor) -> Tensor:
        """Return the global feature beside four local ones of a quarter [B, 5 W]."""
        dealt = _dealt(x, SHIFTS[self.size.height == self.size.width])
        length = (x.shape[1] - 1) // PARTS
        features = [self.b1(x)[:, 0]]
        for part in dealt.split(length, dim=1)[:PARTS]:
            local = self.b2(torch.cat([x[:, :1], part], dim=1))
            features.append(local[:, 0] / PARTS)
        return torch.cat(features, dim=1)


def _dealt(x: Tensor, shift: int) -> Tensor:
    """Turn the patches of [B, L, W] by `shift` and deal them out in turn from each group.

    An odd number of patches gets one more; the published code repeats the last but one.
    """
    turned = torch.cat([x[:, shift:], x[:, 1:shift]], dim=1)
    if turned.shape[1] % GROUPS:
        turned = torch.cat([turned, turned[:, -2:-1]], dim=1)
    return turned.unflatten(1, (GROUPS, -1)).transpose(1, 2).flatten(1, 2)


def _block(base: Mapping[str, Tensor], width: int, where: str) -> Block:
    """Return a block of the file's architecture; all are alike.

    `vit_small`, told by its missing biases, has 8 heads and scales as if it had one.
    """
    bias = "blocks.0.attn.qkv.bias" in base
    hidden = len(need(base, "blocks.0.mlp.fc1.weight", where, "base.", axes=2))
    heads = max(1, width // 64) if bias else 8
    scale = (width / heads if bias else width) ** -0.5
    return Block(width, heads=heads, hidden=hidden, bias=bias, scale=scale)


def transreid_model(state: Mapping[str, Tensor], wanted: Wanted) -> LoadedModel:
    """Return the model of a state dict; raises UserError when a tensor is missing or unfit."""
    model = TransReID(state, wanted)
    side, size = model.side, model.size
    return LoadedModel(
        model, None, height=size.height, width=size.width, mean=HALF, std=HALF,
        side_labels=published_labels(side),
        identities=len(state.get("classifier.weight", ())),
    )
