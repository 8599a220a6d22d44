"""An exported encoder gives torch's features for any number of images, or is not written."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from harness.base.errors import UserError
from svll.data.side_labels import SideLabels
from svll.models.clip import load_clip
from svll.models.extractor import Extractor
from svll.models.reid import ReIDModel, SideInformation
from svll.models.trained_model import LoadedModel
from svll.models.weights import onnx_export
from svll.models.weights.onnx_export import PACKAGES, Exported, export_onnx
from tests.gpu.emulator import emulated

HAS_ONNX = all(importlib.util.find_spec(name) for name in PACKAGES)
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra `export` is not installed")


RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 1},
}
"""A block of every kind: each one more takes a second to export."""


def loaded(name: str = "svll-tiny", *, sie: bool = True) -> LoadedModel:
    """A random model with a last block, and one before, of which features are distinguished."""
    stride = 8 if name == "svll-tiny" else None
    clip = load_clip(name, None, height=64, width=32, stride=stride)
    if name == "svll-tiny":
        clip.image.visual.transformer.resblocks = clip.image.visual.transformer.resblocks[:2]
    side = None
    if sie:
        side = SideInformation("camera", cameras=3, views=1, width=clip.image.width, weight=1.0)
        nn.init.normal_(side.vectors, std=1.0)
    return LoadedModel(
        ReIDModel(clip.image, side), None, height=64, width=32, mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4), identities=0,
        side_labels=SideLabels({"a": [1, 4], "b": [1]} if sie else {}, {"a": [0], "b": [0]}),
    ).requires_grad_(False).eval()


def answer(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Exported, Path]:
    """A model, its export, and an image that it was compared on."""
    if not HAS_ONNX:
        pytest.skip("the extra `export` is not installed")
    folder = tmp_path_factory.mktemp("onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    model = loaded()
    done = export_onnx(model, folder / "new" / "model.onnx", images=[folder / "a.png"] * 5)
    return model, done, folder / "a.png"


def test_any_number_of_images_gives_torchs_features(
    exported: tuple[LoadedModel, Exported, Path]
) -> None:
    model, done, _ = exported
    assert done.images == 4 + 5
    assert 0 < done.difference < 1e-5
    for count in (1, 2, 7):
        images = torch.randn(count, 3, 64, 32)
        torch.testing.assert_close(
            answer(done.path, images), model.encode_image(images), rtol=1e-4, atol=1e-4
        )
    assert [file.name for file in done.path.parent.iterdir()] == ["model.onnx"]


def test_the_metadata_is_enough_to_prepare_an_image(
    exported: tuple[LoadedModel, Exported, Path]
) -> None:
    import onnx

    model, done, picture = exported
    stored = {item.key: item.value for item in onnx.load(done.path).metadata_props}
    size = (int(stored["width"]), int(stored["height"]))
    assert stored["resize"] == "bilinear, antialias"
    resized = np.asarray(Image.open(picture).resize(size, Image.Resampling.BILINEAR)) / 255
    ready = (resized - json.loads(stored["mean"])) / json.loads(stored["std"])
    images = torch.from_numpy(ready.transpose(2, 0, 1)[None]).float()
    found = torch.nn.functional.normalize(answer(done.path, images), dim=1).numpy()
    # PIL and torch round differently where an image shrinks
    np.testing.assert_allclose(found, Extractor(model).encode(picture), atol=2e-4)


def test_a_file_that_differs_is_not_written_and_the_old_one_stays(
    exported: tuple[LoadedModel, Exported, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, done, _ = exported
    content, path, other = done.path.read_bytes(), tmp_path / "model.onnx", copy.deepcopy(model)
    other.image.encoder.visual.proj.mul_(1.01)
    path.write_text("old")
    monkeypatch.setattr(onnx_export, "_converted", lambda *_: content)
    with pytest.raises(UserError, match=r"model\.onnx: not written: .* differ .* of their length"):
        export_onnx(other, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@needs_onnx
def test_a_cameras_side_information_can_be_built_in(tmp_path: Path) -> None:
    model, path = loaded(), tmp_path / "model.onnx"
    export_onnx(model, path, camera=1, dataset="b")
    images = torch.randn(2, 3, 64, 32)
    expected = model.encode_image(images, torch.tensor([2, 2]))
    torch.testing.assert_close(answer(path, images), expected, rtol=1e-4, atol=1e-4)
    assert (expected - model.encode_image(images)).abs().max() > 0.1


@needs_onnx
def test_a_resnet_is_exported_too(tmp_path: Path) -> None:
    (tmp_path / "svll-onnx-resnet.json").write_text(json.dumps(RESNET))
    open_clip.add_model_config(tmp_path)
    done = export_onnx(loaded("svll-onnx-resnet", sie=False), tmp_path / "model.onnx")
    assert done.difference < 1e-5


def test_a_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ("json", "no_such_onnx"))
    message = r"^no_such_onnx: not installed; pip install '\.\[export\]'"
    with pytest.raises(UserError, match=message):
        export_onnx(loaded(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("sie", "message"),
    [(True, "camera 0: the model was trained with the cameras 1, 4 of a; 1 of b"),
     (False, "camera 0: the model has no side information")],
)
def test_a_camera_that_the_model_does_not_know_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sie: bool, message: str
) -> None:
    monkeypatch.setattr(onnx_export, "PACKAGES", ())
    with pytest.raises(UserError, match=message):
        export_onnx(loaded(sie=sie), tmp_path / "model.onnx", camera=0, dataset="a")


def test_a_model_on_a_gpu_is_exported_from_the_cpu_and_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def converted(encoder: nn.Module, model: LoadedModel, camera: int | None) -> bytes:
        images = torch.zeros(1, 3, model.height, model.width)
        seen.append(f"{encoder(images).device} {model.device}")
        return b"onnx"

    def differences(path: Path, encoder: nn.Module, samples: list[Tensor]) -> list[float]:
        return [float(encoder(images).sum().numpy() * 0) for images in samples]

    monkeypatch.setattr(onnx_export, "PACKAGES", ())
    monkeypatch.setattr(onnx_export, "_converted", converted)
    monkeypatch.setattr(onnx_export, "_differences", differences)
    with emulated():
        model = loaded().to("cuda")
        export_onnx(model, tmp_path / "model.onnx", camera=4, dataset="a")
        assert model.device.type == "cuda"
    assert seen == ["cpu cpu"]
