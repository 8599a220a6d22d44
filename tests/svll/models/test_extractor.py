"""`svll.load(path).encode(images)` is the test feature of images as tests prepare them."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

import svll
from harness.base.errors import UserError
from harness.config.build import build
from harness.config.sources import Setting
from harness.images import loader as image_loader
from harness.images.loader import ImageLoader
from harness.images.pixels import Fault, upright
from harness.images.views import Transform
from harness.runs.run import Run
from svll.config import Config
from svll.data.side_labels import UNNAMED, SideLabels
from svll.models.clip import load_clip
from svll.models.extractor import TEST_RESIZE, Extractor, preprocess
from svll.models.reid import ReIDModel, SideInformation
from svll.models.weights.run_weights import save_model
from svll.reports.thumbnails import thumbnail
from svll.search.search import encode
from tests import picture_files
from tests.gpu.emulator import emulated
from tests.gpu.runs import SentViews

MEAN, STD, CAMERAS = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], [2, 3, 6]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, ReIDModel]]:
    def make(unseen: str = "none") -> tuple[Path, ReIDModel]:
        values = {
            "data.height": 64, "data.width": 32, "data.mean": MEAN, "data.std": STD,
            "model.name": "svll-tiny", "model.weights": "shipped", "model.stride": 8,
            "model.sie": "camera", "stage1.epochs": 0, "stage2.i2t_weight": 0.0,
            "model.sie_unseen": unseen,
        }
        config = build(Config, [Setting(key, value, "test") for key, value in values.items()])
        clip = load_clip("svll-tiny", "shipped", height=64, width=32, stride=8)
        side = SideInformation(
            "camera", cameras=3, views=1, width=128, weight=1.0, unseen=unseen
        )
        with torch.no_grad():
            side.vectors.mul_(50)
        model = ReIDModel(clip.image, side).eval()
        run = Run(tmp_path_factory.mktemp("run"))
        save_model(
            run.weights_file, model.state_dict(), config, text=None, identities=2,
            side_labels=SideLabels({"market1501": CAMERAS}, {"market1501": [0]}),
        )
        return run.folder, model

    return make


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Images of sizes that shrink and grow, one of them grey."""
    rng = np.random.default_rng(0)
    found = []
    for number, size in enumerate([(200, 90, 3), (40, 30, 3), (64, 32, 3), (130, 70)]):
        coarse = rng.integers(0, 256, (8, 4, *size[2:]), dtype=np.uint8)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(coarse).resize((size[1], size[0])).save(path, quality=95)
        found.append(str(path))
    return found


def plain_features(
    model: ReIDModel, paths: list[str], camera: list[int] | None = None
) -> NDArray[Any]:
    """By torchvision's transforms, image after image."""
    steps = v2.Compose([
        v2.RGB(), v2.ToImage(), v2.Resize((64, 32), antialias=True),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])
    rows = []
    for place, path in enumerate(paths):
        given = () if camera is None else (torch.tensor([camera[place]]),)
        with torch.no_grad():
            row = model.encode_image(steps(Image.open(path))[None], *given)[0].double().numpy()
        rows.append(row / np.sqrt((row**2).sum()))
    return np.stack(rows)


def test_features_are_those_of_the_test_transforms_at_unit_length(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str]
) -> None:
    folder, model = make()
    found = svll.load(folder).encode(paths)
    assert (found.dtype, found.shape) == (np.float32, (4, 256))
    np.testing.assert_allclose(found, plain_features(model, paths), rtol=0, atol=1e-5)


def test_files_images_and_arrays_give_the_same_features(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str]
) -> None:
    extractor = svll.load(make()[0], batch=3)
    expected = extractor.encode(paths)
    images = [Image.open(path) for path in paths]
    mixed: list[Any] = [images[0], np.array(images[1]), Path(paths[2]), images[3]]
    assert np.allclose(extractor.encode(mixed), expected, atol=1e-6)
    one: list[Any] = [paths[1], Path(paths[1]), images[1], np.array(images[1])]
    for image in one:
        found = extractor.encode(image)
        assert found.shape == (1, 256)
        assert np.allclose(found[0], expected[1], atol=1e-6)
    assert extractor.encode([]).shape == (0, extractor.encode(images[:1]).shape[1])


@pytest.mark.parametrize("unseen", ["none", "mean"])
def test_cameras_are_the_datasets_numbers(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str], unseen: str
) -> None:
    folder, model = make(unseen)
    extractor = svll.load(folder)
    found = extractor.encode(paths, camera=[6, 2, 1, 3])
    expected = plain_features(model, paths, [2, 0, -1, 1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    without = extractor.encode(paths)
    assert np.allclose(found[2], without[2], atol=1e-5) == (unseen == "none")
    assert abs(found[0] - without[0]).max() > 0.01
    all_of_one = extractor.encode(paths, camera=6, dataset="market1501")
    np.testing.assert_allclose(
        all_of_one, plain_features(model, paths, [2] * 4), rtol=0, atol=1e-5
    )
    with pytest.raises(UserError, match="3 cameras for 4 images; give one or 4"):
        extractor.encode(paths, camera=[1, 2, 5])
    with pytest.raises(UserError, match="not trained on 'msmt17'; the model knows those of market"):
        extractor.encode(paths, camera=1, dataset="msmt17")


def test_a_model_without_side_information_takes_any_camera(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str]
) -> None:
    folder, _ = make()
    model = svll.load(folder).model
    model.image.side = None
    model.side_labels = SideLabels({"market1501": [1], "msmt17": [1]}, {})
    without = Extractor(model).encode(paths)
    np.testing.assert_array_equal(Extractor(model).encode(paths, camera=1), without)
    assert [found.tolist() for found in model.places([1, 2])] == [[-1, -1], [-1, -1]]


def test_published_vectors_take_the_name_of_any_dataset(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str]
) -> None:
    folder, trained = make()
    model = svll.load(folder).model
    model.side_labels = SideLabels({UNNAMED: [1, 2, 3]}, {UNNAMED: [0]})
    found = Extractor(model).encode(paths, camera=3, dataset="market1501")
    expected = plain_features(trained, paths, [2] * 4)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_file_of_any_kind_has_the_same_pixels_in_training_encode_search_and_pages(
    make: Callable[..., tuple[Path, ReIDModel]], tmp_path: Path
) -> None:
    picture = picture_files.picture(size=(90, 150))
    files = picture_files.write(tmp_path, picture)
    files |= {
        name: picture_files.turned(tmp_path / name, picture, 6) for name in ("a.jpg", "a.png")
    }
    paths = list(map(str, files.values()))
    extractor = svll.load(make()[0], batch=7)
    model = extractor.model
    loader = ImageLoader(
        paths, Transform(64, 32, TEST_RESIZE, MEAN, STD), batch_size=len(paths), seed=0,
        threads=1, device="cpu",
    )
    rows = [np.arange(len(paths))]
    [trained] = loader.epoch(rows, rows, epoch=0)
    loader.close()
    assert torch.equal(preprocess(paths, model), trained["image"])
    opened: list[Any] = [Image.open(path) for path in paths]
    assert torch.equal(preprocess(opened, model), trained["image"])
    found = encode(extractor, list(files.values()), "")
    assert found.paths == list(files.values())
    np.testing.assert_allclose(found.features, extractor.encode(paths), rtol=0, atol=1e-6)
    for name, path in files.items():
        on_page = Image.open(io.BytesIO(thumbnail(path) or b""))
        assert on_page.size == (58, 96), name
        shown, seen = (
            np.asarray(image.convert("L").resize((6, 10), Image.Resampling.BOX), float)
            for image in (on_page, upright(Image.open(path)))
        )
        assert np.abs(shown - seen).max() < 12, name


def test_large_files_are_decoded_a_few_at_a_time(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = svll.load(make()[0], batch=3)
    given = [paths[row] for row in (1, 1, 1, 1, 0, 0, 1)]  # the first one is the largest file
    monkeypatch.setattr("harness.images.loader._BATCH_BYTES", os.path.getsize(paths[0]) + 1)
    rows, images = zip(*extractor.read(given, []), strict=True)
    assert [batch.tolist() for batch in rows] == [[0, 1, 2], [3], [4], [5], [6]]
    assert torch.equal(torch.cat(images), preprocess(given, extractor.model))


def test_broken_files_are_left_out_and_the_others_keep_their_rows(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.images.loader._HEADERS", 5)
    extractor = svll.load(make()[0], batch=3)
    cut = Path(paths[0]).read_bytes()[:900]
    bad = {1: cut, 3: b"text", 4: cut, 8: cut, 9: b""}
    given = [paths[row % 4] for row in range(11)]
    for row, content in bad.items():
        given[row] = str(tmp_path / f"bad{row}.jpg")
        Path(given[row]).write_bytes(content)
    broken: list[Fault] = []
    rows, images = zip(*extractor.read(given, broken), strict=True)
    kept = np.concatenate(rows).tolist()
    assert kept == [0, 2, 5, 6, 7, 10]
    assert torch.equal(torch.cat(images), preprocess([given[row] for row in kept], extractor.model))
    reasons = {1: "truncated", 3: "not an image", 4: "truncated", 8: "truncated", 9: "empty"}
    assert sorted(broken) == [(given[row], reason) for row, reason in reasons.items()]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "missing"), (b"text", "not an image"), (b"cut", "truncated")],
)
def test_an_unreadable_image_is_named(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str], tmp_path: Path,
    content: bytes | None, message: str,
) -> None:
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(Path(paths[0]).read_bytes()[:900] if content == b"cut" else content)
    with pytest.raises(UserError, match=rf"bad\.jpg: {message}"):
        svll.load(make()[0]).encode([paths[0], str(path)])


def test_an_array_of_another_kind_is_reported(
    make: Callable[..., tuple[Path, ReIDModel]]
) -> None:
    extractor = svll.load(make()[0])
    for array in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)):
        with pytest.raises(UserError, match=r"expected uint8 \[H, W, 3\]"):
            extractor.encode(array)


@pytest.mark.slow
def test_three_lines_load_neither_deepspeed_nor_ray(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str]
) -> None:
    program = (
        "import sys\n"
        "import svll\n"
        "assert 'torch' not in sys.modules\n"
        "model = svll.load(sys.argv[1])\n"
        "features = model.encode(sys.argv[2:])\n"
        "assert features.shape == (4, 256)\n"
        "heavy = {'deepspeed', 'ray', 'submitit', 'h5py'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(make()[0]), *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_model_on_a_gpu_takes_what_one_on_the_cpu_takes_and_gives_its_features(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make()
    mixed: list[Any] = [Image.open(paths[0]), np.array(Image.open(paths[1])), *paths[2:]]
    on_cpu = svll.load(folder, batch=3)
    expected = on_cpu.encode(mixed, camera=[6, 2, 1, 3])
    images, places = preprocess(mixed, on_cpu.model), torch.tensor([0, -1, 2, 1])
    raw = on_cpu.model.encode_image(images, places)
    monkeypatch.setattr(image_loader, "DaliViews", SentViews)
    with emulated():
        extractor = svll.load(folder, "cuda", batch=3)
        for camera in ([6, 2, 1, 3], torch.tensor([6, 2, 1, 3], device="cuda")):
            found = extractor.encode(mixed, camera=camera)  # type: ignore[arg-type]
            assert isinstance(found, np.ndarray)
            np.testing.assert_array_equal(found, expected)
        assert extractor.encode([]).shape == (0, 256)
        assert torch.equal(preprocess(mixed, extractor.model).cpu(), images)
        assert torch.equal(extractor.model.encode_image(images, places).cpu(), raw)
        extractor.model.to("cpu")
        np.testing.assert_array_equal(extractor.encode(mixed, camera=[6, 2, 1, 3]), expected)


@pytest.mark.gpu
def test_a_real_gpu_gives_the_cpus_features_to_five_digits(
    make: Callable[..., tuple[Path, ReIDModel]], gpu_rank: Any
) -> None:
    folder = str(make()[0])
    [found] = gpu_rank(encoded, folder=folder, device="cuda")  # with TF32: to three
    np.testing.assert_allclose(found, encoded(folder, "cpu"), rtol=0, atol=1e-5)


def encoded(folder: str, device: str) -> list[list[float]]:
    pixels = np.random.default_rng(2).integers(0, 256, (5, 64, 32, 3), dtype=np.uint8)
    return svll.load(folder, device).encode(list(pixels)).tolist()


def test_a_device_that_torch_cannot_use_is_refused_before_the_file_is_read(
    make: Callable[..., tuple[Path, ReIDModel]]
) -> None:
    for device in ("cuda", "gpu"):
        with pytest.raises(UserError, match=f"device '{device}': torch cannot use it here .*give"):
            svll.load("missing.safetensors", device)
    with emulated(devices=2), pytest.raises(UserError, match=r"device 'cuda:2': .*ordinal"):
        svll.load(make()[0], "cuda:2")


def test_patches_are_convolved_in_full_float32(
    make: Callable[..., tuple[Path, ReIDModel]], paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plain, conv = [], torch.nn.functional.conv2d, cast(Any, torch.backends.cudnn).conv

    def watched(*given: Any) -> torch.Tensor:
        seen.append(conv.fp32_precision)
        return plain(*given)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "tf32"
        svll.load(make()[0]).encode(paths)
        assert conv.fp32_precision == "tf32"
    finally:
        conv.fp32_precision = before
    assert set(seen) == {"ieee"}
