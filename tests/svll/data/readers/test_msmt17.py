"""MSMT17's lists are read unchanged, and its two versions are distinguished."""

import logging
from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.data.readers.msmt17 import load
from tests.svll.data import trees


def test_version_2_is_read_from_its_own_folders_under_its_own_name(tmp_path: Path) -> None:
    tree = trees.msmt17(tmp_path, "V2", "MSMT17")
    dataset = load(tmp_path)
    assert (dataset.name, dataset.version, dataset.first_camera) == ("msmt17", "v2", 1)
    assert set(map(Path, dataset.train.paths)) == set(tree.labels("train"))
    assert all("mask_test_v2" in path for path in dataset.gallery.paths)


def test_both_versions_below_one_root_are_an_error_that_names_both(tmp_path: Path) -> None:
    trees.msmt17(tmp_path, "V1")
    trees.msmt17(tmp_path, "V2")
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert f"V1 (train, test) in {tmp_path / 'MSMT17_V1'}" in str(caught.value)
    assert f"V2 (mask_train_v2, mask_test_v2) in {tmp_path / 'MSMT17_V2'}" in str(caught.value)
    assert load(tmp_path / "MSMT17_V1").title == "msmt17 (v1)"
    assert load(tmp_path / "MSMT17_V2").title == "msmt17 (v2)"


def test_both_versions_in_one_folder_are_an_error_too(tmp_path: Path) -> None:
    trees.msmt17(tmp_path, "V1", "MSMT17")
    trees.msmt17(tmp_path, "V2", "MSMT17")
    with pytest.raises(UserError, match="both versions"):
        load(tmp_path / "MSMT17")


def test_both_training_lists_are_trained_on(tmp_path: Path) -> None:
    tree = trees.msmt17(tmp_path)
    assert len(load(tmp_path).train) == 4
    (tree.folder / "list_val.txt").unlink()
    with pytest.raises(UserError, match=r"MSMT17_V1 \(lacks list_val\.txt; or mask_train_v2, "):
        load(tmp_path)


def test_faults_of_lists_are_named_all_at_once_with_their_lines(tmp_path: Path) -> None:
    tree = trees.msmt17(tmp_path)
    name = "0000/0000_005_13_0303morning_0029_1.jpg"
    path = tree.folder / "list_gallery.txt"
    out = "0000/../../x_y_1_z.jpg"
    lines = [f"{name} 0", "", "0001/0001_004_08_0303noon_0010_1.jpg", f"0000/../{name} 0",
             f"{name[:-4]} x", f"{out} 1", f"/{name} 1"]
    trees.write_list(path, lines)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value).splitlines() == [
        f'{path}, line 3: expected "name identity", found \'0001/0001_004_08_0303noon_0010_1.jpg\'',
        f"{path}, line 4: {name} is named by {path}, line 1 already",
        f"{path}, line 5: expected \"name identity\", found '{name[:-4]} x'",
        f"{path}, line 6: {out} lies outside of the dataset's folder",
        f"{path}, line 7: /{name} lies outside of the dataset's folder",
    ]


def test_an_image_in_both_training_lists_is_an_error_with_both_lines(tmp_path: Path) -> None:
    tree = trees.msmt17(tmp_path)
    first, second = (tree.folder / f"list_{name}.txt" for name in ("train", "val"))
    second.write_text(first.read_text().splitlines()[1])
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{second}, line 1: ")
    assert str(caught.value).endswith(f" is named by {first}, line 2 already")


@pytest.mark.parametrize("name", ["0000/0000_000_00_x.jpg", "0000/0000_000.jpg", "0/0_1_c3_x.jpg"])
def test_a_name_without_a_camera_is_an_error_with_its_line(tmp_path: Path, name: str) -> None:
    tree = trees.msmt17(tmp_path)
    trees.write_list(tree.folder / "list_query.txt", [f"{name} 3"])
    with pytest.raises(UserError, match=r"list_query\.txt, line 1: no camera is in the name of "):
        load(tmp_path)


def test_images_that_no_list_names_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = trees.msmt17(tmp_path)
    trees.picture(tree.folder / "test" / "0007" / "0007_000_03_0303noon_0009_1.jpg")
    with caplog.at_level(logging.WARNING):
        load(tmp_path)
    name = "test/0007/0007_000_03_0303noon_0009_1.jpg"
    assert f"Skipped 1 images that are in no list ({name})" in caplog.text


def test_lists_saved_on_windows_are_read(tmp_path: Path) -> None:
    tree = trees.msmt17(tmp_path)
    expected = load(tmp_path).fingerprint
    for path in tree.folder.glob("list_*.txt"):
        text = path.read_text().replace("/", "\\").replace("\n", "\r\n")
        path.write_bytes(text.encode("utf-8-sig"))
    assert load(tmp_path).fingerprint == expected
