"""TransReID (He et al., ICCV 2021) as published: a plain ViT, with or without its jigsaw branch.

Unlike CLIP: GELU, an epsilon of 1e-6, one matrix for query, key and value, and side information
added to all tokens. Letters: B images, L tokens, W width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svll.models.files.state_dict import StateDict
from svll.models.reid import SideInformation
from svll.models.trained_model import LoadedModel, published_model, published_side
from svll.models.weights.input_size import GivenSize

SIE_WEIGHT = 3.0
"""Coefficient of the side information in all published configurations."""
PARTS, GROUPS = 4, 2
"""Local features of the jigsaw branch, and groups that its tokens are shuffled into."""
SHIFTS = {True: 8, False: 5}
"""Tokens that the branch rotates by: square inputs (vehicles), others (persons)."""


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
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens [B, L, W] after this block."""
        mixed = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # each [B, heads, L, W / heads]
        found = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        x = x + self.attn["proj"](found.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class TransReID(nn.Module):
    """The test feature of the published models, with the names of the files."""

    def __init__(self, state: StateDict, given: GivenSize) -> None:
        super().__init__()
        tensors = state.below("base.")
        width, _, patch, _ = tensors.get("patch_embed.proj.weight", axes=4).shape
        positions = tensors.get("pos_embed", axes=3).shape[1]
        if not width or not patch:
            raise tensors.fault("its patches have no size")
        self.size, depth = given.match(positions - 1, patch=patch), tensors.count("blocks.")
        self.base: Any = nn.Module()
        stride = self.size.stride
        self.base.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride)})
        self.base.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.base.pos_embed = nn.Parameter(torch.empty(1, positions, width))
        self.base.blocks = nn.ModuleList(_block(tensors, width) for _ in range(depth))
        self.base.norm = nn.LayerNorm(width, eps=1e-6)
        self.is_jigsaw = bool(state.below("b1.").tensors)
        if self.is_jigsaw:
            self.b1, self.b2 = (
                nn.Sequential(_block(tensors, width), nn.LayerNorm(width, eps=1e-6))
                for _ in range(2)
            )
        self.feature_width = width * (1 + PARTS if self.is_jigsaw else 1)
        # base.fc is an ImageNet classifier that nothing uses
        used = {
            name: value for name, value in state.tensors.items()
            if name.startswith(("base.", "b1.", "b2."))
            and not name.startswith(("base.sie_embed", "base.fc."))
        }
        StateDict(used, state.where).load_into(self)
        self.side: SideInformation | None = None
        if "sie_embed" in tensors:
            vectors = tensors.get("sie_embed", axes=3)[:, 0]
            self.side = published_side(vectors, width, state.where, weight=SIE_WEIGHT)

    def encode_image(
        self, images: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return test features [B, W], or [B, 5 W] with the jigsaw branch, before BN."""
        patches = self.base.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        # not len(images): an ONNX export would make it a constant
        token = self.base.cls_token.expand(images.shape[0], -1, -1)
        x = torch.cat([token, patches], dim=1) + self.base.pos_embed
        if self.side is not None and camera is not None:
            view = torch.zeros_like(camera) if view is None else view
            x = x + self.side(camera, view)[:, None]
        *body, last = self.base.blocks
        for block in body:
            x = block(x)
        return self._with_parts(x) if self.is_jigsaw else self.base.norm(last(x))[:, 0]

    def _with_parts(self, x: Tensor) -> Tensor:
        """Return the global feature and four local ones, divided by 4 [B, 5 W]."""
        shuffled = _shuffled(x, SHIFTS[self.size.height == self.size.width])
        features = [self.b1(x)[:, 0]]
        for part in shuffled.split((x.shape[1] - 1) // PARTS, dim=1)[:PARTS]:
            local = self.b2(torch.cat([x[:, :1], part], dim=1))
            features.append(local[:, 0] / PARTS)
        return torch.cat(features, dim=1)


def _shuffled(x: Tensor, shift: int) -> Tensor:
    """Rotate the patches of [B, L, W] by `shift`, then take one of each group in turn."""
    rotated = torch.cat([x[:, shift:], x[:, 1:shift]], dim=1)
    if rotated.shape[1] % GROUPS:  # the published code repeats the last patch but one
        rotated = torch.cat([rotated, rotated[:, -2:-1]], dim=1)
    return rotated.unflatten(1, (GROUPS, -1)).transpose(1, 2).flatten(1, 2)


def _block(base: StateDict, width: int) -> Block:
    """Return the file's block; `vit_small`, without biases, has 8 heads but the scale of one."""
    bias = "blocks.0.attn.qkv.bias" in base
    hidden = len(base.get("blocks.0.mlp.fc1.weight", axes=2))
    heads = max(1, width // 64) if bias else 8
    if width % heads:
        raise base.fault(f"a width of {width} is none for {heads} heads")
    scale = (width / heads if bias else width) ** -0.5
    return Block(width, heads=heads, hidden=hidden, bias=bias, scale=scale)


def transreid_model(state: StateDict, given: GivenSize) -> LoadedModel:
    """Return the model of a state dict; raises UserError when a tensor is missing or unfit."""
    model = TransReID(state, given)
    name = "classifier.weight"
    identities = len(state.get(name, axes=2)) if name in state else 0
    return published_model(model, None, model.size, identities)
