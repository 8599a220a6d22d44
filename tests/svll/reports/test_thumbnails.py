"""Thumbnails: small JPEGs of what is there, grey boxes of what is not."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from svll.reports.thumbnails import HEIGHT, MOST_WIDTH, Thumbnails, find
from tests.harness.reporting.test_page import Reader


def shown(html: str) -> Image.Image:
    [(_, had)] = [tag for tag in Reader(html).tags if tag[0] == "img"]
    return Image.open(io.BytesIO(base64.b64decode((had["src"] or "").partition(",")[2])))


@pytest.mark.parametrize(
    ("size", "small"), [((64, 192), (32, 96)), ((3000, 500), (144, 24)), ((20, 30), (20, 30))]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_an_image_of_any_size_and_mode_becomes_a_small_jpeg_of_the_same_shape(
    tmp_path: Path, size: tuple[int, int], small: tuple[int, int], mode: str
) -> None:
    path = tmp_path / ("a.jpg" if mode in ("RGB", "L", "CMYK") else "a.png")
    Image.new("RGB", size, (200, 30, 30)).convert(mode).save(path)
    made = shown(Thumbnails()(str(path), "alt", "row 1"))
    assert (made.format, made.mode, made.size) == ("JPEG", "RGB", small)
    assert made.height <= HEIGHT
    assert made.width <= MOST_WIDTH


def test_an_image_that_a_camera_turned_stands_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 30)).save(tmp_path / "a.jpg", exif=turned)
    assert shown(Thumbnails()(str(tmp_path / "a.jpg"), "", "")).size == (30, 60)


def test_what_is_missing_or_broken_is_a_box_with_its_name_and_counted_once(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    Image.effect_noise((200, 200), 90).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:3000])
    Image.new("RGB", (8, 8)).save(tmp_path / "good.jpg")
    names = ["broken.jpg", "empty.png", "folder.jpg", "cut.jpg", "<b>gone</b>.jpg", "good.jpg"]
    small = Thumbnails()
    for name in [*names, *names]:
        read = Reader(small(f"{tmp_path}/{name}", "alt", "row 1"))
        if name == "good.jpg":
            assert [tag for tag, _ in read.tags] == ["img"]
        else:
            assert [had for _, had in read.tags] == [{"class": "gone"}]
            assert read.words == [name.rpartition("/")[2]]
    assert len(small.data) == 6
    assert small.missing == [f"{tmp_path}/{name}" for name in names[:-1]]


def test_an_image_without_a_path_is_a_box_that_says_something_else() -> None:
    small = Thumbnails()
    assert Reader(small(None, "alt", "row 1")).words == ["row 1"]
    assert small.data == {}


def test_images_are_found_below_a_folder_by_as_much_of_their_path_as_is_there(
    tmp_path: Path
) -> None:
    for place in ("here/query/a.jpg", "here/gallery/a.jpg", "here/b.jpg", "old/c.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    root = tmp_path / "here"
    assert find("/gone/market/query/a.jpg", root) == root / "query/a.jpg"
    assert find("gallery/a.jpg", root) == root / "gallery/a.jpg"
    assert find("/gone/market/query/b.jpg", root) == root / "b.jpg"
    assert find(f"{tmp_path}/old/c.jpg", root) == tmp_path / "old/c.jpg"
    assert find("/gone/d.jpg", root) == find("/gone/d.jpg", None) == Path("/gone/d.jpg")
    assert find("../../etc/b.jpg", root) == root / "b.jpg"
