"""Attention maps: the model's own weights, followed through its blocks, over the right images."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.reporting.drawing import as_svg
from svll.base.feature_file import read_features, write_features
from svll.data.side_labels import SideLabels
from svll.models import load_model
from svll.models.clip import Clip, load_clip
from svll.models.extractor import preprocess
from svll.models.reid import ReIDModel, SideInformation
from svll.reports.figures import attention as module
from svll.reports.figures.attention import (
    LAST,
    ROLLOUT,
    attention_figure,
    attention_maps,
    entropy,
    over_patches,
    overlaid,
    pool_weights,
    rollout,
)
from tests.harness.reporting.test_drawing import without_ids
from tests.svll.reports.conftest import MakeRun

SIZES = [(64, 32, 8), (64, 32, 5), (72, 40, 6)]
"""Height, width and stride."""
RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def small_resnet(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    (folder / "svll-test-resnet.json").write_text(json.dumps(RESNET))
    open_clip.add_model_config(folder)


def tiny(height: int = 64, width: int = 32, stride: int = 8) -> Clip:
    return load_clip("svll-tiny", "shipped", height=height, width=width, stride=stride)


def images(height: int = 64, width: int = 32, count: int = 3) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def inputs_of_blocks(model: ReIDModel, *given: Tensor) -> list[Tensor]:
    """The tokens [B, L, W] that go into each block, and what comes out of the last one."""
    found: list[Tensor] = []
    visual: Any = model.encoder.visual
    hook = visual.ln_pre.register_forward_hook(lambda _, given, out: found.append(out))
    with torch.no_grad():
        model(*given)
        for block in visual.transformer.resblocks:
            found.append(block(found[-1]))
    hook.remove()
    return found


# --- weights ---


def plain_weights(block: Any, tokens: Tensor) -> Tensor:
    """The weights [B, H, L, L] by which a block mixes its input [B, L, W], by the formula."""
    layer = block.attn
    projected = F.linear(block.ln_1(tokens), layer.in_proj_weight, layer.in_proj_bias)
    query, key, _ = (
        x.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for x in projected.chunk(3, 2)
    )
    return (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)


def test_a_pool_mixes_its_positions_by_these_weights() -> None:
    pool = open_clip.modified_resnet.AttentionPool2d(4, 32, 4, 24)
    positions = torch.randn(2, 32, 4, 4)
    weights = pool_weights(pool, positions)
    assert weights.shape == (2, 4, 17)
    tokens = torch.cat([positions.mean(dim=(2, 3))[:, None], positions.flatten(2).mT], dim=1)
    value = pool.v_proj(tokens + pool.positional_embedding).unflatten(2, (4, 8))
    mixed = torch.einsum("bhl,blhd->bhd", weights, value).flatten(1)
    assert torch.allclose(pool.c_proj(mixed), pool(positions), atol=1e-5)


def test_rollout_multiplies_what_each_block_mixes_and_passes_on() -> None:
    blocks = [torch.rand(2, 3, 5, 5).softmax(dim=3) for _ in range(4)]
    for image in range(2):
        expected = np.eye(5)
        for weights in blocks:
            mixed = np.zeros((5, 5))
            for i in range(5):
                row = [weights[image, :, i, j].mean().item() + (i == j) for j in range(5)]
                mixed[i] = [value / sum(row) for value in row]
            expected = mixed @ expected
        found = rollout([weights.mean(dim=1) for weights in blocks])[image]
        assert np.allclose(found, expected, atol=1e-6)
        assert np.allclose(found.sum(dim=1), 1, atol=1e-6)


def test_rollout_of_blocks_that_mix_nothing_stays_with_each_token() -> None:
    assert torch.equal(rollout([torch.eye(4).expand(1, 4, 4)] * 3)[0], torch.eye(4))


def test_a_map_is_of_patches_alone_and_sums_to_1() -> None:
    rows = torch.tensor([[0.6, 0.1, 0.0, 0.1, 0.1, 0.1, 0.0]])
    expected = torch.tensor([[[0.25, 0.0, 0.25], [0.25, 0.25, 0.0]]])
    assert torch.allclose(over_patches(rows, (2, 3)), expected)


def test_entropy_is_1_where_attention_is_even_and_0_where_it_is_on_one_patch() -> None:
    one = torch.zeros(3, 4)
    one[1, 2] = 1
    half = torch.zeros(3, 4)
    half[0] = 0.25
    found = entropy(torch.stack([torch.full((3, 4), 1 / 12), one, half]))
    assert found.tolist() == pytest.approx([1, 0, np.log(4) / np.log(12)])


# --- a model's maps ---


@pytest.mark.parametrize(("height", "width", "stride"), SIZES)
def test_maps_are_of_the_class_token_at_any_size_and_stride(
    height: int, width: int, stride: int
) -> None:
    model = ReIDModel(tiny(height, width, stride).image, None).eval()
    batch = images(height, width)
    found = attention_maps(model, batch)
    tokens = inputs_of_blocks(model, batch)
    layers: Any = model.encoder.visual.transformer.resblocks
    blocks = []
    with torch.no_grad():
        for block, x in zip(layers, tokens, strict=False):
            blocks.append(plain_weights(block, x).mean(dim=1))
    grid = ((height - 8) // stride + 1, (width - 8) // stride + 1)
    last = blocks[-1][:, 0]
    assert torch.allclose(last.sum(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(found[LAST], over_patches(last, grid), atol=1e-5)
    every = rollout(blocks)[:, 0]
    assert torch.allclose(found[ROLLOUT], over_patches(every, grid), atol=1e-5)
    for maps in found.values():
        assert maps.shape == (3, *grid)
        assert torch.allclose(maps.sum(dim=(1, 2)), torch.ones(3), atol=1e-5)


def test_maps_are_those_under_the_images_camera() -> None:
    side = SideInformation("camera", cameras=2, views=1, width=128, weight=50.0)
    model = ReIDModel(tiny().image, side).eval()
    first, second, unseen = (
        attention_maps(model, images(), torch.full((3,), camera), torch.zeros(3, dtype=torch.int64))
        for camera in (0, 1, -1)
    )
    assert not torch.allclose(first[LAST], second[LAST], atol=1e-3)
    plain = attention_maps(model, images())
    assert torch.equal(plain[LAST], unseen[LAST])


def test_looking_at_maps_leaves_the_model_as_it_was() -> None:
    model = ReIDModel(tiny().image, None).eval()
    before = model.encode_image(images())
    attention_maps(model, images())
    assert torch.equal(model.encode_image(images()), before)
    assert not any(part._forward_hooks for part in model.modules())


def test_a_resnet_has_the_map_of_its_pool_and_no_rollout() -> None:
    encoder = load_clip("svll-test-resnet", None, height=64, width=32, stride=None).image
    model = ReIDModel(encoder, None).eval()
    found = attention_maps(model, images())
    assert list(found) == [LAST]
    visual: Any = encoder.visual
    with torch.no_grad():
        positions = visual.layer4(
            visual.layer3(visual.layer2(visual.layer1(visual.stem(images()))))
        )
        expected = pool_weights(visual.attnpool, positions).mean(dim=1)
    assert torch.allclose(found[LAST], over_patches(expected, (4, 2)), atol=1e-6)


def test_another_kind_of_model_is_an_error() -> None:
    with pytest.raises(UserError, match=r"attention can be shown for CLIP's image .*Linear"):
        attention_maps(nn.Linear(2, 2), images())


# --- the figure ---


def test_an_image_is_covered_by_bright_colours_where_attention_is_largest() -> None:
    found = torch.zeros(4, 2)
    found[1, 1] = 1
    shown = overlaid(torch.full((64, 32, 3), 0.5), found)
    assert shown.shape == (64, 32, 3)
    lightness = shown.mean(axis=2)
    row, column = np.unravel_index(lightness.argmax(), lightness.shape)
    assert 16 <= row < 32
    assert 16 <= column < 32
    assert np.allclose(shown[60, 4], 0.5 * (1 - module.ALPHA), atol=0.02)  # inferno's 0 is black


def test_a_figure_is_the_same_each_time_with_the_same_images_for_all_runs(
    run: Path, make_run: MakeRun
) -> None:
    runs = {"baseline": make_run("seed=2", spread=1.5), "SVLL-ReID": run}
    first, second = (attention_figure(runs, images=2, seed=1) for _ in range(2))
    assert without_ids(as_svg(first.figure)) == without_ids(as_svg(second.figure))
    assert attention_figure(runs, images=2, seed=2).numbers != first.numbers
    text = " ".join(ElementTree.fromstring(as_svg(first.figure)).itertext())
    names = re.findall(r"identity (\d+), camera (\d)", text)
    assert len({identity for identity, _ in names}) == 2
    for title, numbers in first.numbers.items():
        assert title in text
        assert list(numbers) == [LAST, ROLLOUT]
        assert f"entropy {numbers[LAST]:.2f}" in text
    assert "over 2 query images of synthetic, of different identities, drawn by seed 1" in (
        first.caption
    )
    assert len([axes for axes in first.figure.axes if axes.images]) == 2 * 5


def test_the_numbers_are_mean_entropies_of_the_shown_images(run: Path) -> None:
    drawn = attention_figure({"run": run}, images=3)
    query = read_features(run / "features.h5").groups["query"]
    labels = [axes.get_ylabel() for axes in drawn.figure.axes if axes.get_ylabel()]
    found = []
    model = load_model(run)
    for label in labels:
        identity, camera = map(int, re.findall(r"\d+", label))
        [row, *_] = np.flatnonzero(
            (query.identities == identity) & (query.cameras == camera - 1)
        ).tolist()
        assert query.paths is not None
        image = preprocess([query.paths[row]], model)
        place = torch.from_numpy(model.side_labels.places("synthetic", [camera])[0])
        maps = attention_maps(model.image, image, place, torch.zeros_like(place))
        found.append([float(entropy(maps[name])) for name in (LAST, ROLLOUT)])
    assert list(drawn.numbers["run"].values()) == pytest.approx(np.mean(found, axis=0), abs=1e-5)


def test_a_resnet_stands_beside_a_transformer_without_rollout(
    run: Path, make_run: MakeRun
) -> None:
    resnet = make_run(
        "model.name=svll-test-resnet", "model.weights=null", "model.stride=null", "model.sie=none"
    )
    drawn = attention_figure({"ViT": run, "ResNet": resnet}, images=2)
    assert {title: list(found) for title, found in drawn.numbers.items()} == {
        "ViT": [LAST, ROLLOUT], "ResNet": [LAST],
    }
    assert "ResNet: ResNet, attention of CLIP's pool" in drawn.caption
    assert len([axes for axes in drawn.figure.axes if axes.images]) == 2 * 4


def test_images_that_have_been_moved_are_told_with_what_to_do(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path, lambda path: f"/moved{path}")
    with pytest.raises(UserError, match=(
        rf"/moved/.*jpg: no such file; .* delete {folder}/features.h5 and run "
        rf"python launch/features.py {folder} data.root=DIR"
    )):
        attention_figure({"run": folder})


def test_features_that_do_not_say_where_images_are_cannot_be_shown(
    run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"features\.h5: has no image paths; to make it again"):
        attention_figure({"run": copied(run, tmp_path, None)})


def copied(run: Path, folder: Path, renamed: Any) -> Path:
    """A copy of a run whose images have other paths, or none."""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    groups = {
        name: replace(group, paths=renamed and [renamed(path) for path in group.paths or ()])
        for name, group in read_features(run / "features.h5").groups.items()
    }
    write_features(folder / "features.h5", groups, dataset="synthetic", model="", first_camera=1)
    return folder


def test_a_run_without_a_model_is_an_error(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "features.h5", tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        attention_figure({"run": tmp_path})


def test_maps_are_of_the_cameras_of_their_own_dataset(run: Path) -> None:
    model, file, rows = load_model(run), read_features(run / "features.h5"), np.arange(9)
    own = file.groups["query"].cameras[:9]
    camera, view = module._places(file, rows, model)
    assert camera.tolist() == own.tolist()
    assert view.tolist() == [0] * 9
    camera, _ = module._places(replace(file, dataset="veri776"), rows, model)
    assert camera.tolist() == [-1] * 9
    # of two training sets it was the second
    cameras = {"market1501": range(1, 5), "synthetic": range(1, 7)}
    model.side_labels = SideLabels(cameras, {"synthetic": [0]})
    camera, _ = module._places(file, rows, model)
    assert camera.tolist() == (own + 4).tolist()


def test_features_that_do_not_number_their_cameras_are_refused(run: Path) -> None:
    file = replace(read_features(run / "features.h5"), first_camera=None)
    assert len(module._places(file, np.arange(2), load_model(run))) == 2  # synthetic: from 1
    file = replace(file, dataset="folder")
    with pytest.raises(UserError, match=r"does not say how its dataset numbers cameras; to make"):
        module._places(file, np.arange(2), load_model(run))
