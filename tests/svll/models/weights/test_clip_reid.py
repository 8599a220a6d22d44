"""CLIP-ReID's and SVLL-ReID's files give the features that their architecture means."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from svll.models import load_model
from svll.models.resnet import ResNetEncoder

WIDTH, JOINT, TEXT, N, M = 128, 32, 64, 7, 4
State = dict[str, Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def transformer_state(width: int, layers: int) -> State:
    state = {}
    for layer in range(layers):
        for name, shape in {
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,), "ln_1.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
            "ln_2.weight": (width,), "ln_2.bias": (width,),
        }.items():
            state[f"transformer.resblocks.{layer}.{name}"] = numbers(*shape)
    return state


def vit_state(tokens: int, patch: int = 16) -> State:
    return transformer_state(WIDTH, 3) | {
        "conv1.weight": numbers(WIDTH, 3, patch, patch), "class_embedding": numbers(WIDTH),
        "positional_embedding": numbers(1 + tokens, WIDTH),
        "ln_pre.weight": 1 + numbers(WIDTH), "ln_pre.bias": numbers(WIDTH),
        "ln_post.weight": 1 + numbers(WIDTH), "ln_post.bias": numbers(WIDTH),
        "proj": numbers(WIDTH, JOINT),
    }


def text_state() -> State:
    return transformer_state(TEXT, 2) | {
        "positional_embedding": numbers(77, TEXT), "ln_final.weight": 1 + numbers(TEXT),
        "ln_final.bias": numbers(TEXT), "text_projection": numbers(TEXT, JOINT),
    }


def published(tokens: int = 128, sie: int = 6) -> State:
    """A whole file: noun, full stop and end-of-text, then padding that is all alike."""
    torch.manual_seed(0)
    suffix = torch.cat([numbers(1, 3, TEXT), numbers(1, 1, TEXT).expand(1, 65, TEXT)], dim=1)
    return {
        **{f"image_encoder.{name}": value for name, value in vit_state(tokens).items()},
        **{f"text_encoder.{name}": value for name, value in text_state().items()},
        "cv_embed": numbers(sie, WIDTH),
        "classifier.weight": numbers(N, WIDTH), "classifier_proj.weight": numbers(N, JOINT),
        "bottleneck.weight": numbers(WIDTH), "bottleneck_proj.running_var": numbers(JOINT),
        "bottleneck.num_batches_tracked": torch.tensor(9),
        "prompt_learner.cls_ctx": numbers(N, M, TEXT),
        "prompt_learner.token_prefix": numbers(1, 5, TEXT),
        "prompt_learner.token_suffix": suffix,
        "image_mlp.layer1.weight": numbers(4, WIDTH), "text_mlp.bn1.running_mean": numbers(4),
    }


# --- the architecture, written again ---


def normed(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
    return centred * scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def block(state: State, name: str, x: Tensor, *, causal: bool) -> Tensor:
    """One block of [L, W], heads of 64 one after the other."""
    length, width = x.shape
    y = normed(state, f"{name}.ln_1", x)
    mixed = y @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
    query, key, value = mixed.chunk(3, dim=1)
    heads = []
    for first in range(0, width, 64):
        part = slice(first, first + 64)
        logits = query[:, part] @ key[:, part].T / 8
        if causal:
            logits = logits.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf)
        heads.append(logits.softmax(dim=1) @ value[:, part])
    found = torch.cat(heads, dim=1) @ state[f"{name}.attn.out_proj.weight"].T
    x = x + found + state[f"{name}.attn.out_proj.bias"]
    y = normed(state, f"{name}.ln_2", x)
    y = y @ state[f"{name}.mlp.c_fc.weight"].T + state[f"{name}.mlp.c_fc.bias"]
    y = y / (1 + torch.exp(-1.702 * y))
    return x + y @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]


def image_feature(state: State, image: Tensor, stride: int, side: Tensor | None = None) -> Tensor:
    """f12 beside fp of one image [3, H, W]."""
    own = {name.removeprefix("image_encoder."): v for name, v in state.items()}
    patch = own["conv1.weight"].shape[2]
    rows = [
        (own["conv1.weight"] * image[:, y : y + patch, x : x + patch]).sum(dim=(1, 2, 3))
        for y in range(0, image.shape[1] - patch + 1, stride)
        for x in range(0, image.shape[2] - patch + 1, stride)
    ]
    token = own["class_embedding"] if side is None else own["class_embedding"] + side
    x = normed(own, "ln_pre", torch.stack([token, *rows]) + own["positional_embedding"])
    for layer in range(3):
        x = block(own, f"transformer.resblocks.{layer}", x, causal=False)
    f12 = normed(own, "ln_post", x[0])
    return torch.cat([f12, f12 @ own["proj"]])


def text_feature(state: State, identity: int) -> Tensor:
    """The prompt's feature by all 77 positions, read at end-of-text."""
    own = {name.removeprefix("text_encoder."): v for name, v in state.items()}
    prompt = [state[f"prompt_learner.{name}"] for name in ("token_prefix", "token_suffix")]
    x = torch.cat([prompt[0][0], state["prompt_learner.cls_ctx"][identity], prompt[1][0]])
    x = x + own["positional_embedding"]
    for layer in range(2):
        x = block(own, f"transformer.resblocks.{layer}", x, causal=True)
    return normed(own, "ln_final", x[5 + M + 2]) @ own["text_projection"]


def saved(folder: Path, state: Any) -> Path:
    path = folder / "ViT-B-16_60.pth"
    torch.save(state, path)
    return path


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "size", "stride"),
    [(128, (256, 128), 16), (210, (256, 128), 12), (256, (256, 256), 16)],
)
def test_image_features_are_those_of_the_architecture(
    tmp_path: Path, tokens: int, size: tuple[int, int], stride: int
) -> None:
    state = published(tokens)
    model = load_model(saved(tmp_path, state))
    assert (model.height, model.width) == size
    assert model.mean == model.std == (0.5, 0.5, 0.5)
    images, camera = torch.randn(2, 3, *size), torch.tensor([5, 2])
    plain = torch.stack([image_feature(state, image, stride) for image in images])
    close(model.encode_image(images), plain)
    sided = [
        image_feature(state, image, stride, state["cv_embed"][place])
        for image, place in zip(images, (5, 2), strict=True)
    ]
    close(model.encode_image(images, camera), torch.stack(sided))
    assert (plain - torch.stack(sided)).abs().max() > 0.01


def test_text_features_are_those_of_all_77_positions(tmp_path: Path) -> None:
    state = published()
    model = load_model(saved(tmp_path, state))
    expected = torch.stack([text_feature(state, identity) for identity in (3, 0, 6)])
    close(model.encode_text(torch.tensor([3, 0, 6])), expected)
    with pytest.raises(UserError, match="identities go from 0 to 6, found -1 to 7"):
        model.encode_text(torch.tensor([7, -1]))


def test_counts_are_read_from_the_file(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, published(sie=6)))
    labels = model.side_labels
    assert (labels.places("", range(8))[0].tolist()) == [-1, 0, 1, 2, 3, 4, 5, -1]
    assert (labels.camera_count, labels.view_count, model.identities) == (6, 1, N)


def test_160_vectors_are_20_cameras_by_8_views(tmp_path: Path) -> None:
    state = published(256, sie=160)
    model = load_model(saved(tmp_path, state))
    assert (model.side_labels.camera_count, model.side_labels.view_count) == (20, 8)
    image = torch.randn(1, 3, 256, 256)
    expected = image_feature(state, image[0], 16, state["cv_embed"][13 * 8 + 5])
    close(model.encode_image(image, torch.tensor([13]), torch.tensor([5]))[0], expected)


@pytest.mark.parametrize("wrap", ["module", "state_dict", "model", "half"])
def test_wrappings_make_no_difference(tmp_path: Path, wrap: str) -> None:
    state = published()
    image = torch.randn(1, 3, 256, 128)
    expected = load_model(saved(tmp_path, state)).encode_image(image)
    wrapped: Any = {wrap: state, "epoch": 60}
    if wrap == "module":
        wrapped = {f"module.{name}": value for name, value in state.items()}
    if wrap == "half":
        wrapped = {n: v.half() if v.is_floating_point() else v for n, v in state.items()}
    found = load_model(saved(tmp_path, wrapped)).encode_image(image)
    assert found.dtype == torch.float32
    error = 0.05 if wrap == "half" else 0
    torch.testing.assert_close(found, expected, rtol=0, atol=error)


def test_a_baseline_without_prompts_has_no_text_features(tmp_path: Path) -> None:
    kept = ("image_encoder.", "classifier.")
    state = {name: value for name, value in published().items() if name.startswith(kept)}
    model = load_model(saved(tmp_path, state))
    assert (model.identities, model.side_labels.datasets) == (N, ())
    with pytest.raises(UserError, match="trained without texts"):
        model.encode_text(torch.tensor([0]))


def test_a_resnet_is_read_with_imagenets_colours(tmp_path: Path) -> None:
    torch.manual_seed(1)
    visual = open_clip.modified_resnet.ModifiedResNet(
        [1, 2, 1, 1], output_dim=24, heads=8 * 32 // 64, width=8
    )
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
    encoder = ResNetEncoder(visual, height=256, width=128, stride=None).eval()
    state = {f"image_encoder.{n}": v for n, v in encoder.visual.state_dict().items()}
    model = load_model(saved(tmp_path, state | {"classifier.weight": numbers(N, 256)}))
    assert (model.height, model.width, model.identities) == (256, 128, N)
    assert (model.mean, model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = torch.randn(2, 3, 256, 128)
    with torch.no_grad():
        found = encoder(images)
    close(model.encode_image(images), torch.cat([found.f12, found.fp], dim=1))


# --- what does not fit ---


def refusal(folder: Path, state: State, **size: int) -> str:
    with pytest.raises(UserError) as caught:
        load_model(saved(folder, state), **size)  # type: ignore[arg-type]
    assert str(caught.value).startswith(str(folder))
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.conv1.weight", "image_encoder.proj", "image_encoder.positional_embedding",
        "image_encoder.class_embedding", "image_encoder.transformer.resblocks.1.ln_1.bias",
        "text_encoder.ln_final.weight", "text_encoder.positional_embedding",
        "prompt_learner.cls_ctx", "prompt_learner.token_suffix",
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    state = published()
    del state[name]
    assert f"{name} is missing" in refusal(tmp_path, state)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("image_encoder.ln_post.bias", (64,), "is [64] in the file, [128] here"),
        ("image_encoder.proj", (64, 32), "is [64, 32] in the file, [128, 32] here"),
        ("cv_embed", (6, 768), "is [6, 768] in the file, [6, 128] here"),
        ("prompt_learner.cls_ctx", (7, 4, 512), "is [7, 4, 512] in the file, [7, 4, 64] here"),
        ("image_encoder.conv1.weight", (5,), "is [5] in the file, expected 4 axes"),
        ("classifier.weight", (8, 128), "classifier.weight 8, classifier_proj.weight 7"),
    ],
)
def test_a_tensor_of_another_size_is_reported_with_both(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    assert message in refusal(tmp_path, published() | {name: torch.zeros(shape)})


def test_positions_that_fit_no_usual_size_ask_for_one(tmp_path: Path) -> None:
    state = published(8)
    assert "positions for 8 patches of 16 pixels" in refusal(tmp_path, state)
    square = {"height": 64, "width": 64, "stride": 16}
    assert "none of 64x64 with stride 16" in refusal(tmp_path, state, **square)
    model = load_model(saved(tmp_path, state), height=64, width=32, stride=16)
    image = torch.randn(1, 3, 64, 32)
    close(model.encode_image(image)[0], image_feature(state, image[0], 16))


def test_images_of_another_size_are_reported_with_both(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, published()))
    with pytest.raises(UserError, match=r"\[3, 128, 64\], the model takes \[3, 256, 128\]"):
        model.encode_image(torch.zeros(1, 3, 128, 64))


def test_activations_are_quick_gelu(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path, published()))
    kinds = {type(m).__name__ for m in model.modules() if "GELU" in type(m).__name__}
    assert kinds == {"QuickGELU"}


# --- numbers that are no weights ---


@pytest.mark.parametrize("name", ["image_encoder.proj", "cv_embed", "prompt_learner.cls_ctx"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "has 1 numbers that are NaN or infinite"),
        ("inf", "has 1 numbers that are NaN or infinite"),
        ("int8", "is of torch.int8 in the file, expected floating point numbers"),
        ("bool", "is of torch.bool in the file, expected floating point numbers"),
    ],
)
def test_tensors_that_are_not_finite_or_are_quantised_are_named(
    tmp_path: Path, name: str, kind: str, message: str
) -> None:
    state = published()
    if kind in ("nan", "inf"):
        state[name].view(-1)[3] = float(kind)
    else:
        state[name] = state[name].to(getattr(torch, kind))
    found = refusal(tmp_path, state)
    assert message in found
    assert name in found or name == "cv_embed"


def test_bfloat16_and_double_give_the_features_of_their_numbers(tmp_path: Path) -> None:
    image = torch.randn(1, 3, 256, 128)
    for kind in (torch.bfloat16, torch.float64):
        state = {n: v.to(kind) if v.is_floating_point() else v for n, v in published().items()}
        rounded = {n: v.float() if v.is_floating_point() else v for n, v in state.items()}
        expected = load_model(saved(tmp_path, rounded)).encode_image(image)
        assert torch.equal(load_model(saved(tmp_path, state)).encode_image(image), expected)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("classifier.weight", ()), ("cv_embed", (0, 128)),
        ("image_encoder.conv1.weight", (0, 3, 16, 16)),
        ("image_encoder.conv1.weight", (128, 3, 0, 0)),
        ("image_encoder.conv1.weight", (100, 3, 16, 16)),
        ("image_encoder.positional_embedding", (0, 128)),
        ("prompt_learner.token_suffix", (1, 0, 64)), ("prompt_learner.token_suffix", (0, 68, 64)),
        ("prompt_learner.cls_ctx", (7, 100, 64)), ("text_encoder.positional_embedding", (3, 64)),
        ("text_encoder.positional_embedding", (77, 0)),
    ],
)
def test_tensors_of_senseless_sizes_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    refusal(tmp_path, published() | {name: torch.zeros(shape)})
