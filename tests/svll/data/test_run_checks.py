"""What can never be measured is refused before training, by numbers and with a way out."""

import logging

import numpy as np
import pytest

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.sources import Setting
from svll.base.records import Dataset, Records, Row
from svll.config import Config
from svll.data.datasets import Datasets
from svll.data.run_checks import check_matches, log_side_information
from svll.data.splits import split

Images = list[tuple[int, int]]
"""Identity and camera of each."""


def records(name: str, images: Images) -> Records:
    return Records.from_rows([Row(f"{name}{n}.jpg", i, c) for n, (i, c) in enumerate(images)])


def check(
    query: Images, gallery: Images, *, train: Images | None = None,
    protocol: str = "cross_camera",
) -> None:
    shown = train or [(i, c) for i in range(4) for c in (0, 1)]
    data = Dataset(
        "made", protocol, records("t", shown), records("q", query), records("g", gallery)
    )
    splits = split(Datasets((data,), (data,)), validation=0.0, seed=1)
    check_matches(splits)


def test_queries_that_all_have_a_match_log_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check([(1, 0), (2, 1)], [(1, 1), (2, 0), (9, 0)])
    assert not caplog.records


def test_a_gallery_without_any_match_says_who_is_missing_and_who_is_hidden() -> None:
    with pytest.raises(UserError) as caught:
        check([(1, 0), (2, 1), (3, 0)], [(1, 0), (8, 1)])
    message = str(caught.value)
    assert "made: 2 of 3 query identities are absent from the gallery" in message
    assert "1 are there under the query's own camera only" in message
    assert "evaluation.protocol=all_gallery" in message


def test_the_way_out_that_is_named_works(caplog: pytest.LogCaptureFixture) -> None:
    images = [(1, 0), (2, 0)]
    with pytest.raises(UserError, match=r"0 of 2 query identities are absent.*2 are there under"):
        check(images, images)
    check(images, images, protocol="all_gallery")
    assert not caplog.records


def test_some_queries_without_a_match_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check([(1, 0), (2, 1), (2, 0), (5, 0)], [(1, 0), (2, 0)])
    assert "made: 1 of 3 query identities are absent from the gallery, 2 are there" in caplog.text
    # identity 2 is found by the query of camera 1, and not by the one of camera 0
    assert "3 of 4 queries are left out" in caplog.text


def test_identities_of_a_single_image_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check([(1, 0)], [(1, 1)], train=[(1, 0), (1, 1), (2, 0), (3, 1)])
    assert "2 of 3 training identities have a single image" in caplog.text


def test_training_images_without_a_known_camera_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = [(i, c) for i in range(4) for c in (0, 1)]
    test = records("q", [(1, 0)]), records("g", [(1, 1)])
    known = Dataset("market1501", "cross_camera", records("t", images), *test)
    unknown = Dataset("list", "all_gallery", records("l", [(i, 0) for i in range(3)]), *test)
    splits = split(Datasets((known, unknown), (known,)), validation=0.0, seed=1)
    model = build(Config, [Setting("model.sie", "camera", "test")]).model
    with caplog.at_level(logging.WARNING):
        log_side_information(splits, model)
    assert [record.getMessage() for record in caplog.records] == [
        "list: 3 training images have no known camera: their side information is none "
        "(model.sie_unseen=none)"
    ]


def test_held_out_identities_are_checked_too() -> None:
    shown = [(i, i % 2) for i in range(8) for _ in range(3)]  # each by one camera
    data = Dataset(
        "made", "cross_camera", records("t", shown), records("q", [(1, 0)]),
        records("g", [(1, 1)]),
    )
    splits = split(Datasets((data,), (data,)), validation=0.5, seed=1)
    assert np.unique(splits.validation.query.identities).size == 4
    with pytest.raises(UserError, match="validation: 0 of 4 query identities are absent"):
        check_matches(splits)
