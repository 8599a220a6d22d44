"""Weights on a test set: the side information is that of the set's own cameras, or none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import Setting, parse_overrides
from harness.runs.run import Run
from svll.base.records import Dataset, Records
from svll.config import RECIPES, Config
from svll.data.side_labels import UNNAMED, SideLabels
from svll.features.from_weights import encode_tests, labels_for
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel, SideInformation
from svll.models.trained_model import LoadedModel
from svll.models.weights.run_weights import save_model

SIDE = SideLabels({"folder": [1, 2], "list": [1, 2]}, {"folder": [0], "list": [0]})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures of two persons by two cameras, in Market-1501's layout and as a list."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    lines = ["path,identity,camera,split"]
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (root / part).mkdir()
        for identity in (1, 2):
            for camera in (1, 2):
                name = f"{part}/000{identity}_c{camera}s1_000001_00.png"
                pixels = rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name)
                split = {"bounding_box_train": "train", "bounding_box_test": "gallery"}
                lines.append(f"{name},{identity},{camera},{split.get(part, part)}")
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReIDModel]:
    """A model that was trained on two sets, with cameras 1 and 2 of either."""
    recipe = read_recipe(RECIPES / "synthetic_tiny.yaml", Config)
    config = build(Config, [*recipe, Setting("data.train", ["folder", "list"], "test")])
    clip = load_clip("svll-tiny", "shipped", height=64, width=32, stride=8)
    side = SideInformation("camera", cameras=4, views=2, width=128, weight=1.0)
    with torch.no_grad():
        side.vectors.mul_(50)
    model = ReIDModel(clip.image, side).eval()
    run = Run(tmp_path_factory.mktemp("run"))
    save_model(
        run.weights_file, model.state_dict(), config, text=torch.zeros(4, 128), side_labels=SIDE,
        identities=4,
    )
    return run.weights_file, model


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize(("name", "root", "places"), [
    ("folder", ".", [0, 1]), ("list", "list.csv", [2, 3]), ("market1501", ".", [-1, -1]),
])
def test_a_camera_has_the_vector_of_its_own_dataset(
    images: Path, weights: tuple[Path, ReIDModel], tmp_path: Path, name: str, root: str,
    places: list[int],
) -> None:
    file, model = weights
    config = config_for(name, images / root, tmp_path)
    [found] = encode_tests(file, config)
    query = found.groups["query"]
    camera = torch.tensor([places[camera] for camera in (query.cameras - query.cameras.min())])
    paths = query.paths or ()
    with torch.no_grad():
        expected = model.encode_image(torch.stack([pixels(Path(path)) for path in paths]), camera)
    np.testing.assert_allclose(query.features, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_the_weights_have_side_information_whatever_the_recipe_trains_with(
    images: Path, weights: tuple[Path, ReIDModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def encoded(*words: str, **options: bool) -> NDArray[Any]:
        config = config_for("folder", images, tmp_path, *words)
        return encode_tests(weights[0], config, **options)[0].groups["query"].features[:]

    used = encoded()
    np.testing.assert_array_equal(encoded("model.sie=none"), used)
    assert "not used" not in caplog.text
    assert abs(encoded(side_information=False) - used).max() > 0.1
    assert "the weights have side information, which is not used" in caplog.text


def config_for(name: str, root: Path, place: Path, *more: str) -> Config:
    words = [f"data.name={name}", f"data.root={root}", f"run.runs={place}", *more]
    recipe = read_recipe(RECIPES / "synthetic_tiny.yaml", Config)
    return build(Config, [*recipe, *parse_overrides(words)])


def test_published_vectors_are_of_the_benchmark_with_as_many_cameras() -> None:
    class Published(LoadedModel):
        def __init__(self, cameras: int) -> None:
            torch.nn.Module.__init__(self)
            self.side_labels = SideLabels({UNNAMED: range(1, cameras + 1)}, {UNNAMED: [0]})

    def asked(name: str, cameras: int, first: int) -> list[int]:
        dataset = Dataset(name, "cross_camera", *[Records.empty()] * 3, first_camera=first)
        numbers = [first, first + cameras - 1]
        return labels_for(Published(cameras), dataset).places(name, numbers)[0].tolist()

    assert asked("market1501", 6, first=1) == [0, 5]
    assert asked("vehicleid_1600", 1, first=0) == [0, 0]
    for other in ("msmt17", "folder", "synthetic"):
        assert asked(other, 6, first=1) == [-1, -1]
