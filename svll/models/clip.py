"""CLIP's two encoders as ReID uses them, around open_clip's modules and weights.

Letters: B images or prompts, L tokens, W width of a tower, D joint space.
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from harness.errors import UserError
from svll.models.archives import is_archive, read_archive
from svll.models.blocks import KeysValues, blocks_of, keys_values, run_block, run_for_one
from svll.models.fitting import fit

if TYPE_CHECKING:  # it imports this module
    from svll.models.resnet import ResNetEncoder

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
TINY = "svll-tiny"
TINY_WEIGHTS = HERE / "svll-tiny.safetensors"
TINY_MERGES = HERE / "svll-tiny.txt.gz"
_READ_FAULTS = (
    RuntimeError, KeyError, OSError, ValueError, EOFError, StopIteration, AttributeError, TypeError,
    pickle.UnpicklingError, SafetensorError,
)
"""How open_clip fails on files that are no weights of the model, seen with each kind."""


class ImageFeatures(NamedTuple):
    """An image's three features; letters as in the paper."""

    f11: Tensor
    """[B, W] class token before the last block, not normalised by ln_post; ResNet: [B, W / 2]."""
    f12: Tensor
    """[B, W] class token after the last block and ln_post."""
    fp: Tensor
    """[B, D] f12 projected into the joint space."""


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP, taken apart."""

    image: "ImageEncoder | ResNetEncoder"
    text: "TextEncoder"
    tokenizer: Any
    weights_hash: str
    """Hash of the weights as loaded; part of every feature cache's key."""


def load_clip(
    name: str, weights: str | None, *, height: int, width: int, stride: int | None, seed: int = 0
) -> Clip:
    """Load an open_clip model by name with weights by tag or file (null: random by `seed`).

    The image encoder is resized to `height` x `width` pixels and the given patch stride.
    Raises UserError for an unknown name or tag, a missing or wrong file, an activation that the
    weights were not trained with, and an architecture that is no plain ViT or ResNet.
    """
    import open_clip  # takes four seconds: only where a model is really built

    source = weights_source(name, weights)
    if source is None:
        log.warning("model.weights is null: CLIP starts from random weights")
    if source and is_archive(Path(source)):
        return _from_archive(name, Path(source), height=height, width=width, stride=stride)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(open_clip, name, source)
    return _take_apart(model, name, height=height, width=width, stride=stride)


def fetch(name: str, weights: str | None) -> None:
    """Have the weights of an open_clip tag on disk, where jobs without network find them.

    Raises UserError for an unknown model or tag, and when they cannot be downloaded.
    """
    import open_clip

    source = weights_source(name, weights)
    if source is None or Path(source).is_file():
        return
    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, source))
    except _READ_FAULTS as error:
        raise _not_loaded(name, source, error) from None


def _from_archive(
    name: str, path: Path, *, height: int, width: int, stride: int | None
) -> Clip:
    model = empty_model(model_config(name))
    fit(model, read_archive(path), f"model.weights: {path} in {name}", assign=True)
    return _take_apart(model, name, height=height, width=width, stride=stride)


def _take_apart(
    model: Any, name: str, *, height: int, width: int, stride: int | None
) -> Clip:
    digest = weights_hash(model)
    image = image_encoder(model.visual, height=height, width=width, stride=stride)
    return Clip(image, TextEncoder(model), tokenizer_for(name), digest)


def model_config(name: str) -> dict[str, Any]:
    """Return open_clip's numbers of a model, the shipped one included; UserError if unknown."""
    import open_clip

    open_clip.add_model_config(HERE / "svll-tiny.json")
    if name not in open_clip.list_models():
        near = [m for m in open_clip.list_models() if m.lower() == name.lower().replace("/", "-")]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"model.name: open_clip knows no model {name!r}{hint}")
    return dict(open_clip.get_model_config(name))


def empty_model(config: dict[str, Any]) -> Any:
    """Return open_clip's model of a configuration on the meta device: shapes without numbers."""
    import open_clip

    with torch.device("meta"):
        return open_clip.CLIP(**config)


def image_encoder(
    visual: Any, *, height: int, width: int, stride: int | None
) -> "ImageEncoder | ResNetEncoder":
    """Return open_clip's vision tower as ReID uses it, resized to the given input."""
    from svll.models.resnet import ResNetEncoder  # it imports this module

    kind = ResNetEncoder if hasattr(visual, "attnpool") else ImageEncoder
    return kind(visual, height=height, width=width, stride=stride)


def _is_plain(config: dict[str, Any]) -> bool:
    """Whether features are read as here: class token or attention pool, causal text's last token.

    Asked before anything is downloaded or built; open_clip has other models of the same names.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    return (
        isinstance(vision.get("layers"), int | list)  # a list: ResNet
        and "timm_model_name" not in vision
        and vision.get("pool_type", "tok") == "tok"
        and not vision.get("attentional_pool")
        and not config.get("custom_text")
        and "hf_tokenizer_name" not in text
        and not text.get("no_causal_mask")
        and text.get("pool_type", "argmax") == "argmax"
    )


def tokenizer_for(name: str) -> Any:
    """Return the tokenizer of a model: the tiny model has a small vocabulary of its own."""
    import open_clip

    if name == TINY:
        return open_clip.tokenizer.SimpleTokenizer(bpe_path=str(TINY_MERGES))
    return open_clip.get_tokenizer(name)


def weights_source(name: str, weights: str | None) -> str | None:
    """Return what open_clip's `pretrained` takes for `model.weights`.

    Raises UserError as `load_clip` does for a name, a tag or an activation.
    """
    import open_clip

    if not _is_plain(model_config(name)):
        raise UserError(
            f"model.name: {name} has no plain vision and text transformer; choose a ViT or RN model"
        )
    if weights is None:
        return None
    if weights == "shipped":
        if name != TINY:
            raise UserError(f"model.weights: only {TINY} has shipped weights, not {name}")
        return str(TINY_WEIGHTS)
    has_quick = open_clip.get_model_config(name).get("quick_gelu", False)
    if Path(weights).is_file():
        if is_archive(Path(weights)) and not has_quick:
            raise UserError(
                f"model.name: {weights} is a TorchScript archive of OpenAI, whose weights were "
                f"trained with QuickGELU; use model.name={name}-quickgelu"
            )
        return weights
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags:
        raise UserError(
            f"model.weights: {weights!r} is neither a file nor a tag of {name}"
            f" (tags: {', '.join(tags) or 'none'})"
        )
    wants_quick = open_clip.get_pretrained_cfg(name, weights).get("quick_gelu", False)
    if wants_quick != has_quick:
        right = f"{name}-quickgelu" if wants_quick else name.removesuffix("-quickgelu")
        raise UserError(
            f"model.name: the weights {weights!r} were trained with "
            f"{'QuickGELU' if wants_quick else 'GELU'}; use model.name={right}"
        )
    return weights


def _create(open_clip: Any, name: str, source: str | None) -> nn.Module:
    try:
        return open_clip.create_model(name, pretrained=source, device="cpu")
    except _READ_FAULTS as error:
        reason = _reason(error)
        if source and Path(source).is_file():
            raise UserError(f"model.weights: {source} does not fit {name}: {reason}") from None
        raise _not_loaded(name, source, error) from None


def _not_loaded(name: str, source: str | None, error: Exception) -> UserError:
    return UserError(
        f"model.weights: {source!r} of {name} could not be loaded: {_reason(error)}\n"
        "Without network, download the file elsewhere and give its path."
    )


def _reason(error: Exception) -> str:
    """Say in a line why weights could not be read."""
    # torch's own text advises to execute what the file says
    if isinstance(error, pickle.UnpicklingError):
        return "it is no checkpoint, or holds more than tensors"
    lines = [line.strip() for line in str(error).strip().splitlines()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def weights_hash(model: nn.Module) -> str:
    """Return 16 hex digits over every weight's name and bytes."""
    import hashlib

    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class ImageEncoder(nn.Module):
    """CLIP's vision transformer at any input size and patch stride (OLP: stride < patch)."""

    per_sample = True
    """An image's features do not depend on the others of its call (ResNet: batch norm)."""
    recompute = False
    """Whether blocks are computed again in the backward pass, for the sake of memory."""

    def __init__(self, visual: Any, *, height: int, width: int, stride: int | None) -> None:
        super().__init__()
        patch = visual.conv1.kernel_size
        step = stride or patch[0]
        if step > patch[0] or height < patch[0] or width < patch[1]:
            raise UserError(
                f"model.stride={step} and data {height}x{width} do not go with patches of "
                f"{patch[0]}x{patch[1]} pixels"
            )
        self.grid = ((height - patch[0]) // step + 1, (width - patch[1]) // step + 1)
        visual.conv1.stride = (step, step)
        visual.positional_embedding = nn.Parameter(
            resize_positions(visual.positional_embedding.detach(), visual.grid_size, self.grid)
        )
        self.visual = visual
        self.width = self.f11_width = int(visual.class_embedding.shape[0])
        self.out = int(visual.proj.shape[1])
        self.feature_dim = self.width + self.out
        """Width of the test feature, f12 and fp side by side."""

    def forward(self, images: Tensor, side: Tensor | None = None) -> ImageFeatures:
        """Encode normalised images [B, 3, H, W].

        `side` [B, W] is added to the class token before positions and ln_pre (SIE).
        """
        visual = self.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, L - 1, W]
        # not len(images), which an export to ONNX would take for a constant
        token = visual.class_embedding.expand(images.shape[0], 1, -1)
        if side is not None:
            token = token + side.unsqueeze(1)
        x = torch.cat([token.to(patches.dtype), patches], dim=1)
        x = visual.ln_pre(x + visual.positional_embedding.to(x.dtype))
        *body, last = blocks_of(visual.transformer)
        for block in body:
            x = run_block(block, x, again=self.recompute)
        f11 = x[:, 0]
        f12 = visual.ln_post(run_for_one(last, x, 0))
        return ImageFeatures(f11, f12, f12 @ visual.proj)


class TextEncoder(nn.Module):
    """CLIP's causal text transformer, fed with embeddings instead of token ids."""

    recompute = False
    """Whether blocks are computed again in the backward pass, for the sake of memory."""

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

    def forward(
        self, prompts: Tensor, constant: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Encode embedded prompts [B, L, W] whose last token is end-of-text; returns [B, D].

        What stands after end-of-text cannot change the feature (the attention is causal), so L is
        that of the prompt, not the context length: 7 times less work at 12 tokens of 77.

        constant: what prompts begin with, if it needs no gradient, [P, K, W], and which of these
        each has, [B]. They are encoded once each, and nothing is kept of that for the backward
        pass.
        """
        first = 0 if constant is None else constant[0].shape[1]
        length = first + prompts.shape[1]
        assert length <= self.context_length
        mask = self.mask[first:length, :length]  # type: ignore[index]
        *body, last = blocks_of(self.transformer)
        before: list[KeysValues | None] = [None] * (len(body) + 1)
        if constant is not None:
            before = [*self._before(*constant)]
        x = prompts + self.positional_embedding[first:length].to(prompts.dtype)
        for block, given in zip(body, before[:-1], strict=True):
            x = run_block(block, x, mask=mask, before=given, again=self.recompute)
        x = run_for_one(last, x, -1, before=before[-1])
        return self.ln_final(x) @ self.text_projection

    @torch.no_grad()
    def _before(self, constant: Tensor, which: Tensor) -> list[KeysValues]:
        """Return what beginnings [P, K, W] give to the prompts [B] after them, by block."""
        blocks = blocks_of(self.transformer)
        length = constant.shape[1]
        mask = self.mask[:length, :length]  # type: ignore[index]
        x = constant + self.positional_embedding[:length].to(constant.dtype)
        found = []
        for number, block in enumerate(blocks):
            each = keys_values(block, x)
            found.append(KeysValues(each.keys[which], each.values[which]))
            if number < len(blocks) - 1:
                x = run_block(block, x, mask=mask)
        return found


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize positional embeddings [1 + h w, W] from grid `old` to `new`, bilinear (CLIP-ReID).

    The class token's row is kept as it is.
    """
    if tuple(old) == tuple(new):
        return positions
    token, grid = positions[:1], positions[1:]
    image = grid.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bilinear", align_corners=False)
    return torch.cat([token, image.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)])
