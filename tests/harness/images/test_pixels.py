"""The pixels that files become: those of the picture they were made of, by whatever way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from harness.base.errors import UserError
from harness.images.decoding import check_images, decode_pipeline, file_names
from harness.images.pixels import Unreadable, upright
from tests import picture_files

PICTURE = picture_files.picture()
LOSSY = ("lossy.webp", "colour.jpg", "progressive.jpeg", "grey.jpg", "print.jpg")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return picture_files.write(tmp_path_factory.mktemp("kinds"), PICTURE)


def decoded(paths: list[Path]) -> list[NDArray[np.uint8]]:
    """As training reads them on a CPU."""
    pipeline = decode_pipeline(batch_size=len(paths), threads=1, device=torch.device("cpu"))
    pipeline.feed_input("files", file_names(map(str, paths)))
    [images] = pipeline.run()
    return [np.array(images[row]) for row in range(len(paths))]


def opened(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(upright(image))


def test_files_of_every_kind_are_the_picture_that_they_were_made_of(
    files: dict[str, Path]
) -> None:
    assert check_images([str(path) for path in files.values()], threads=1) == []
    for (name, path), pixels in zip(files.items(), decoded(list(files.values())), strict=True):
        wanted = picture_files.expected(name, PICTURE)
        assert pixels.shape == wanted.shape == (61, 37, 3), name
        difference = np.abs(pixels.astype(int) - wanted)
        assert difference.max() == 0 or (name in LOSSY and difference.mean() < 5), name
        assert (opened(path) == pixels).all(), name


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_each_orientation_stands_upright(tmp_path: Path, ending: str) -> None:
    paths = [
        picture_files.turned(tmp_path / f"{orientation}.{ending}", PICTURE, orientation)
        for orientation in picture_files.STORED
    ]
    for path, pixels in zip(paths, decoded(paths), strict=True):
        difference = np.abs(pixels.astype(int) - np.asarray(PICTURE))
        assert difference.mean() < (5 if ending in ("jpg", "webp") else 1e-9), path
        assert (opened(path) == pixels).all(), path
    with Image.open(paths[5]) as image:  # is the caller's: nothing in it changes
        upright(image)
        assert (opened(paths[5]) == np.asarray(upright(upright(image)))).all()


def test_nothing_but_a_valid_exif_tag_turns_an_image(tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[picture_files.ORIENTATION] = 9
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    saved = {"nine": {"exif": tag}, "other": {"xmp": xmp}, "cut": {"exif": b"Exif\0\0II*"}}
    for name, options in saved.items():
        PICTURE.save(tmp_path / f"{name}.webp", **options)
        PICTURE.save(tmp_path / f"{name}.jpg", **options)
    paths = sorted(tmp_path.iterdir())
    for path, pixels in zip(paths, decoded(paths), strict=True):
        assert pixels.shape == (61, 37, 3)
        assert (opened(path) == pixels).all(), path


def test_kinds_that_would_come_out_white_or_wrong_are_refused(tmp_path: Path) -> None:
    levels = np.asarray(PICTURE.convert("L"))
    made = {
        "floats.tif": Image.fromarray(levels.astype(np.float32)),
        "long.tif": Image.fromarray(levels.astype(np.int32)),
        "alpha.tif": picture_files.seen_through(PICTURE.convert("L")),
    }
    for name, image in made.items():
        image.save(tmp_path / name)
    PICTURE.save(tmp_path / "named.jpg", "GIF")
    faults = dict(check_images([str(path) for path in tmp_path.iterdir()], threads=1))
    kinds = {"floats.tif": "TIFF, mode F", "long.tif": "TIFF, mode I", "alpha.tif": "TIFF, mode LA",
             "named.jpg": "GIF, mode P"}
    assert faults == {
        str(tmp_path / name): f"not supported ({kind}); store it as JPEG or PNG"
        for name, kind in kinds.items()
    }
    for name in ("floats.tif", "long.tif"):
        with pytest.raises(UserError, match=r"mode . is not supported; convert it to RGB"):
            upright(made[name])


def test_an_error_names_the_first_files_and_counts_the_others() -> None:
    one = Unreadable([("a.jpg", "empty")])
    assert str(one) == "cannot decode an image; replace or remove:\n  a.jpg: empty"
    first, *named, last = str(Unreadable([(f"{n}.jpg", "empty") for n in range(70)])).split("\n")
    assert first == "cannot decode 70 images; replace or remove:"
    assert named == [f"  {n}.jpg: empty" for n in range(20)]
    assert last == "  and 50 more"
