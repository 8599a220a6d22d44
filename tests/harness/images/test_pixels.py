"""The pixels that files become: those of the picture they were made of, by whatever way."""

import io
import struct
import zlib
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


def saved(path: Path, block: bytes) -> str:
    PICTURE.save(path, exif=b"Exif\0\0" + block)
    return str(path)


def exif(*entries: tuple[int, int, int, int], order: str = "<", count: int | None = None) -> bytes:
    """An EXIF block of entries: tag, type, size and value or offset."""
    letters = b"II*\0" if order == "<" else b"MM\0*"
    head = struct.pack(f"{order}IH", 8, len(entries) if count is None else count)
    return letters + head + b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)


def test_a_damaged_exif_block_that_turns_an_image_is_refused(tmp_path: Path) -> None:
    """DALI turns the pixels, but not the size: noise."""
    turning = (picture_files.ORIENTATION, 3, 1, 6)
    blocks = {
        "count": exif(turning, count=300), "text": exif(turning, (0x10F, 2, 100, 8)),
        "fraction": exif((0x11A, 5, 1, 2**32 - 8), turning),
    }
    for name, block in blocks.items():
        path = saved(tmp_path / f"{name}.png", block)
        assert check_images([path], threads=1) == [
            (path, "an EXIF orientation that decoders read differently; store it without")
        ]
        with Image.open(path) as image, pytest.raises(UserError, match="decoders read diff"):
            upright(image)
        plain = Path(saved(tmp_path / f"plain {name}.png", block.replace(b"\x06\0\0\0", bytes(4))))
        assert (decoded([plain])[0] == np.asarray(PICTURE)).all()
        assert (opened(plain) == np.asarray(PICTURE)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_opened_images_are_turned_by_the_entry_that_turns_files(tmp_path: Path) -> None:
    tag = picture_files.ORIENTATION
    blocks = [
        exif((tag, 4, 2, 6)), exif((tag, 3, 1, 6 << 16), order=">"), exif((tag, 3, 1, 9)),
        exif((tag, 4, 1, 6), order=">"), exif((tag, 3, 1, 1), (tag, 3, 1, 6)),
        exif((tag, 3, 1, 8), (tag, 3, 1, 6)), exif((tag, 3, 1, 6))[:-4], exif((tag, 3, 1, 6))[:9],
    ]
    paths = [Path(saved(tmp_path / f"{n}.jpg", block)) for n, block in enumerate(blocks)]
    refused = dict(check_images([str(path) for path in paths], threads=1))
    assert [path.name for path in paths if str(path) in refused] == []
    turned = [pixels.shape == (37, 61, 3) for pixels in decoded(paths)]
    assert turned == [True, True, False, False, False, True, False, False]
    for path, pixels in zip(paths, decoded(paths), strict=True):
        assert (opened(path) == pixels).all(), path


def test_turned_tiffs_and_webps_that_decoders_read_differently_are_alike_or_refused(
    tmp_path: Path
) -> None:
    grey = picture_files.turned(tmp_path / "grey.tif", PICTURE.convert("L"), 6)
    assert (opened(grey) == decoded([grey])[0]).all()
    tag = Image.Exif()
    tag[picture_files.ORIENTATION] = 6
    moving = tmp_path / "moving.webp"
    PICTURE.save(moving, exif=tag, save_all=True, append_images=[PICTURE.rotate(180)])
    assert (opened(moving) == decoded([moving])[0]).all()
    alpha = picture_files.turned(tmp_path / "a.tif", picture_files.seen_through(PICTURE), 6)
    PICTURE.save(tmp_path / "b.webp", lossless=True, exif=tag)  # a chunk of odd size before EXIF
    content = (tmp_path / "b.webp").read_bytes()
    (tmp_path / "c.webp").write_bytes(content + bytes(300))
    paths = [str(alpha), str(tmp_path / "b.webp"), str(tmp_path / "c.webp")]
    faults = check_images(paths, threads=1)
    assert [path for path, _ in faults] == paths
    assert all(reason.startswith("not supported (") for _, reason in faults)


@pytest.mark.parametrize("ending", ["bmp", "tif"])
def test_a_file_that_is_cut_short_is_refused_though_the_decoder_fills_it_up(
    tmp_path: Path, ending: str
) -> None:
    picture_files.picture(size=(7, 12)).save(tmp_path / f"whole.{ending}")
    content = (tmp_path / f"whole.{ending}").read_bytes()
    path = tmp_path / f"cut.{ending}"
    for lost in (1, 40):  # the first is a byte of padding
        path.write_bytes(content[:-lost])
        [(name, reason)] = check_images([str(path)], threads=1)
        assert name == str(path)
    assert "truncated" in reason or "damaged" in reason


def test_a_bmp_without_room_for_its_palette_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    PICTURE.quantize(64).save(path)
    content = bytearray(path.read_bytes())
    content[46:50] = bytes(4)  # the number of colours; 0 stands for 256
    path.write_bytes(content)
    assert len(check_images([str(path)], threads=1)) == 1


def test_a_damaged_tag_of_a_tiff_is_a_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    picture_files.deep(PICTURE).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x11\x01\x04\0") + 2] = 7  # the strips' offsets are no number
    path.write_bytes(content)
    [(name, reason)] = check_images([str(path)], threads=1)
    assert name == str(path)
    assert reason.startswith("damaged (")


def test_a_tiff_without_strips_for_all_its_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    picture_files.deep(PICTURE).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"\x01\x01\x04\0\x01\0\0\0") + 8  # the height
    content[place : place + 2] = (2 * PICTURE.height).to_bytes(2, "little")
    path.write_bytes(content)
    assert [name for name, _ in check_images([str(path)], threads=1)] == [str(path)]


def test_an_mpo_is_turned_as_the_jpeg_that_it_begins_with(tmp_path: Path) -> None:
    """Many phones write one, and name it like a JPEG."""
    path = tmp_path / "a.jpg"
    PICTURE.save(path, "MPO", exif=picture_files.tag_of(6), save_all=True,
                 append_images=[PICTURE.rotate(180)])
    assert check_images([str(path)], threads=1) == []
    assert opened(path).shape == (37, 61, 3)
    assert (opened(path) == decoded([path])[0]).all()


def test_an_exif_block_after_the_pixels_of_a_png_turns_them(tmp_path: Path) -> None:
    content, end = io.BytesIO(), b"\0\0\0\0IEND"
    PICTURE.save(content, "PNG")
    block = b"eXIf" + exif((picture_files.ORIENTATION, 3, 1, 6))
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    path = tmp_path / "a.png"
    path.write_bytes(content.getvalue().replace(end, chunk + end))
    assert opened(path).shape == (37, 61, 3)
    assert (opened(path) == decoded([path])[0]).all()


def test_orientations_on_which_the_decoder_crashes_are_refused(tmp_path: Path) -> None:
    moving = str(tmp_path / "moving.png")
    PICTURE.save(moving, exif=picture_files.tag_of(6), save_all=True,
                 append_images=[PICTURE.rotate(180)])
    content = io.BytesIO()
    PICTURE.save(content, "JPEG")
    one, six = (b"Exif\0\0" + exif((picture_files.ORIENTATION, 3, 1, n)) for n in (1, 6))
    paths = [moving]
    for name, blocks in (("1 6", (one, six)), ("6 1", (six, one)), ("6 6", (six, six))):
        segments = [b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in blocks]
        paths.append(str(tmp_path / f"{name}.jpg"))
        Path(paths[-1]).write_bytes(content.getvalue()[:2] + b"".join(segments)
                                    + content.getvalue()[2:])
    refused = dict(check_images(paths, threads=1))
    assert list(refused) == paths[:3]
    assert all(reason.startswith("an EXIF orientation that") for reason in refused.values())
    assert (opened(Path(paths[3])) == decoded([Path(paths[3])])[0]).all()
