"""Published weights of CLIP-ReID and SVLL-ReID: OpenAI's names inside of `build_transformer`'s.

The architecture is read from the tensors' sizes; heads are 64 wide and the activation is QuickGELU,
as in all of OpenAI's models. What only training needs (necks, classifiers, projection heads) is
left out.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from harness.base.errors import UserError
from svll.models.clip import empty_model, image_encoder
from svll.models.fit import below, fit, need
from svll.models.reid import ReIDModel
from svll.models.text_encoder import TextEncoder
from svll.models.trained_model import LoadedModel, PromptedText, published_labels, side_information
from svll.models.weights.input_size import Size, Wanted

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of the colours, with which the ResNets were trained, not the transformers."""
State = Mapping[str, Tensor]


def clip_reid_model(state: State, wanted: Wanted) -> LoadedModel:
    """Return the model of a state dict; raises UserError when a tensor is missing or does not fit.

    Without prompts in the file (the image-only baselines) there are no text features.
    """
    visual = below(state, "image_encoder.")
    is_vit = not any(name.startswith("attnpool.") for name in visual)
    size, vision, embed = (_vit if is_vit else _resnet)(visual, wanted)
    text = below(state, "text_encoder.")
    prompts = below(state, "prompt_learner.")
    with_text = bool(text) and bool(prompts)
    clip = empty_model({
        "embed_dim": embed, "quick_gelu": True, "vision_cfg": vision,
        "text_cfg": _text_numbers(text, wanted) if with_text else {},
    })
    encoder = image_encoder(
        clip.visual, height=size.height, width=size.width, stride=size.stride
    )
    fit(encoder.visual, visual, wanted.where, prefix="image_encoder.", assign=True)
    side = None
    if is_vit and "cv_embed" in state:
        vectors = need(state, "cv_embed", wanted.where, axes=2)
        side = side_information(vectors, encoder.width, wanted.where, weight=1.0)
    mean, std = (HALF, HALF) if is_vit else IMAGENET
    return LoadedModel(
        ReIDModel(encoder, side), _texts(clip, text, prompts, wanted) if with_text else None,
        height=size.height, width=size.width, mean=mean, std=std,
        side_labels=published_labels(side),
        identities=_identities(state, wanted),
    )


def _vit(state: State, wanted: Wanted) -> tuple[Size, dict[str, Any], int]:
    """Return input size, open_clip's numbers and the joint space's width of a transformer."""
    width, _, patch, _ = need(state, "conv1.weight", wanted.where, "image_encoder.", axes=4).shape
    positions = need(state, "positional_embedding", wanted.where, "image_encoder.", axes=2)
    size = wanted.size(len(positions) - 1, patch=patch)
    layers = _count(state, "transformer.resblocks.")
    vision = {"image_size": patch, "patch_size": patch, "width": width, "layers": layers}
    return size, vision, need(state, "proj", wanted.where, "image_encoder.", axes=2).shape[1]


def _resnet(state: State, wanted: Wanted) -> tuple[Size, dict[str, Any], int]:
    """The same of a ResNet, whose last feature map has a position per 16x16 pixels."""
    where, start = wanted.where, "image_encoder."
    positions = need(state, "attnpool.positional_embedding", where, start, axes=2)
    size = wanted.size(len(positions) - 1, patch=16, fixed_stride=16)
    width = len(need(state, "layer1.0.conv1.weight", where, start, axes=4))
    layers = [_count(state, f"layer{stage}.") for stage in (1, 2, 3, 4)]
    vision = {"image_size": 224, "patch_size": None, "width": width, "layers": layers}
    return size, vision, len(need(state, "attnpool.c_proj.weight", where, start, axes=2))


def _text_numbers(state: State, wanted: Wanted) -> dict[str, Any]:
    positions = need(state, "positional_embedding", wanted.where, "text_encoder.", axes=2)
    length, width = positions.shape
    return {
        "context_length": length, "vocab_size": 1, "width": width, "heads": max(1, width // 64),
        "layers": _count(state, "transformer.resblocks."),
    }


def _count(state: State, prefix: str) -> int:
    """Return how many numbered parts stand below a prefix."""
    return len({name.split(".")[0] for name in below(state, prefix)})


def _texts(clip: Any, state: State, prompts: State, wanted: Wanted) -> PromptedText:
    text = TextEncoder(clip)
    text.token_embedding = nn.Identity()  # the file has embedded prompts and no vocabulary
    fit(text, state, wanted.where, prefix="text_encoder.", assign=True)
    before, tokens, after = (
        _prompt_part(prompts, name, text.width, wanted)
        for name in ("token_prefix", "cls_ctx", "token_suffix")
    )
    return PromptedText(text, before, tokens, after[:, : _end_of_text(after[0])])


def _end_of_text(after: Tensor) -> int:
    """Return the length of an embedded suffix [L, W] up to end-of-text; padding is all alike."""
    differs = (after != after[-1]).any(dim=1).nonzero()
    return int(differs.max()) + 1 if len(differs) else len(after)


def _prompt_part(state: State, name: str, width: int, wanted: Wanted) -> Tensor:
    """Return embedded tokens [1 or N, L, W], which must be as wide as the text encoder."""
    found = need(state, name, wanted.where, "prompt_learner.", axes=3)
    if found.shape[2] != width:
        raise UserError(
            f"{wanted.where}: does not fit: prompt_learner.{name} is {list(found.shape)} in the "
            f"file, {[*found.shape[:2], width]} here"
        )
    return found


def _identities(state: State, wanted: Wanted) -> int:
    """Return the number of classes, on which classifiers and prompts must agree."""
    names = ("classifier.weight", "classifier_proj.weight", "prompt_learner.cls_ctx")
    counts = {name: len(state[name]) for name in names if name in state}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"{wanted.where}: its parts count different identities: {listed}")
    return next(iter(counts.values()), 0)
