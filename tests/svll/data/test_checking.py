"""A dataset's labels are checked before training, and what is unusual becomes a sentence."""

from itertools import count
from pathlib import Path

import numpy as np

from svll.base.records import Dataset, Records, Row
from svll.data import benchmarks, checking
from svll.data.checking import PartCounts, notes
from tests.svll.data import trees

NUMBERS = count()
"""Each image is another file."""


def records(*labels: tuple[int, int]) -> Records:
    return Records.from_rows(Row(f"{next(NUMBERS)}.jpg", *label) for label in labels)


TRAIN = records((1, 0), (1, 1), (2, 0), (2, 1))


def noted(query: Records, gallery: Records, *, train: Records = TRAIN,
          protocol: str = "cross_camera") -> list[str]:  # fmt: skip
    return notes(Dataset("made", protocol, train, query, gallery))


def test_no_note_where_all_is_as_expected() -> None:
    assert noted(records((7, 0), (8, 1)), records((7, 1), (8, 0), (0, 3))) == []


def test_queries_without_a_match_are_counted_by_their_reason() -> None:
    query = records((7, 0), (7, 1), (8, 1), (9, 0), (9, 1), (10, 2))
    gallery = records((7, 1), (8, 1), (8, 1), (10, 0))
    # 9 is absent; 8 is there under camera 1 only, as is 7 for its second query
    assert noted(query, gallery) == [
        "1 of 4 query identities are absent from the gallery, 2 are there under the query's own "
        "camera only; 4 of 6 queries are left out of the metrics; to rank those, set "
        "evaluation.protocol=all_gallery"
    ]
    assert noted(query, gallery, protocol="all_gallery") == [
        "1 of 4 query identities are absent from the gallery; 2 of 6 queries are left out of the "
        "metrics"
    ]


def test_the_numbers_agree_with_a_comparison_of_every_pair() -> None:
    rng = np.random.default_rng(3)
    query, gallery = (
        records(*map(tuple, rng.integers(0, (30, 4), (size, 2)).tolist())) for size in (60, 50)
    )
    same = query.identities[:, None] == gallery.identities
    other = query.cameras[:, None] != gallery.cameras
    absent = set(query.identities[~same.any(1)].tolist())
    near = set(query.identities[same.any(1) & ~(same & other).any(1)].tolist())
    left = int((~(same & other).any(1)).sum())
    (note,) = noted(query, gallery)
    assert min(len(absent), len(near)) > 2
    assert note.startswith(f"{len(absent)} of {len(set(query.identities))} query identities are")
    assert f" {len(near)} are there under" in note
    assert f"; {left} of 60 queries are left out" in note


def test_a_single_camera_is_noted_with_the_option_that_helps() -> None:
    one = records((7, 0))
    train = records((1, 0), (1, 0))
    first, second = noted(one, one, train=train)
    assert first.startswith("all images are of one camera")
    assert "evaluation.protocol=all_gallery" in first
    assert "1 are there under the query's own camera only" in second
    assert noted(one, records((7, 0)), train=train, protocol="all_gallery") == []
    (alone,) = noted(one, one, train=train, protocol="all_gallery")
    assert "1 are there as the query itself only; 1 of 1 queries are left out" in alone
    assert not any("one camera" in note for note in noted(one, one))


def test_identities_of_a_single_image_are_counted() -> None:
    train = records((1, 0), (1, 1), (2, 0), (3, 2))
    (note,) = noted(records((7, 0)), records((7, 1)), train=train)
    assert note.startswith("2 of 3 training identities have a single image")
    test = records((4, 0), (4, 0), (5, 0))
    (note,) = noted(test, test, protocol="random_gallery")
    assert note.startswith("1 of 2 test identities have a single image")


def test_parts_are_counted_beside_what_is_published(tmp_path: Path) -> None:
    tree = trees.veri776(tmp_path)
    dataset = benchmarks.load_benchmark("veri776", tree.root)
    found = checking.part_counts(dataset, benchmarks.describe("veri776"))
    assert found == [
        PartCounts("train", 2, 4, 4, (576, 37_778)),
        PartCounts("query", 2, 2, 2, (200, 1_678)),
        PartCounts("gallery", 2, 3, 3, (200, 11_579)),
    ]
    trees.vehicleid(tmp_path)
    dataset = benchmarks.load_benchmark("vehicleid", tmp_path)
    assert checking.part_counts(dataset, benchmarks.describe("vehicleid")) == [
        PartCounts("train", 2, 4, 1, (13_164, 113_346)), PartCounts("test", 2, 5, 1, (800, None)),
    ]  # fmt: skip
    assert [part.published for part in checking.part_counts(dataset, None)] == [None, None]
