"""Test features through part files: none lost, none twice, the same bits however it is done."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from svll.base.feature_file import read_features
from svll.base.records import Records
from svll.features import extract as module
from svll.features.extract import FeatureTarget, Reader, encode_pair, encode_shard, encode_to_file

COUNT, BATCH, WIDTH = 37, 8, 6  # a prime number of images


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise, so that no two give the same features."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def records(folder: str | Path, numbers: list[int]) -> Records:
    count = len(numbers)
    return Records(
        tuple(str(Path(folder) / f"{number:02d}.png") for number in numbers),
        np.array(numbers) % 5, np.array(numbers) % 3, np.zeros(count, np.int64),
    )


def parts(folder: str | Path) -> tuple[Records, Records]:
    """A query and a gallery that share images, 37 in all."""
    return records(folder, [36, 3, 20, 35, 34]), records(folder, list(range(34)))


def write(
    photos: str, out: str, dtype: str = "float32", key: str = "k", die_after: int = -1
) -> int:
    """Encode on this rank; returns how many images it encoded. May kill itself."""
    torch.manual_seed(0)
    weights = torch.randn(3 * 16 * 8, WIDTH)
    seen = 0

    def encode(images: torch.Tensor, camera: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        if seen == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += len(images)
        # the mean makes features depend on the batch that an image is in, as rounding does
        features = images.flatten(1) @ weights + camera[:, None]
        return features + 1e-3 * features.mean()

    query, gallery = parts(photos)
    reader = Reader(16, 8, BATCH, 1, "cpu")
    target = FeatureTarget(Path(out), "toy", "m", "cross_camera", key, 1, dtype)  # type: ignore[arg-type]
    encode_to_file(target, query, gallery, reader, side, encode)
    return seen


def side(images: Records) -> tuple[Any, Any]:
    return images.cameras, images.views


def content(path: Path) -> dict[str, Any]:
    file = read_features(path)
    assert (file.dataset, file.model, file.protocol) == ("toy", "m", "cross_camera")
    assert file.key == "k"
    return {
        name: (g.features, g.identities.tolist(), g.cameras.tolist(), g.paths)
        for name, g in file.groups.items()
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys() == {"query", "gallery"}
    for name, (features, *labels) in found.items():
        np.testing.assert_array_equal(features, expected[name][0])
        assert labels == list(expected[name][1:])


def test_each_image_is_encoded_once_and_stands_in_its_place(photos: Path, tmp_path: Path) -> None:
    assert write(str(photos), str(tmp_path / "f.h5")) == COUNT
    found = content(tmp_path / "f.h5")
    for name, part in zip(("query", "gallery"), parts(photos), strict=True):
        assert found[name][1:] == (
            part.identities.tolist(), part.cameras.tolist(), tuple(part.paths)
        )
    assert np.array_equal(found["query"][0][1], found["gallery"][0][3])  # the same image
    assert len(np.unique(np.concatenate([f for f, *_ in found.values()]), axis=0)) == COUNT
    assert os.listdir(tmp_path) == ["f.h5"]


def test_two_ranks_write_the_bits_of_one(photos: Path, tmp_path: Path, two_ranks: Any) -> None:
    write(str(photos), str(tmp_path / "one.h5"))
    counts = two_ranks(write, photos=photos, out=tmp_path / "two.h5")
    assert sum(counts) == COUNT
    assert min(counts) > 0
    assert_same(content(tmp_path / "two.h5"), content(tmp_path / "one.h5"))


def test_a_kill_costs_what_no_part_has_yet(photos: Path, tmp_path: Path, two_ranks: Any) -> None:
    write(str(photos), str(tmp_path / "whole.h5"))
    program = (
        "import runpy, sys; module = runpy.run_path(sys.argv[1])\n"
        "module['module'].PART_S = 0.0\n"
        "module['write'](*sys.argv[2:4], die_after=24)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, __file__, photos, tmp_path / "f.h5"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "f.h5").exists()
    counts = two_ranks(write, photos=photos, out=tmp_path / "f.h5")
    assert 0 < sum(counts) <= COUNT - 16  # the last batch before the kill may not be written
    assert_same(content(tmp_path / "f.h5"), content(tmp_path / "whole.h5"))


def test_parts_of_other_weights_are_not_used(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_S", 0.0)
    monkeypatch.setattr(module, "merge_parts", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(str(photos), str(tmp_path / "f.h5"))
    monkeypatch.undo()
    assert list(tmp_path.glob("f.parts/k/part-*"))
    assert write(str(photos), str(tmp_path / "f.h5"), key="other") == COUNT
    assert os.listdir(tmp_path) == ["f.h5"]


def test_float16_keeps_the_nearest_half_of_each_number(photos: Path, tmp_path: Path) -> None:
    write(str(photos), str(tmp_path / "a.h5"))
    write(str(photos), str(tmp_path / "b.h5"), dtype="float16")
    whole, half = (content(tmp_path / name)["gallery"][0] for name in ("a.h5", "b.h5"))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, whole.astype(np.float16))


def test_in_memory_it_is_the_same_pair(photos: Path, tmp_path: Path) -> None:
    weights = torch.ones(3 * 16 * 8, 2)
    query, gallery = parts(photos)
    found = encode_pair(
        query, gallery, Reader(16, 8, BATCH, 1, "cpu"), side,
        lambda images, camera, view: images.flatten(1) @ weights + camera[:, None],
    )
    assert [len(part) for part in found] == [len(query), len(gallery)]
    assert torch.equal(found[0][1], found[1][3])


@pytest.mark.parametrize("size", [1, 3 * 3 * 16 * 8 * 4])
def test_a_batch_in_slices_gives_what_it_gives_whole(
    size: int, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, seen = records(photos, list(range(20, 31))), list[int]()

    def encode_rows(part: torch.Tensor, places: Any) -> torch.Tensor:
        seen.append(len(part))
        assert len(part) == len(places)
        return part.flatten(1)[:, :5] + torch.from_numpy(places)[:, None]

    reader = Reader(16, 8, BATCH, 1, "cpu")
    whole = encode_shard(images, reader, encode_rows)
    monkeypatch.setattr(module, "SLICE_BYTES", size)
    assert torch.equal(encode_shard(images, reader, encode_rows), whole)
    assert seen == [8, 3, *([1] * 11 if size == 1 else [3, 3, 2, 3])]


def test_images_are_encoded_in_full_float32(photos: Path) -> None:
    conv, seen = cast(Any, torch.backends.cudnn).conv, list[str]()

    def encode_rows(part: torch.Tensor, places: Any) -> torch.Tensor:
        seen.append(conv.fp32_precision)
        return part.flatten(1)

    encode_shard(records(photos, [1, 2]), Reader(16, 8, BATCH, 1, "cpu"), encode_rows)
    assert seen == ["ieee"]
