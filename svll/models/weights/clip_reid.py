"""Published weights of CLIP-ReID and SVLL-ReID: OpenAI's names inside of `build_transformer`'s.

The architecture is read from the tensors' sizes; heads are 64 wide and the activation is QuickGELU,
as in all of OpenAI's models. Layers that only training needs are left out.
"""

from typing import Any

from torch import Tensor, nn

from svll.models.clip import empty_model, image_encoder
from svll.models.files.state_dict import StateDict
from svll.models.reid import ReIDModel
from svll.models.text_encoder import TextEncoder
from svll.models.trained_model import LoadedModel, PromptedText, published_model, published_side
from svll.models.weights.input_size import GivenSize, InputSize

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of the ResNets; the transformers have 0.5."""
HEAD = 64
"""Width of an attention head."""


def clip_reid_model(state: StateDict, given: GivenSize) -> LoadedModel:
    """Return the model, with texts if the file has prompts; UserError for unfit tensors."""
    visual, text, prompts = map(state.below, ("image_encoder.", "text_encoder.", "prompt_learner."))
    is_vit = not visual.below("attnpool.").tensors
    size, vision, embed = (_vit if is_vit else _resnet)(visual, given)
    has_text = bool(text.tensors) and bool(prompts.tensors)
    config = {"embed_dim": embed, "quick_gelu": True, "vision_cfg": vision,
              "text_cfg": _text_config(text) if has_text else {}}
    try:
        clip = empty_model(config)
    except (ArithmeticError, ValueError, AssertionError, RuntimeError) as error:
        raise state.fault(f"no model has such sizes: {error}") from None
    encoder = image_encoder(clip.visual, height=size.height, width=size.width, stride=size.stride)
    visual.load_into(encoder.visual, assign=True)
    side = None
    if is_vit and "cv_embed" in state:
        vectors = state.get("cv_embed", axes=2)
        side = published_side(vectors, encoder.width, state.where, weight=1.0)
    prompted = _prompted_text(clip, text, prompts) if has_text else None
    colours = {} if is_vit else IMAGENET
    return published_model(ReIDModel(encoder, side), prompted, size, _identities(state), **colours)


def _vit(state: StateDict, given: GivenSize) -> tuple[InputSize, dict[str, Any], int]:
    """Return input size, open_clip's vision_cfg and the joint space's width of a transformer."""
    width, _, patch, _ = state.get("conv1.weight", axes=4).shape
    _check_heads(state, width)
    size = given.match(len(state.get("positional_embedding", axes=2)) - 1, patch=patch)
    layers = state.count("transformer.resblocks.")
    vision = {"image_size": patch, "patch_size": patch, "width": width, "layers": layers}
    return size, vision, state.get("proj", axes=2).shape[1]


def _resnet(state: StateDict, given: GivenSize) -> tuple[InputSize, dict[str, Any], int]:
    """Return what `_vit` does for a ResNet, whose feature map has a position per 16x16 pixels."""
    positions = len(state.get("attnpool.positional_embedding", axes=2)) - 1
    size = given.match(positions, patch=16, fixed_stride=16)
    width = len(state.get("layer1.0.conv1.weight", axes=4))
    layers = [state.count(f"layer{stage}.") for stage in (1, 2, 3, 4)]
    vision = {"image_size": 224, "patch_size": None, "width": width, "layers": layers}
    return size, vision, len(state.get("attnpool.c_proj.weight", axes=2))


def _text_config(state: StateDict) -> dict[str, Any]:
    length, width = state.get("positional_embedding", axes=2).shape
    _check_heads(state, width)
    return {
        "context_length": length, "vocab_size": 1, "width": width, "heads": width // 64,
        "layers": state.count("transformer.resblocks."),
    }


def _check_heads(state: StateDict, width: int) -> None:
    if width < HEAD or width % HEAD:
        raise state.fault(f"its width is {width}, expected a multiple of {HEAD}")


def _prompted_text(clip: Any, state: StateDict, prompts: StateDict) -> PromptedText:
    text = TextEncoder(clip)
    text.token_embedding = nn.Identity()  # the file has embedded prompts and no vocabulary
    state.load_into(text, assign=True)
    before, tokens, after = (
        prompts.get(name, axes=3, width=text.width)
        for name in ("token_prefix", "cls_ctx", "token_suffix")
    )
    if len(before) != 1 or len(after) != 1 or not after.shape[1]:
        raise prompts.fault("its token_prefix or token_suffix is empty, or has several rows")
    after = after[:, : _end_of_text(after[0])]
    length = before.shape[1] + tokens.shape[1] + after.shape[1]
    if length > text.context_length:
        raise prompts.fault(f"its prompts have {length} tokens, its text encoder takes up to "
                            f"{text.context_length}")
    return PromptedText(text, before, tokens, after)


def _end_of_text(after: Tensor) -> int:
    """Return the length of an embedded suffix [L, W] up to end-of-text; all padding is equal."""
    differs = (after != after[-1]).any(dim=1).nonzero()
    return int(differs.max()) + 1 if len(differs) else len(after)


def _identities(state: StateDict) -> int:
    """Return the number of classes, on which classifiers and prompts must agree."""
    axes = {"classifier.weight": 2, "classifier_proj.weight": 2, "prompt_learner.cls_ctx": 3}
    counts = {name: len(state.get(name, axes=n)) for name, n in axes.items() if name in state}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise state.fault(f"the number of identities differs between its parts: {listed}")
    return next(iter(counts.values()), 0)
