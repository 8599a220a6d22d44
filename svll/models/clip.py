"""CLIP's two encoders as ReID uses them, around open_clip's modules and weights."""

import hashlib
import logging
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from harness.base.caches import quick_imports
from harness.base.errors import UserError
from svll.models.files.checkpoint import Kind, read_checkpoint
from svll.models.files.openai_archive import is_archive, read_archive
from svll.models.files.state_dict import StateDict
from svll.models.resnet import ResNetEncoder
from svll.models.text_encoder import TextEncoder
from svll.models.vit import ImageEncoder

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
TINY = "svll-tiny"
TINY_WEIGHTS = HERE / "svll-tiny.safetensors"
TINY_MERGES = HERE / "svll-tiny.txt.gz"
_READ_FAULTS = (
    RuntimeError, KeyError, OSError, ValueError, EOFError, StopIteration, AttributeError, TypeError,
    pickle.UnpicklingError, SafetensorError,
)
"""What open_clip raises for weights that it cannot load; each was seen."""
CLIPS = Kind(("visual.",), "visual.* and transformer.* of CLIP")


class Clip(NamedTuple):
    """The parts of a loaded CLIP."""

    image: ImageEncoder | ResNetEncoder
    text: TextEncoder
    tokenizer: Any
    weights_hash: str
    """Hash of the weights as loaded; part of every feature cache's key."""


def load_clip(
    name: str, weights: str | None, *, height: int, width: int, stride: int | None, seed: int = 0
) -> Clip:
    """Load an open_clip model by name with weights by tag or file (null: random by `seed`).

    The image encoder is resized to `height` x `width` pixels and the given patch stride.
    Raises UserError for an unknown name or tag, a missing or wrong file, an activation that the
    weights were not trained with, and an architecture other than a plain ViT or ResNet.
    """
    open_clip = import_open_clip()

    source = weights_source(name, weights)
    if source is None:
        log.warning("model.weights is null: CLIP starts from random weights")
    if source and Path(source).is_file():
        model = _model_of_file(name, Path(source))
    else:
        with torch.random.fork_rng(devices=[]), _named_faults(name, source):
            torch.manual_seed(seed)
            model = open_clip.create_model(name, pretrained=source, device="cpu")
    digest = weights_hash(model)
    image = image_encoder(model.visual, height=height, width=width, stride=stride)
    return Clip(image, TextEncoder(model), tokenizer_for(name), digest)


def import_open_clip() -> Any:
    """Import open_clip, which takes seconds; without wandb, which timm would import for half a
    second of no use here."""
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        with quick_imports():
            import open_clip
    finally:
        if hidden:
            del sys.modules["wandb"]
    return open_clip


def _model_of_file(name: str, file: Path) -> Any:
    """Return open_clip's model with the weights of a file; positions for images or texts of other
    lengths are resized as open_clip resizes them."""
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    model = empty_model(model_config(name))
    where = f"model.weights: {file} in {name}"
    if is_archive(file):
        state = read_archive(file)
    else:
        state = _read(name, file)
        if "logit_scale" in state and state["logit_scale"].numel() == 1:
            state["logit_scale"] = state["logit_scale"].reshape(model.logit_scale.shape)
        # what does not fit is named by load_into
        with suppress(RuntimeError, ValueError, IndexError, AssertionError):
            resize_pos_embed(state, model)
            resize_text_pos_embed(state, model)
    StateDict(state, where).load_into(model, assign=True)
    return model


def _read(name: str, file: Path) -> dict[str, Tensor]:
    try:
        return read_checkpoint(file, CLIPS)
    except UserError as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise UserError(f"model.weights: {file} does not fit {name}: {reason}") from None


def fetch(name: str, weights: str | None) -> None:
    """Download the weights of an open_clip tag, for jobs without network; UserError on failure."""
    open_clip = import_open_clip()

    source = weights_source(name, weights)
    if source is None or Path(source).is_file():
        return
    with _named_faults(name, source):
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, source))


def model_config(name: str) -> dict[str, Any]:
    """Return open_clip's configuration of a model, also the shipped one; UserError if unknown."""
    open_clip = import_open_clip()

    if TINY not in open_clip.list_models():  # adding one reads the files of all again
        open_clip.add_model_config(HERE / "svll-tiny.json")
    if name not in open_clip.list_models():
        near = [m for m in open_clip.list_models() if m.lower() == name.lower().replace("/", "-")]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"model.name: open_clip knows no model {name!r}{hint}")
    return dict(open_clip.get_model_config(name))


def empty_model(config: dict[str, Any]) -> Any:
    """Return open_clip's model of a configuration on the meta device: shapes without numbers."""
    open_clip = import_open_clip()

    with torch.device("meta"):
        return open_clip.CLIP(**config)


def image_encoder(
    visual: Any, *, height: int, width: int, stride: int | None
) -> ImageEncoder | ResNetEncoder:
    """Return open_clip's vision tower as ReID uses it, resized to the given input."""
    kind = ResNetEncoder if hasattr(visual, "attnpool") else ImageEncoder
    return kind(visual, height=height, width=width, stride=stride)


def _is_plain(config: dict[str, Any]) -> bool:
    """Whether features are a class token or attention pool, and the last token of causal text."""
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
    """Return the tokenizer of a model; the tiny model has its own small vocabulary."""
    open_clip = import_open_clip()

    if name == TINY:
        return open_clip.tokenizer.SimpleTokenizer(bpe_path=str(TINY_MERGES))
    return open_clip.get_tokenizer(name)


def weights_source(name: str, weights: str | None) -> str | None:
    """Return open_clip's `pretrained` for `model.weights`; raises UserError as `load_clip` does."""
    open_clip = import_open_clip()

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
    if Path(weights).is_file():
        if not is_archive(Path(weights)):
            return weights
        wants_quick = True
    elif weights in (tags := open_clip.list_pretrained_tags_by_model(name)):
        wants_quick = open_clip.get_pretrained_cfg(name, weights).get("quick_gelu", False)
    else:
        raise UserError(f"model.weights: {weights!r} is neither a file nor a tag of {name} (tags: "
                        f"{', '.join(tags) or 'none'})")
    if wants_quick != open_clip.get_model_config(name).get("quick_gelu", False):
        right = f"{name}-quickgelu" if wants_quick else name.removesuffix("-quickgelu")
        raise UserError(f"model.name: the weights {weights!r} were trained with "
                        f"{'QuickGELU' if wants_quick else 'GELU'}; use model.name={right}")
    return weights


@contextmanager
def _named_faults(name: str, source: str | None) -> Iterator[None]:
    """Turn a failure of open_clip in the body into a UserError that names model and weights, and
    silence the Hugging Face hub, which warns of each of some ten attempts."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    except _READ_FAULTS as error:
        lines = [line.strip() for line in str(error).strip().splitlines()]
        reason = " ".join(lines[:2])[:300] or type(error).__name__
        # torch's message recommends running the file's code
        if isinstance(error, pickle.UnpicklingError):
            reason = "not a checkpoint, or it holds more than tensors"
        raise UserError(
            f"model.weights: {source!r} of {name} could not be loaded: {reason}\n"
            "Without network, download the file elsewhere and give its path."
        ) from None
    finally:
        hub.setLevel(level)


def weights_hash(model: nn.Module) -> str:
    """Return 16 hex digits over every weight's name and bytes."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
