"""Any folder in Market-1501's layout is read as its protocol wants it."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.data.readers.market1501 import OWN, load

TRAIN = ("0007_c3s3_077419_03.jpg", "0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.jpg")
QUERY = ("0001_c1s1_001051_00.jpg", "12345_c6s2_000001_00.jpg")
GALLERY = ("0001_c2s1_000001_00.jpg", "0000_c4s6_020810_04.jpg", "-1_c5s2_000801_02.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "reid"
    for part, names in (
        ("bounding_box_train", TRAIN),
        ("query", QUERY),
        ("bounding_box_test", GALLERY),
    ):
        (root / part).mkdir(parents=True)
        for name in (*names, "Thumbs.db", f"._{names[0]}"):
            (root / part / name).write_bytes(b"")
    return root


def test_identities_and_cameras_come_from_the_names(folder: Path) -> None:
    dataset = load(folder)
    assert [Path(path).name for path in dataset.train.paths] == sorted(TRAIN)
    assert dataset.train.identities.tolist() == [2, 2, 7]
    assert dataset.train.cameras.tolist() == [0, 1, 2]
    assert dataset.train.views.tolist() == [0, 0, 0]
    assert dataset.query.identities.tolist() == [1, 12345]
    assert dataset.query.cameras.tolist() == [0, 5]
    assert all(Path(path).is_file() for path in dataset.query.paths)
    assert (dataset.name, dataset.protocol) == ("market1501", "cross_camera")


def test_junk_is_dropped_and_counted_and_distractors_stay(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert load(folder).gallery.identities.tolist() == [0, 1]
    assert f"{folder / 'bounding_box_test'}: dropped 1 junk images (identity -1)" in caplog.text


def test_endings_in_any_case_are_images(folder: Path) -> None:
    for name in ("0009_c1_1.JPG", "0009_c1_2.JPEG", "0009_c1_3.png", "0009_c1_4.Png"):
        (folder / "query" / name).write_bytes(b"")
    assert load(folder).query.identities.tolist() == [1, 9, 9, 9, 9, 12345]


def test_cameras_that_are_counted_from_0_in_names_stay_so(folder: Path) -> None:
    assert load(folder, OWN).query.cameras.tolist() == [0, 5]
    (folder / "bounding_box_train" / "0009_c0_1.jpg").write_bytes(b"")
    dataset = load(folder, OWN)
    assert dataset.query.cameras.tolist() == [1, 6]
    assert dataset.train.cameras.min() == 0


def test_the_unpacked_download_is_found_below_the_root(folder: Path) -> None:
    folder.rename(folder.parent / "Market-1501-v15.09.15")
    assert len(load(folder.parent).train) == 3


def test_other_numbers_than_the_published_ones_are_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "3 train images; Market-1501 has 12936" in caplog.text
    assert "2 gallery images; Market-1501 has 15913" in caplog.text


def test_views_are_looked_up_by_folder_and_name(folder: Path) -> None:
    dataset = load(folder, replace(OWN, name="cars"), views={f"query/{QUERY[1]}": 6})
    assert dataset.name == "cars"
    assert dataset.query.views.tolist() == [0, 6]


def test_a_missing_folder_is_an_error_that_lists_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "market1501" / "query").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path} (lacks bounding_box_train, query, bounding_box_test)" in message
    assert f"{tmp_path / 'Market-1501-v15.09.15'} (no such folder)" in message
    assert f"{tmp_path / 'market1501'} (lacks bounding_box_train, bounding_box_test)" in message
    assert "data.root" in message


def test_images_named_otherwise_are_an_error_that_names_them(folder: Path) -> None:
    (folder / "query" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"query: 1 images are not named like .*: holiday\.jpg"):
        load(folder)
    for number in range(7):
        (folder / "query" / f"a{number}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"query: 8 images .*: a0\.jpg, .*, a4\.jpg, \.\.\.$"):
        load(folder)


@pytest.mark.parametrize("name", ["-2_c1s1_1.jpg", "12_3.jpg", "x_c1.jpg", f"{10**19}_c1.jpg"])
def test_names_that_say_no_identity_and_camera_are_not_guessed(folder: Path, name: str) -> None:
    (folder / "query" / name).write_bytes(b"")
    with pytest.raises(UserError, match="not named like"):
        load(folder)


def test_an_empty_part_is_an_error(folder: Path) -> None:
    for path in (folder / "query").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="query: no images there"):
        load(folder)


def test_what_lies_beside_the_parts_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "0009_c1s1_1.jpg").touch()
    (folder / "gt_bbox").mkdir()
    (folder / "query" / "0009_c1s1_1.jpg").mkdir()
    with caplog.at_level(logging.INFO):
        assert len(load(folder).query) == len(QUERY)
    assert f"{folder}: Skipped 1 folder (0009_c1s1_1.jpg/)" in caplog.text
    assert "1 image beside the folders of images, not read (0009_c1s1_1.jpg)" in caplog.text
    assert f"{folder}: not read: gt_bbox/" in caplog.text


def test_distractors_outside_of_the_gallery_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "bounding_box_train" / "0000_c1s1_1.jpg").touch()
    assert load(folder).train.identities.tolist() == [0, 2, 2, 7]
    warning = "bounding_box_train: 1 image of identity 0, which stands for distractors"
    assert warning in caplog.text
    caplog.clear()
    load(folder, OWN)
    assert warning not in caplog.text


def test_a_part_that_is_a_file_is_an_error(folder: Path) -> None:
    (folder / "query").rename(folder / "other")
    (folder / "query").touch()
    with pytest.raises(UserError, match="query is a file; a folder of images is needed"):
        load(folder)
