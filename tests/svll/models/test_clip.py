"""CLIP taken apart gives what open_clip's own model gives, at any size and stride."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.base.errors import UserError
from svll.models import clip as clip_module
from svll.models.clip import load_clip, tokenizer_for
from svll.models.text_encoder import TextEncoder
from svll.models.vit import ImageEncoder, resize_positions

OPEN_CLIPS = open_clip.list_models()
"""Before tests add models of their own."""
SIZE = {"height": 64, "width": 32, "stride": 8}
TEXT = {"context_length": 77, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 3}
VISION = {"image_size": [48, 32], "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
MODELS: dict[str, dict[str, Any]] = {
    "svll-test": {},
    "svll-test-quickgelu": {"quick_gelu": True},
    "svll-test-deep": {"vision_cfg": {**VISION, "layers": 4}},
    "svll-test-custom-text": {"custom_text": True},
    "svll-test-average": {"vision_cfg": {**VISION, "pool_type": "avg"}},
    "svll-test-attention-pool": {"vision_cfg": {**VISION, "attentional_pool": True}},
    "svll-test-acausal": {"text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"}},
}


@pytest.fixture(scope="module", autouse=True)
def small_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give open_clip models of a kind each, built in milliseconds."""
    folder = tmp_path_factory.mktemp("models")
    for name, other in MODELS.items():
        config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, **other}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    open_clip.add_model_config(clip_module.HERE / "svll-tiny.json")


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, name: str, ending: str = "safetensors") -> tuple[Path, Any]:
    """Return a file with random weights of a model, and open_clip's own model that has them."""
    torch.manual_seed(5)
    model = open_clip.create_model(name)
    path = folder / f"weights.{ending}"
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path, model


# --- loading ---


def test_the_tiny_model_loads_by_name_with_its_shipped_weights() -> None:
    shipped = load_clip("svll-tiny", "shipped", **SIZE)
    assert shipped.image.grid == (8, 4)
    assert (shipped.image.width, shipped.image.out) == (128, 128)
    assert (shipped.text.width, shipped.text.out, shipped.text.context_length) == (128, 128, 77)
    assert shipped.weights_hash == load_clip("svll-tiny", "shipped", **SIZE).weights_hash
    assert shipped.weights_hash != load_clip("svll-tiny", None, **SIZE).weights_hash


def test_tiny_token_ids_fit_its_embedding_and_end_of_text_is_the_largest() -> None:
    tokenizer = tokenizer_for("svll-tiny")
    largest = max(tokenizer.encoder.values())
    assert tokenizer.eot_token_id == largest
    assert largest < open_clip.get_model_config("svll-tiny")["text_cfg"]["vocab_size"]


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_load_from_a_file(tmp_path: Path, ending: str) -> None:
    path, model = saved(tmp_path, "svll-test", ending)
    loaded = load_clip("svll-test", str(path), height=48, width=32, stride=None)
    with torch.no_grad():
        expected = model.encode_image(images(2, 48, 32))
        torch.testing.assert_close(loaded.image(images(2, 48, 32)).fp, expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.module."])
def test_wrapped_weights_load_as_the_plain_ones(tmp_path: Path, prefix: str) -> None:
    path, model = saved(tmp_path, "svll-test", "pt")
    plain = load_clip("svll-test", str(path), height=48, width=32, stride=None)
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    torch.save({"net": {"state_dict": state}, "best": np.float64(0.5)}, path)
    wrapped = load_clip("svll-test", str(path), height=48, width=32, stride=None)
    assert wrapped.weights_hash == plain.weights_hash == clip_module.weights_hash(model)


def test_random_weights_depend_on_their_seed_alone() -> None:
    torch.manual_seed(1)
    first = load_clip("svll-test", None, height=48, width=32, stride=16, seed=3)
    drawn = torch.rand(1)
    second = load_clip("svll-test", None, height=48, width=32, stride=16, seed=3)
    other = load_clip("svll-test", None, height=48, width=32, stride=16, seed=4)
    assert first.weights_hash == second.weights_hash != other.weights_hash
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))  # the global generator was left as it was


def test_the_hash_of_weights_changes_with_one_number(tmp_path: Path) -> None:
    _, model = saved(tmp_path, "svll-test")
    before = clip_module.weights_hash(model)
    with torch.no_grad():
        model.ln_final.bias[3] += 1e-6
    assert clip_module.weights_hash(model) != before


# --- what cannot be loaded ---


def refusal(name: str, weights: str | None) -> str:
    with pytest.raises(UserError) as caught:
        load_clip(name, weights, height=64, width=32, stride=None)
    return str(caught.value)


def test_openai_weights_in_a_gelu_model_are_refused_with_the_right_name() -> None:
    message = refusal("ViT-B-16", "openai")
    assert "QuickGELU" in message
    assert message.endswith("model.name=ViT-B-16-quickgelu")


def test_every_activation_mismatch_names_a_model_that_fits() -> None:
    seen = 0
    for name, tag in open_clip.list_pretrained():
        if not clip_module._is_plain(open_clip.get_model_config(name)):
            continue
        try:
            clip_module.weights_source(name, tag)
        except UserError as error:
            right = str(error).rpartition("model.name=")[2]
            assert right in open_clip.list_models(), (name, tag)
            assert clip_module.weights_source(right, tag) == tag, (name, tag)
            seen += 1
    assert seen > 2


def test_an_unknown_model_is_named_with_its_near_one() -> None:
    assert refusal("ViT-B/16", None).endswith("did you mean ViT-B-16?")
    assert "'ResNeSt'" in refusal("ResNeSt", None)


def test_an_unknown_tag_is_named_with_the_models_tags() -> None:
    message = refusal("ViT-B-16-quickgelu", "opanai")
    assert "'opanai'" in message
    assert "openai" in message.partition("tags:")[2]


def test_a_missing_file_is_named() -> None:
    assert "'weights/none.pt'" in refusal("svll-test", "weights/none.pt")


def test_other_models_have_no_shipped_weights() -> None:
    assert "svll-tiny" in refusal("ViT-B-16", "shipped")


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02]q\x00."])
@pytest.mark.parametrize("ending", ["safetensors", "pt", "bin"])
def test_a_file_that_is_no_checkpoint_is_named(
    tmp_path: Path, ending: str, content: bytes
) -> None:
    path = tmp_path / f"wrong.{ending}"
    path.write_bytes(content)
    assert f"{path} does not fit svll-test" in refusal("svll-test", str(path))


@pytest.mark.parametrize("value", [{}, [1, 2], {"lr": 0.1}, torch.zeros(2)])
def test_a_file_with_something_else_is_named(tmp_path: Path, value: object) -> None:
    path = tmp_path / "wrong.pt"
    torch.save(value, path)
    assert f"{path} does not fit svll-test" in refusal("svll-test", str(path))


@pytest.mark.parametrize(
    ("other", "reason"),
    [("svll-tiny", "in the file, [32] here"), ("svll-test-deep", "is unexpected")],
)
def test_weights_of_another_architecture_are_named(
    tmp_path: Path, other: str, reason: str
) -> None:
    path, _ = saved(tmp_path, other)
    message = refusal("svll-test", str(path))
    assert f"{path} in svll-test: does not fit" in message
    assert reason in message
    assert len(message) < 300 + len(str(path)) + 60


def test_a_file_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "harmful.pt"
    torch.save({"state_dict": Harmful()}, path)
    message = refusal("svll-test", str(path))
    assert f"{path} does not fit svll-test" in message
    assert "weights_only" not in message  # torch advises to execute it all the same
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    ["svll-test-custom-text", "svll-test-average", "svll-test-attention-pool", "svll-test-acausal"],
)
def test_models_whose_features_are_read_otherwise_are_refused(name: str) -> None:
    assert f"{name} has no plain" in refusal(name, None)


@pytest.mark.parametrize(
    "name", ["coca_ViT-B-32", "roberta-ViT-B-32", "ViT-L-14-CLIPA", "ViT-B-16-SigLIP"]
)
def test_open_clips_other_architectures_are_refused(name: str) -> None:
    assert f"{name} has no plain" in refusal(name, None)


def test_clips_own_encoders_are_accepted() -> None:
    accepted = {
        name for name in OPEN_CLIPS
        if clip_module._is_plain(open_clip.get_model_config(name))
    }
    assert {"ViT-B-16", "ViT-B-16-quickgelu", "ViT-B-32", "ViT-L-14-336", "ViT-H-14"} <= accepted
    assert {"RN50", "RN50-quickgelu", "RN101-quickgelu", "RN50x64"} <= accepted
    assert all(name.startswith(("ViT-", "RN")) for name in accepted)


@pytest.mark.parametrize(("height", "width", "stride"), [(64, 32, 9), (4, 32, 8), (64, 7, None)])
def test_sizes_that_the_patch_does_not_fit_are_named(
    height: int, width: int, stride: int | None
) -> None:
    with pytest.raises(UserError, match=f"data {height}x{width}.*patches of 8x8"):
        load_clip("svll-tiny", None, height=height, width=width, stride=stride)


# --- the image encoder ---


@pytest.mark.parametrize("name", ["svll-tiny", "svll-test", "svll-test-quickgelu"])
def test_features_at_native_size_are_those_of_open_clip(tmp_path: Path, name: str) -> None:
    path, model = saved(tmp_path, name)
    height, width = model.visual.image_size
    encoder = load_clip(name, str(path), height=height, width=width, stride=None).image
    x = images(3, height, width)
    with torch.no_grad():
        ours = encoder(x)
        theirs = model.visual.forward_intermediates(x, output_extra_tokens=True)
        normed = model.visual.forward_intermediates(
            x, output_extra_tokens=True, normalize_intermediates=True
        )
        expected = [
            theirs["image_intermediates_prefix"][-2][:, 0],
            normed["image_intermediates_prefix"][-1][:, 0],
            model.encode_image(x),
        ]
    for feature, plain in zip(ours, expected, strict=True):
        torch.testing.assert_close(feature, plain, rtol=0, atol=1e-5)


def test_the_two_activations_give_different_features(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, "svll-test")
    gelu, quick = (
        load_clip(name, str(path), height=48, width=32, stride=None).image
        for name in ("svll-test", "svll-test-quickgelu")
    )
    with torch.no_grad():
        x = images(2, 48, 32)
        assert (gelu(x).fp - quick(x).fp).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "size", "stride", "grid", "widths"),
    [
        ("ViT-B-16-quickgelu", (256, 128), 12, (21, 10), (768, 512)),
        ("ViT-B-16-quickgelu", (256, 128), None, (16, 8), (768, 512)),
        ("ViT-B-32-quickgelu", (256, 128), None, (8, 4), (768, 512)),
        ("ViT-B-32-quickgelu", (256, 128), 24, (10, 5), (768, 512)),
        ("ViT-L-14-quickgelu", (224, 112), None, (16, 8), (1024, 768)),
        ("ViT-L-14-quickgelu", (256, 128), 12, (21, 10), (1024, 768)),
    ],
)
def test_patches_and_features_of_clip_have_these_shapes(
    name: str, size: tuple[int, int], stride: int | None, grid: tuple[int, int],
    widths: tuple[int, int],
) -> None:
    visual = clip_module.empty_model(clip_module.model_config(name)).visual
    encoder = ImageEncoder(visual, height=size[0], width=size[1], stride=stride)
    found = encoder(torch.empty(2, 3, *size, device="meta"))
    assert encoder.grid == grid
    positions = encoder.visual.positional_embedding
    assert tuple(positions.shape) == (1 + grid[0] * grid[1], widths[0])
    assert [tuple(feature.shape) for feature in found] == [(2, w) for w in (*widths[:1], *widths)]
    assert encoder.width == widths[0]
    assert encoder.per_sample


def test_overlapping_patches_start_at_multiples_of_the_stride() -> None:
    encoder = load_clip("svll-test", None, height=48, width=32, stride=5).image
    x = images(1, 48, 32)
    assert encoder.grid == (7, 4)
    with torch.no_grad():
        patches = encoder.visual.conv1(x)[0]
        weight = encoder.visual.conv1.weight
        for row, column in np.ndindex(7, 4):
            patch = x[0, :, 5 * row : 5 * row + 16, 5 * column : 5 * column + 16]
            expected = (weight * patch).sum(dim=(1, 2, 3))
            torch.testing.assert_close(patches[:, row, column], expected, rtol=0, atol=1e-5)


def test_side_information_is_added_to_the_class_token_before_positions() -> None:
    encoder = load_clip("svll-test", None, height=48, width=32, stride=16).image
    x, side = images(3, 48, 32), torch.randn(3, 32)
    with torch.no_grad():
        found = encoder(x, side)
        for row in range(3):
            original = encoder.visual.class_embedding.clone()
            encoder.visual.class_embedding += side[row]
            expected = encoder(x[row : row + 1])
            encoder.visual.class_embedding.copy_(original)
            for ours, plain in zip(found, expected, strict=True):
                torch.testing.assert_close(ours[row], plain[0], rtol=0, atol=1e-5)
        assert (found.fp - encoder(x).fp).abs().max() > 1e-3
        torch.testing.assert_close(encoder(x, torch.zeros(3, 32)).fp, encoder(x).fp)


# --- positions ---


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (21, 10)), ((14, 14), (16, 8)), ((8, 4), (5, 7)), ((3, 2), (6, 4))]
)
def test_positions_are_resized_bilinearly_from_a_rectangular_grid(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(1 + old[0] * old[1], 3, generator=generator, dtype=torch.float64)
    found = resize_positions(positions, old, new)
    assert found.shape == (1 + new[0] * new[1], 3)
    assert torch.equal(found[0], positions[0])
    grid = positions[1:].reshape(*old, 3)
    for row, column in np.ndindex(*new):
        expected = interpolated(grid, (row + 0.5) / new[0], (column + 0.5) / new[1])
        torch.testing.assert_close(found[1 + row * new[1] + column], expected)


def interpolated(grid: Tensor, down: float, right: float) -> Tensor:
    """The value [W] at a share of a grid's height and width; a cell's value is at its middle."""
    weights = []
    for share, size in ((down, grid.shape[0]), (right, grid.shape[1])):
        place = min(max(share * size - 0.5, 0), size - 1)
        first = min(int(place), size - 2)
        line = torch.zeros(size, dtype=grid.dtype)
        line[first], line[first + 1] = 1 - (place - first), place - first
        weights.append(line)
    return torch.einsum("h,w,hwd->d", *weights, grid)


def test_positions_of_the_same_grid_are_left_alone() -> None:
    positions = torch.randn(33, 3)
    assert torch.equal(resize_positions(positions, (8, 4), (8, 4)), positions)


def test_the_encoder_resizes_the_positions_of_its_weights(tmp_path: Path) -> None:
    path, model = saved(tmp_path, "svll-tiny")
    encoder = load_clip("svll-tiny", str(path), height=80, width=40, stride=6).image
    expected = resize_positions(model.visual.positional_embedding.detach(), (8, 4), (13, 6))
    assert torch.equal(encoder.visual.positional_embedding.detach(), expected)
    assert encoder.visual.positional_embedding.requires_grad


# --- the text encoder ---


@pytest.mark.parametrize("name", ["svll-tiny", "svll-test", "svll-test-quickgelu"])
def test_a_prefix_encodes_as_all_77_tokens(tmp_path: Path, name: str) -> None:
    _, model = saved(tmp_path, name)
    tokenizer = tokenizer_for("svll-tiny")
    tokens = tokenizer(["A photo of a person.", "A photo of a blue person."])
    text = TextEncoder(model)
    with torch.no_grad():
        expected = model.encode_text(tokens)
        for row, end in enumerate(tokens.argmax(dim=1).tolist()):
            embedded = model.token_embedding(tokens[row : row + 1, : end + 1])
            torch.testing.assert_close(text(embedded)[0], expected[row], rtol=0, atol=1e-5)


def test_a_download_that_fails_is_one_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> None:
        for logger in (hub.getChild("utils._http"), logging.getLogger("other")):
            logger.warning("'no route' thrown while requesting HEAD %s", logger.name)
        raise FileNotFoundError("no route to the hub")

    hub = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(hub, "propagate", True)
    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(UserError, match="could not be loaded: no route to the hub\nWithout netw"):
        clip_module.fetch("ViT-B-16-quickgelu", "openai")
    assert [record.name for record in caplog.records] == ["other"]
    assert hub.isEnabledFor(logging.WARNING)


def test_open_clips_models_are_read_once_however_often_one_is_looked_up(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_module.model_config("svll-tiny")
    monkeypatch.setattr(open_clip, "add_model_config", lambda path: pytest.fail("read again"))
    assert clip_module.model_config("svll-tiny")["embed_dim"]
