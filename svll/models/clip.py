"""CLIP's two encoders as ReID uses them, around open_clip's modules and weights.

Letters: B images or prompts, L tokens, W width of a tower, D joint space.
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from harness.base.errors import UserError
from svll.models.fit import fit
from svll.models.openai_archive import is_archive, read_archive
from svll.models.text_encoder import TextEncoder
from svll.models.vit import ImageEncoder

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


