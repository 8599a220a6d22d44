"""A weights file is enough to use a model; other files are refused with the reason."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.sources import Setting
from harness.runs.run import Run
from svll.config import Config
from svll.data.side_labels import SideLabels
from svll.models import load_model
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel, SideInformation
from svll.models.weights.run_weights import save_model

LABELS = SideLabels({"market1501": [1, 4, 5]}, {"market1501": [0, 1]})
SETTINGS: dict[str, Any] = {
    "data.height": 48, "data.width": 32, "data.mean": [0.4, 0.5, 0.6], "data.std": [0.2, 0.3, 0.4],
    "model.name": "svll-tiny", "model.weights": None, "model.stride": 8,
    "model.sie": "camera_view", "model.sie_weight": 2.0,
}


def finished(folder: Path, **changes: Any) -> tuple[Run, ReIDModel, Tensor]:
    """A run folder with the weights of an untrained model, that model, and its text features."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    config = build(Config, [Setting(key, value, "test") for key, value in settings.items()])
    data, model = config.data, config.model
    clip = load_clip(
        model.name, None, height=data.height, width=data.width, stride=model.stride
    )
    side = None
    if model.sie != "none":
        side = SideInformation(
            model.sie, cameras=3, views=2, width=clip.image.width,
            weight=model.sie_weight, unseen=model.sie_unseen,
        )
    torch.manual_seed(0)
    reid, text = ReIDModel(clip.image, side).eval(), torch.randn(5, clip.image.out)
    run = Run(folder)
    save_model(
        run.weights_file, reid.state_dict(), config, text=text, side_labels=LABELS,
        identities=len(text),
    )
    return run, reid, text


def images(height: int = 48, width: int = 32) -> Tensor:
    return torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sie", ["none", "camera", "view", "camera_view"])
def test_our_own_file_alone_gives_the_trained_model(tmp_path: Path, sie: str) -> None:
    run, reid, text = finished(tmp_path, model__sie=sie, model__sie_unseen="mean")
    model = load_model(run.weights_file)
    camera, view = torch.tensor([2, 0, -1, 1]), torch.tensor([1, 0, 1, -1])
    for given in ((), (camera,), (camera, view)):
        with torch.no_grad():
            assert torch.equal(model.encode_image(images(), *given),
                               reid.encode_image(images(), *given))
    assert torch.equal(model.encode_text(torch.tensor([4, 0])), text[[4, 0]])
    assert (model.height, model.width) == (48, 32)
    assert (model.mean, model.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert (model.side_labels, model.identities) == (LABELS, 5)
    assert not model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_a_run_folder_stands_for_its_weights(tmp_path: Path) -> None:
    run, reid, _ = finished(tmp_path)
    with torch.no_grad():
        expected = reid.encode_image(images())
    assert torch.equal(load_model(str(run.folder)).encode_image(images()), expected)


def test_a_resnet_of_ours_is_loaded_with_its_statistics(tmp_path: Path) -> None:
    sizes = {"data__height": 32, "data__width": 16, "model__stride": None, "model__sie": "none"}
    run, reid, _ = finished(tmp_path, model__name="RN50-quickgelu", **sizes)
    state = load_file(run.weights_file)
    reid.encoder.visual.bn1.running_mean += 0.5
    state["encoder.visual.bn1.running_mean"] += 0.5
    rewritten(run, lambda _: state)
    with torch.no_grad():
        expected = reid.encode_image(images(32, 16))
    assert torch.equal(load_model(run.folder).encode_image(images(32, 16)), expected)


# --- files that are none ---


def rewritten(
    run: Run, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **about: str | None
) -> None:
    """Change a weights file's tensors and what it says about them; None takes a word away. It has
    no checksum then, as before there were any."""
    with safe_open(run.weights_file, framework="pt") as file:
        changed = file.metadata() | {"checksum": None} | about
    metadata = {key: value for key, value in changed.items() if value is not None}
    state = change(load_file(run.weights_file))
    save_file(state, run.weights_file, metadata=metadata)


def refusal(path: Path, **size: int) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, **size)  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    return str(caught.value)


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("name", ["encoder.visual.proj", "side.vectors", "text"])
def test_a_tensor_that_is_missing_from_our_file_is_named(tmp_path: Path, name: str) -> None:
    run, _, _ = finished(tmp_path)
    rewritten(run, without(name))
    assert f"{name} is missing" in refusal(run.weights_file)


def test_a_tensor_of_another_size_in_our_file_is_reported_with_both(tmp_path: Path) -> None:
    run, _, _ = finished(tmp_path)
    rewritten(run, lambda state: state | {"encoder.visual.proj": torch.zeros(128, 64)})
    message = "encoder.visual.proj is [128, 64] in the file, [128, 128] here"
    assert message in refusal(run.weights_file)


@pytest.mark.parametrize("sie", ["camera", "view", "camera_view"])
def test_a_file_from_before_datasets_were_named_has_its_first_sets_cameras(
    tmp_path: Path, sie: str
) -> None:
    run, reid, _ = finished(tmp_path, model__sie=sie, data__name="market1501")
    rewritten(run, dict, cameras="[0, 3, 4]", side_labels=None)
    model = load_model(run.weights_file)
    camera, view = model.side_labels.places("market1501", [5, 1, 2], [0, 1, 1])
    assert camera.tolist() == [2, 0, -1]
    given = torch.from_numpy(camera), torch.from_numpy(view)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images()[:3], *given),
                           reid.encode_image(images()[:3], *given))
    assert model.side_labels.places("msmt17", [5], [0])[0].tolist() == [-1]


def test_an_older_file_of_a_folder_does_not_take_its_numbers_for_the_datasets(
    tmp_path: Path,
) -> None:
    run, _, _ = finished(tmp_path, model__sie="camera", data__name="folder")
    rewritten(run, dict, cameras="[0, 3, 4]", side_labels=None)
    model = load_model(run.weights_file)
    # whether its names began at camera 0 or 1 is not known
    assert model.side_labels.places("folder", [0, 1, 4])[0].tolist() == [-1, -1, -1]
    assert model.places([4, 0, 1])[0].tolist() == [2, 0, -1]


def test_weights_of_an_older_run_load_whatever_it_was_ranked_by(tmp_path: Path) -> None:
    run, _, _ = finished(tmp_path)
    with safe_open(run.weights_file, framework="pt") as file:
        config = yaml.safe_load(file.metadata()["config"])
    config["evaluation"]["camera_filter"] = False
    rewritten(run, dict, config=yaml.safe_dump(config))
    assert load_model(run.weights_file).identities == 5


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"version": "2"}, "format version 2, this program reads version 1"),
        ({"side_labels": "{"}, "its metadata cannot be read"),
        ({"side_labels": "[" * 100_000}, "its metadata cannot be read"),
        ({"config": "data: [1"}, "its metadata cannot be read"),
        ({"config": "data: {hight: 3}"}, "(its configuration), line 1: no key data.hight"),
        ({"config": "model: {name: ViT-X}"}, "knows no model 'ViT-X'"),
    ],
)
def test_metadata_of_another_kind_is_reported(
    tmp_path: Path, about: dict[str, str], message: str
) -> None:
    run, _, _ = finished(tmp_path)
    rewritten(run, dict, **about)
    with pytest.raises(UserError) as caught:
        load_model(run.weights_file)
    assert message in str(caught.value)


def test_another_size_than_it_was_trained_with_is_refused(tmp_path: Path) -> None:
    run, _, _ = finished(tmp_path)
    assert load_model(run.weights_file, height=48, stride=8).height == 48
    assert "was trained with stride 8, not 6" in refusal(run.weights_file, stride=6)


def test_a_missing_file_and_an_unfinished_run_say_what_to_give(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        load_model(tmp_path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04" + bytes(90)])
def test_a_file_of_something_else_is_named(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    state = {"base.patch_embed.proj.weight": torch.zeros(100, 3, 4, 4)}
    (torch.save if ending == "pth" else save_file)(state, path)
    path.write_bytes(path.read_bytes()[:-500])
    assert "damaged, or not a weights file" in refusal(path)


def test_a_file_that_would_execute_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "a.pth"
    torch.save({"image_encoder.proj": Harmful()}, path)
    assert "holds no tensors, but other values; save a state_dict()" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_archive_of_clip_is_refused_with_its_use(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    assert "a TorchScript archive" in refusal(path)


@pytest.mark.parametrize("content", [{"conv1.weight": torch.zeros(2)}, {}, [1], torch.zeros(2)])
def test_unknown_tensor_names_are_refused_with_the_known_ones(
    tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    message = refusal(path)
    is_model = isinstance(content, dict) and content
    assert ("holds conv1.weight" if is_model else "no tensors") in message
    assert "image_encoder.* of CLIP-ReID" in message


def test_importing_the_package_of_models_costs_nothing() -> None:
    program = "import sys, svll.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
