"""VeRi-776's viewpoints: from lists where there are any, and no image is lost without one."""

import logging
from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.data.readers.veri776 import load
from tests.svll.data import trees


def views(paths: tuple[str, ...], found: list[int]) -> dict[str, int]:
    return {Path(path).name: view for path, view in zip(paths, found, strict=True)}


def test_views_come_from_the_lists_and_the_rest_gets_one_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees.veri776(tmp_path)
    with caplog.at_level(logging.INFO):
        dataset = load(tmp_path)
    assert views(dataset.train.paths, dataset.train.views.tolist()) == {
        "0001_c001_00016450_0.jpg": 5, "0001_c016_00016460_0.jpg": 0,
        "0003_c002_00000002_0.JPG": 6, "0003_c020_00000001_0.jpg": 7,
    }  # fmt: skip
    assert dataset.query.views.tolist() == [2, 1]
    assert dataset.gallery.views.tolist() == [2, 3, 7]
    assert (
        "2 images are in no viewpoint list; they are kept, as view 7 "
        "(0003_c020_00000001_0.jpg, 0005_c011_00000008_0.jpg)" in caplog.text
    )


def test_images_in_no_list_can_be_dropped_from_all_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trees.veri776(tmp_path)
    with caplog.at_level(logging.INFO):
        dataset = load(tmp_path, drop_unlisted=True)
    assert views(dataset.train.paths, dataset.train.views.tolist()) == {
        "0001_c001_00016450_0.jpg": 5, "0001_c016_00016460_0.jpg": 0,
        "0003_c002_00000002_0.JPG": 6,
    }  # fmt: skip
    assert dataset.query.views.tolist() == [2, 1]
    assert dataset.gallery.views.tolist() == [2, 3]
    assert [len(part.identities) for part in dataset.parts().values()] == [3, 2, 2]
    assert (
        "2 images are in no viewpoint list; they are dropped "
        "(0003_c020_00000001_0.jpg, 0005_c011_00000008_0.jpg)" in caplog.text
    )


def test_a_part_of_which_no_image_is_listed_cannot_be_dropped(tmp_path: Path) -> None:
    tree = trees.veri776(tmp_path)
    (tree.folder / "keypoint_test.txt").unlink()
    with pytest.raises(UserError) as caught:
        load(tmp_path, drop_unlisted=True)
    assert str(caught.value).splitlines() == [
        f"data.unlisted_views=drop: no image of {tree.folder / name} is in a viewpoint list; put "
        f"keypoint_train.txt and keypoint_test.txt into {tree.folder}, or set "
        "data.unlisted_views=keep"
        for name in ("image_query", "image_test")
    ]


def test_without_lists_every_view_is_0(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees.veri776(tmp_path, view_lists=False)
    with caplog.at_level(logging.INFO):
        dataset = load(tmp_path)
    assert [part.views.any() for part in dataset.parts().values()] == [False] * 3
    assert len(dataset.train) == 4
    assert "no keypoint_train.txt or keypoint_test.txt, so every view is 0" in caplog.text


def test_one_list_alone_is_used(tmp_path: Path) -> None:
    tree = trees.veri776(tmp_path)
    (tree.folder / "keypoint_test.txt").unlink()
    dataset = load(tmp_path)
    assert dataset.train.views.tolist() == [5, 0, 6, 7]
    assert dataset.gallery.views.tolist() == [7, 7, 7]


def test_malformed_and_contradicting_lines_are_errors_with_their_places(tmp_path: Path) -> None:
    tree = trees.veri776(tmp_path)
    path = tree.folder / "keypoint_test.txt"
    lines = ["a/b.jpg 8", "a/b.jpg", "0 1 2", "a/b.jpg 1", "b.jpg 1"]
    trees.write_list(path, ["a/0001_c001_00016450_0.jpg 4", *lines])
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    first, *others = str(caught.value).splitlines()
    assert first == (
        f"{path}, line 1: 0001_c001_00016450_0.jpg has view 4, and 5 in "
        f"{tree.folder / 'keypoint_train.txt'}, line 1"
    )
    assert [line.split(": ")[0] for line in others] == [f"{path}, line {n}" for n in (2, 3, 4)]
