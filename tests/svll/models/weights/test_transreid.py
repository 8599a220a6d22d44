"""TransReID's files give the features that their architecture means."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from harness.base.errors import UserError
from svll.models import load_model

N = 9
State = dict[str, Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


def block_state(name: str, width: int, hidden: int, bias: bool) -> State:
    shapes = {
        "norm1.weight": (width,), "norm1.bias": (width,), "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "norm2.weight": (width,), "norm2.bias": (width,), "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,), "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    } | ({"attn.qkv.bias": (3 * width,)} if bias else {})
    return {f"{name}.{key}": numbers(*shape) for key, shape in shapes.items()}


def published(
    tokens: int = 128, *, width: int = 128, sie: int = 0, jigsaw: bool = False, bias: bool = True
) -> State:
    torch.manual_seed(0)
    state = {
        "base.cls_token": numbers(1, 1, width), "base.pos_embed": numbers(1, 1 + tokens, width),
        "base.patch_embed.proj.weight": numbers(width, 3, 16, 16),
        "base.patch_embed.proj.bias": numbers(width),
        "base.norm.weight": 1 + numbers(width), "base.norm.bias": numbers(width),
        "base.fc.weight": numbers(10, width), "base.fc.bias": numbers(10),
        "bottleneck.weight": numbers(width), "classifier.weight": numbers(N, width),
    }
    for layer in range(3):
        state |= block_state(f"base.blocks.{layer}", width, 4 * width, bias)
    if sie:
        state["base.sie_embed"] = numbers(sie, 1, width)
    for branch in ("b1", "b2") if jigsaw else ():
        state |= block_state(f"{branch}.0", width, 4 * width, bias)
        state |= {f"{branch}.1.weight": 1 + numbers(width), f"{branch}.1.bias": numbers(width)}
        state |= {f"classifier_{part}.weight": numbers(N, width) for part in (1, 2, 3, 4)}
    return state


# --- the architecture, written again ---


def normed(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
    return centred * scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def block(state: State, name: str, x: Tensor, heads: int, scale: float) -> Tensor:
    """One block of [L, W], head after head."""
    width = x.shape[1]
    mixed = normed(state, f"{name}.norm1", x) @ state[f"{name}.attn.qkv.weight"].T
    mixed = mixed + state.get(f"{name}.attn.qkv.bias", torch.zeros(3 * width))
    found = []
    for head in range(heads):
        first = head * width // heads
        query, key, value = (
            mixed[:, part * width + first : part * width + first + width // heads]
            for part in range(3)
        )
        found.append((query @ key.T * scale).softmax(dim=1) @ value)
    x = x + torch.cat(found, dim=1) @ state[f"{name}.attn.proj.weight"].T
    x = x + state[f"{name}.attn.proj.bias"]
    y = normed(state, f"{name}.norm2", x) @ state[f"{name}.mlp.fc1.weight"].T
    y = gelu(y + state[f"{name}.mlp.fc1.bias"]) @ state[f"{name}.mlp.fc2.weight"].T
    return x + y + state[f"{name}.mlp.fc2.bias"]


def feature(
    state: State, image: Tensor, *, stride: int = 16, side: Tensor | None = None, heads: int = 2,
    scale: float = 0.125,
) -> Tensor:
    kernel = state["base.patch_embed.proj.weight"]
    rows = [
        (kernel * image[:, y : y + 16, x : x + 16]).sum(dim=(1, 2, 3))
        + state["base.patch_embed.proj.bias"]
        for y in range(0, image.shape[1] - 15, stride)
        for x in range(0, image.shape[2] - 15, stride)
    ]
    x = torch.stack([state["base.cls_token"][0, 0], *rows]) + state["base.pos_embed"][0]
    if side is not None:
        x = x + 3.0 * side
    for layer in (0, 1):
        x = block(state, f"base.blocks.{layer}", x, heads, scale)
    if "b1.1.weight" not in state:
        return normed(state, "base.norm", block(state, "base.blocks.2", x, heads, scale))[0]
    parts = [normed(state, "b1.1", block(state, "b1.0", x, heads, scale))[0]]
    shift = 8 if image.shape[1] == image.shape[2] else 5
    patches = list(range(1, len(x)))
    order = patches[shift - 1 :] + patches[: shift - 1]
    if len(order) % 2:
        order.append(order[-2])
    half = len(order) // 2
    order = [order[place // 2 + half * (place % 2)] for place in range(len(order))]
    quarter = len(patches) // 4
    for part in range(4):
        rows = [0, *order[part * quarter : (part + 1) * quarter]]
        local = normed(state, "b2.1", block(state, "b2.0", x[rows], heads, scale))[0]
        parts.append(local / 4)
    return torch.cat(parts)


def saved(folder: Path, state: Any) -> Path:
    path = folder / "vit_transreid.pth"
    torch.save(state, path)
    return path


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tokens", "size", "stride"), [(128, (256, 128), 16),
                                                        (210, (256, 128), 12)])
def test_the_feature_is_the_normalised_class_token(
    tmp_path: Path, tokens: int, size: tuple[int, int], stride: int
) -> None:
    state = published(tokens)
    model = load_model(saved(tmp_path, state))
    images = torch.randn(2, 3, *size)
    expected = torch.stack([feature(state, image, stride=stride) for image in images])
    close(model.encode_image(images), expected)
    assert (model.side_labels.datasets, model.identities) == ((), N)
    assert model.mean == model.std == (0.5, 0.5, 0.5)


def test_side_information_is_added_threefold_to_all_tokens(tmp_path: Path) -> None:
    state = published(sie=6)
    model = load_model(saved(tmp_path, state))
    image = torch.randn(1, 3, 256, 128)
    close(model.encode_image(image)[0], feature(state, image[0]))
    expected = feature(state, image[0], side=state["base.sie_embed"][4, 0])
    close(model.encode_image(image, torch.tensor([4]))[0], expected)
    assert model.side_labels.places("", range(1, 7))[0].tolist() == list(range(6))


@pytest.mark.parametrize(("tokens", "size"), [(210, (256, 128)), (441, (256, 256))])
def test_the_jigsaw_branch_adds_four_local_features(
    tmp_path: Path, tokens: int, size: tuple[int, int]
) -> None:
    state = published(tokens, width=64, jigsaw=True)
    model = load_model(saved(tmp_path, state))
    image = torch.randn(1, 3, *size)
    found = model.encode_image(image)
    assert found.shape == (1, 5 * 64)
    close(found[0], feature(state, image[0], stride=12, heads=1))


def test_the_small_model_without_biases_has_eight_heads_and_another_scale(tmp_path: Path) -> None:
    state = published(bias=False)
    image = torch.randn(1, 3, 256, 128)
    found = load_model(saved(tmp_path, state)).encode_image(image)[0]
    close(found, feature(state, image[0], heads=8, scale=128**-0.5))


def test_there_are_no_text_features(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained without texts"):
        load_model(saved(tmp_path, published())).encode_text(torch.tensor([0]))


@pytest.mark.parametrize(
    "name",
    [
        "base.patch_embed.proj.weight", "base.pos_embed", "base.cls_token", "base.norm.bias",
        "base.blocks.1.attn.proj.bias", "base.blocks.0.mlp.fc1.weight", "b2.0.norm1.weight",
        "b2.1.bias",
    ],
)
def test_a_missing_tensor_is_named_as_in_the_file(tmp_path: Path, name: str) -> None:
    state = published(jigsaw=True)
    del state[name]
    with pytest.raises(UserError, match=rf"vit_transreid\.pth.*{name} is missing"):
        load_model(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("base.norm.weight", (64,), r"base.norm.weight is \[64\] in the file, \[128\] here"),
        ("base.sie_embed", (6, 1, 64), r"is \[6, 64\] in the file, \[6, 128\] here"),
        ("base.pos_embed", (1, 1, 129, 128), r"is \[1, 1, 129, 128\] in the file"),
    ],
)
def test_a_tensor_of_another_size_is_reported_with_both(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_model(saved(tmp_path, published() | {name: torch.zeros(shape)}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("base.patch_embed.proj.weight", (0, 3, 16, 16)), ("base.sie_embed", (0, 1, 128)),
        ("base.patch_embed.proj.weight", (128, 3, 0, 0)), ("classifier.weight", ()),
        ("base.patch_embed.proj.weight", (130, 3, 16, 16)),
    ],
)
def test_tensors_of_senseless_sizes_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(UserError, match=r"vit_transreid\.pth: does not fit"):
        load_model(saved(tmp_path, published(sie=6) | {name: torch.zeros(shape)}))


def test_a_value_that_is_no_tensor_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    state: dict[str, Any] = published(sie=6)
    for name in ("base.sie_embed", "base.blocks.0.attn.qkv.bias"):
        for value in (None, state[name].numpy()):
            with pytest.raises(UserError, match=f"its {name} is no tensor"):
                load_model(saved(tmp_path, state | {name: value}))
