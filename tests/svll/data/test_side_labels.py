"""A camera or view has the vector of its own dataset, or none."""

import numpy as np
import pytest

from svll.base.records import Dataset, Records, Row
from svll.data.side_labels import UNNAMED, UNSEEN, SideLabels, known_sie

LABELS = SideLabels({"a": [1, 2, 6], "b": [2, 20240101]}, {"a": [0, 3], "b": [0]})


def test_a_label_is_looked_up_in_its_own_dataset() -> None:
    camera, view = LABELS.places("a", [6, 1, 2, 3], [3, 0, 1, 3])
    assert camera.tolist() == [2, 0, 1, UNSEEN]
    assert view.tolist() == [1, 0, UNSEEN, 1]
    assert LABELS.places("b", [2, 20240101, 1])[0].tolist() == [3, 4, UNSEEN]
    assert camera.dtype == view.dtype == np.int64


def test_large_labels_take_one_vector_each() -> None:
    rows = [Row(f"{c}.jpg", 0, c, view=v) for c, v in ((20240101, 90210), (7, 0), (8, 90210))]
    data = Dataset("list", "cross_camera", *[Records.from_rows(rows)] * 3)
    labels = SideLabels.of([(data, data.train)])
    assert (labels.camera_count, labels.view_count) == (3, 2)
    camera, view = labels.places(*data.side_columns(data.train))
    assert (camera.tolist(), view.tolist()) == ([2, 0, 1], [1, 0, 1])


def test_no_camera_of_a_set_that_was_not_trained_on_has_a_vector() -> None:
    camera, view = LABELS.places("c", [1, 2], [0, 0])
    assert camera.tolist() == view.tolist() == [UNSEEN, UNSEEN]


def test_each_of_vehicleids_lists_has_the_camera_that_any_of_them_was_trained_with() -> None:
    parts = [Records.from_rows([Row("1.jpg", 0, 0)])] * 3
    trained, tested = (
        Dataset(f"vehicleid_{size}", "random_gallery", *parts) for size in (800, 2400)
    )
    labels = SideLabels.of([(trained, trained.train)])
    assert SideLabels.from_json(labels.to_json()).places(*tested.side_columns(tested.query)) == (
        [0], [0]
    )


def test_an_unknown_view_is_unseen_unless_training_had_a_single_one() -> None:
    assert LABELS.places("a", [1])[1].tolist() == [UNSEEN]
    assert LABELS.places("b", [2])[1].tolist() == [2]


def test_labels_are_read_as_they_were_written() -> None:
    assert SideLabels.from_json(LABELS.to_json()) == LABELS
    published = SideLabels({UNNAMED: range(1, 3)}, {UNNAMED: range(1)})
    read = SideLabels.from_json(published.to_json())
    assert read.of_dataset("x").places("x", [2, 1, 3])[0].tolist() == [1, 0, UNSEEN]
    assert LABELS.of_dataset("x") == LABELS


def test_images_of_unknown_cameras_have_no_camera_in_common() -> None:
    rows = [Row(f"{n}.jpg", n, 0) for n in range(2)]
    unknown = Dataset("list", "all_gallery", *[Records.from_rows(rows)] * 3)
    known = Dataset("folder", "cross_camera", *[Records.from_rows(rows)] * 3)
    labels = SideLabels.of([(known, known.train), (unknown, unknown.train)])
    assert labels.camera_count == 1
    assert labels.places(*unknown.side_columns(unknown.train))[0].tolist() == [UNSEEN, UNSEEN]
    assert labels.places(*known.side_columns(known.train))[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("wanted", "cameras", "views", "kind"),
    [
        ("camera", 0, 1, "none"), ("camera", 1, 1, "camera"), ("camera", 6, 3, "camera"),
        ("camera_view", 0, 1, "none"), ("camera_view", 0, 3, "view"),
        ("camera_view", 1, 1, "camera_view"), ("view", 0, 3, "view"), ("view", 0, 1, "none"),
        ("none", 0, 3, "none"),
    ],
)
def test_side_information_is_of_what_is_known(
    wanted: str, cameras: int, views: int, kind: str
) -> None:
    assert known_sie(wanted, cameras=cameras, views=views) == kind
