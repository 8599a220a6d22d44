"""Images that lie below a folder: all of them, and nothing else."""

from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.base.records import file_size
from svll.data.readers.common import find_images, read_lines


def test_images_below_a_folder_are_found_in_order_with_endings_in_any_case(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["b.JPG", "a.webp", "deep/er/c.Png", "deep/d e.bmp", "<b>.jpeg", "c.tif", "d.TIFF"]
    others = ["a.txt", "deep/b.gif", "deep/er/c.GIF", ".hidden.jpg", ".cache/a.jpg", "jpg"]
    for name in [*names, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in names)
    [message] = caplog.messages
    assert message == (f"{tmp_path}: Skipped 4 files (unsupported: .gif 2, .txt 1, no ending 1), "
                       "1 hidden image (.hidden.jpg) and 1 folder (.cache/)")


def test_a_single_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.touch()
    assert find_images(path) == [path]


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"no images there \(\.jpg, .*\.tiff\)\. Skipped 1 file "):
        find_images(tmp_path)
    with pytest.raises(UserError, match=r"/b: no such folder or image"):
        find_images(tmp_path / "b")


def test_linked_folders_are_looked_into_once(tmp_path: Path) -> None:
    real, place = tmp_path / "real", tmp_path / "place"
    for folder in (real, place / "sub"):
        folder.mkdir(parents=True)
    (real / "a.jpg").write_bytes(b"x")
    (place / "sub" / "b.jpg").write_bytes(b"x")
    (place / "cam1").symlink_to(real)
    (place / "sub" / "loop").symlink_to(place)
    assert find_images(place) == [place / "cam1" / "a.jpg", place / "sub" / "b.jpg"]


def test_hidden_images_and_folders_and_broken_links_are_not_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", ".b.jpg", "._a.jpg", ".trash/c.jpg", "@eaDir/a.jpg/b.jpg", "._d/e.jpg",
                 ".rc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    found = [path.name for path in find_images(tmp_path)]
    assert found == ["a.jpg", "gone.jpg", "round.jpg"]
    assert [file_size(tmp_path / name) for name in found] == [0, -1, -1]
    [message] = caplog.messages
    assert message == f"{tmp_path}: Skipped 1 hidden image (.b.jpg) and 2 folders (._d/, .trash/)"


def test_a_list_with_a_zero_byte_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a.jpg 1\nb\0.jpg 2\n")
    with pytest.raises(UserError, match=r"list\.txt, line 2: a zero byte"):
        read_lines(tmp_path / "list.txt")
