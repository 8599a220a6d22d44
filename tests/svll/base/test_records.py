"""Records are columns that stay together; a dataset's fingerprint follows its files."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svll.base.records import Dataset, Records, Row, usual_first_camera


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / "data" / f"part{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number + 1))
    return tmp_path / "data"


def dataset(folder: Path) -> Dataset:
    parts = [
        Records.from_rows(Row(str(path), 7, 2) for path in sorted((folder / part).iterdir()))
        for part in ("part0", "part1", "part2")
    ]
    return Dataset("name", "cross_camera", *parts)


def rows() -> list[Row]:
    return [Row("a.jpg", 5, 0), Row("b.jpg", 3, 1, 2), Row("c.jpg", 5, 2, 1)]


def test_rows_become_columns_in_the_order_given() -> None:
    records = Records.from_rows(rows())
    assert len(records) == 3
    assert records.paths == ("a.jpg", "b.jpg", "c.jpg")
    assert records.identities.tolist() == [5, 3, 5]
    assert records.cameras.tolist() == [0, 1, 2]
    assert records.views.tolist() == [0, 2, 1]
    assert records.identities.dtype == records.cameras.dtype == records.views.dtype == np.int64


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([2, 0], "ca"),
        (np.array([1, 1]), "bb"),
        (np.array([True, False, True]), "ac"),
        ([False, True, False], "b"),
        ([], ""),
        (np.zeros(3, dtype=bool), ""),
    ],
)
def test_take_keeps_the_columns_together(chosen: list[int], expected: str) -> None:
    taken = Records.from_rows(rows()).take(chosen)
    by_name = {row.path[0]: row for row in rows()}
    assert [path[0] for path in taken.paths] == list(expected)
    assert taken.identities.tolist() == [by_name[name].identity for name in expected]
    assert taken.cameras.tolist() == [by_name[name].camera for name in expected]
    assert taken.views.tolist() == [by_name[name].view for name in expected]


def test_no_images_are_records_too() -> None:
    records = Records.from_rows([])
    assert len(records) == 0
    assert records.identities.dtype == np.int64
    assert len(records.take([])) == 0


def test_fingerprint_is_a_hash_of_parts_relative_names_sizes_and_labels(folder: Path) -> None:
    lines = []
    for part, below in (("train", "part0"), ("query", "part1"), ("gallery", "part2")):
        for path in sorted((folder / below).iterdir()):
            lines.append(f"{part}\t{below}/{path.name}\t{path.stat().st_size}\t[7, 2, 0]\n")
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    assert dataset(folder).fingerprint == expected


def test_fingerprint_notices_labels_parts_and_order(folder: Path) -> None:
    """Features are cached under it, row by row."""
    whole = dataset(folder)
    train = whole.train
    changed = [
        whole,
        replace(whole, train=replace(train, identities=train.identities + 1)),
        replace(whole, train=replace(train, cameras=train.cameras + 1)),
        replace(whole, train=replace(train, views=train.views + 1)),
        replace(whole, train=train.take([1, 0])),
        replace(whole, train=train.take([0]), validation=train.take([1])),
        replace(whole, train=train.take([0])),
        replace(whole, train=whole.query, query=train),
    ]
    assert len({other.fingerprint for other in changed}) == len(changed)


def test_a_missing_file_is_left_to_the_decode_check(folder: Path) -> None:
    whole = dataset(folder)
    before = whole.fingerprint
    (folder / "part2" / "5.jpg").unlink()
    without = replace(whole)
    assert without.fingerprint not in ("", before)
    assert without.content_hash() != dataset(folder).content_hash()


def test_content_hash_depends_on_names_sizes_and_bytes_not_on_labels(folder: Path) -> None:
    whole = dataset(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.jpg")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\t{len(content)}\n".encode() + content)
    calls: list[tuple[int, int]] = []
    assert whole.content_hash(lambda *step: calls.append(step)) == digest.hexdigest()
    assert calls == [(done, 6) for done in range(1, 7)]
    other = replace(whole, train=whole.gallery, gallery=whole.train, query=whole.train)
    assert replace(other, validation=whole.query).content_hash() == digest.hexdigest()
    (folder / "part0" / "0.jpg").write_bytes(b"y")
    assert whole.content_hash() != digest.hexdigest()


def test_parts_without_images_are_not_listed_and_no_image_twice(folder: Path) -> None:
    whole = dataset(folder)
    assert list(whole.parts()) == ["train", "query", "gallery"]
    assert len(Records.empty()) == len(whole.validation) == 0
    more = replace(whole, query=whole.gallery, validation=whole.train)
    assert list(more.parts()) == ["train", "validation", "query", "gallery"]
    assert more.files() == sorted({*whole.train.paths, *whole.gallery.paths})


def test_fingerprint_survives_a_move_and_notices_changed_files(folder: Path) -> None:
    before = dataset(folder).fingerprint
    moved = folder.parent / "elsewhere" / "deeper"
    shutil.copytree(folder, moved)
    assert dataset(moved).fingerprint == before
    (moved / "part1" / "1.jpg").rename(moved / "part1" / "9.jpg")
    renamed = dataset(moved).fingerprint
    (moved / "part1" / "9.jpg").write_bytes(b"longer than before")
    assert len({before, renamed, dataset(moved).fingerprint}) == 3


def test_names_that_are_not_utf_8_have_a_fingerprint_by_their_bytes(folder: Path) -> None:
    path, other = (folder / "part0" / os.fsdecode(name) for name in (b"\xb2.jpg", b"\xb3.jpg"))
    (folder / "part0" / "0.jpg").rename(path)
    one = dataset(folder)
    path.rename(other)
    two = dataset(folder)
    assert one.fingerprint != two.fingerprint
    assert one.content_hash() != two.content_hash()


def test_benchmarks_number_their_cameras_from_one_where_a_file_does_not_say() -> None:
    named = ("market1501", "msmt17_v2", "synthetic")
    assert [usual_first_camera(name) for name in named] == [1, 1, 1]
    assert [usual_first_camera(name) for name in ("list", "vehicleid_800")] == [0, 0]
    assert [usual_first_camera(name) for name in ("folder", "toolbox")] == [None, None]
