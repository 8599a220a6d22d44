"""A split of a user's images: no identity on two sides, and every query can be matched."""

import logging
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.images.pixels import IMAGE_ENDINGS
from svll.data.own_split import Options, collect, split, write_split
from svll.data.readers import csv_list
from svll.data.readers.common import find_images
from svll.data.readers.csv_list import Entry
from tests.svll.data.trees import clutter, picture

NO_VALIDATION = Options(validation=0)


def people(count: int, images: int, cameras: int = 0) -> list[Entry]:
    """Images of identities, taken by cameras in turn."""
    return [
        Entry(f"/d/{i:03d}_{n}.jpg", f"p{i:03d}", f"c{n % cameras}" if cameras else None)
        for i in range(count) for n in range(images)
    ]  # fmt: skip


def by_part(entries: list[Entry]) -> dict[str | None, set[str]]:
    found = defaultdict(set)
    for entry in entries:
        found[entry.split].add(entry.identity)
    return found


@pytest.mark.parametrize("cameras", [0, 3])
def test_no_identity_is_on_two_sides_and_shares_are_as_asked(cameras: int) -> None:
    found = split(people(40, 6, cameras), Options(test=0.25, validation=0.2))
    parts = by_part(found)
    assert parts["query"] == parts["gallery"]
    assert {part: len(ids) for part, ids in parts.items()} == {
        "train": 24, "validation": 6, "query": 10, "gallery": 10,
    }  # fmt: skip
    assert len(set.union(*parts.values())) == 40
    whole = [e for e in found if e.identity in parts["train"] | parts["validation"]]
    assert len(whole) == 30 * 6
    assert len(found) == 40 * 6


def test_each_camera_of_a_test_identity_asks_once() -> None:
    found = split(people(10, 6, cameras=3), NO_VALIDATION)
    queries = Counter((e.identity, e.camera) for e in found if e.split == "query")
    assert len(queries) == 5 * 3
    assert set(queries.values()) == {1}


@pytest.mark.parametrize("seed", range(5))
def test_every_query_has_a_match_under_another_camera(seed: int) -> None:
    rng = random.Random(seed)
    entries = [
        Entry(f"/d/{i:02d}_{n}.jpg", str(i), str(rng.randrange(4)))
        for i in range(40) for n in range(rng.randrange(1, 6))
    ]  # fmt: skip
    found = split(entries, Options(test=0.3, validation=0, seed=seed))
    gallery = defaultdict(set)
    for entry in found:
        if entry.split == "gallery":
            gallery[entry.identity].add(entry.camera)
    queries = [e for e in found if e.split == "query"]
    assert {e.identity for e in queries} == set(gallery)
    assert all(gallery[e.identity] - {e.camera} for e in queries)


@pytest.mark.parametrize(("queries", "expected"), [(None, 1), (2, 2), (9, 3)])
def test_without_cameras_so_many_ask_and_one_at_least_is_found(
    queries: int | None, expected: int
) -> None:
    found = split(people(8, 4), Options(validation=0, queries=queries))
    counted = Counter(e.identity for e in found if e.split == "query")
    assert set(counted.values()) == {expected}
    assert all(e.camera is None for e in found)


def test_identities_that_cannot_be_matched_go_to_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone = [Entry("/d/x.jpg", "a"), Entry("/d/y.jpg", "zz")]
    with caplog.at_level(logging.INFO):
        parts = by_part(split([*alone, *people(6, 2)], Options(test=0.75, validation=0)))
    assert {"a", "zz"} == parts["train"]
    assert "2 identities that cannot be matched go to training" in caplog.text
    one_camera = [Entry("/d/x.jpg", "a", "c1"), Entry("/d/y.jpg", "a", "c1")]
    for seed in range(5):
        found = split([*one_camera, *people(6, 4, 2)], Options(validation=0, seed=seed))
        assert {"a"} <= by_part(found)["train"]


def test_one_camera_for_all_is_none(caplog: pytest.LogCaptureFixture) -> None:
    found = split(people(8, 4, cameras=1), NO_VALIDATION)
    assert all(e.camera is None for e in found)
    assert "written without cameras" in caplog.text


def test_the_same_seed_gives_the_same_split_and_another_another(tmp_path: Path) -> None:
    root = tmp_path / "own"
    names = [(f"{who}", f"{n}.jpg") for who in "abcdefgh" for n in range(3)]
    for order, place in ((names, root), (names[::-1], tmp_path / "again" / "own")):
        for who, name in order:
            picture(place / who / name)
    texts = []
    for place, seed in ((root, 1), (tmp_path / "again" / "own", 1), (root, 2)):
        out = place.parent / f"{seed}.csv"
        write_split(place, out, Options(validation=0, seed=seed))
        texts.append(out.read_text())
    assert texts[0] == texts[1] != texts[2]
    tested = [by_part(csv_list.read(tmp_path / f"{seed}.csv"))["query"] for seed in (1, 2)]
    assert tested[0] != tested[1]


def test_a_list_is_split_alike_in_any_order(tmp_path: Path) -> None:
    lines = [f"{i}/{n}.jpg,{i},{n},{n % 2}" for i in range(8) for n in range(3)]
    texts = []
    for name, order in (("a", lines), ("b", lines[::-1])):
        path = tmp_path / f"{name}.csv"
        path.write_text("path,identity,camera,view\n" + "\n".join(order))
        write_split(path, tmp_path / f"{name} split.csv", NO_VALIDATION)
        texts.append((tmp_path / f"{name} split.csv").read_text())
    assert texts[0] == texts[1]
    dataset = csv_list.load(tmp_path / "a split.csv")
    assert dataset.protocol == "cross_camera"
    assert sum(map(len, dataset.parts().values())) == 24
    assert set(dataset.gallery.views.tolist()) == {0, 1}
    with pytest.raises(UserError, match="has a column split already"):
        write_split(tmp_path / "a split.csv", tmp_path / "c.csv", NO_VALIDATION)


def test_a_folder_per_identity_is_read_at_any_depth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("anna/1.jpg", "anna/monday/2.JPG", "bert/1.png", "bert/2_c1.jpg"):
        picture(tmp_path / name)
    clutter(tmp_path / "anna")
    clutter(tmp_path)
    for name in ("anna/monday/3.HEIC", "bert/3.heic", "bert/4.gif", "bert/notes"):
        (tmp_path / name).write_text("x")
    (tmp_path / "nobody").mkdir()
    (tmp_path / ".git").mkdir()
    found = collect(tmp_path)
    assert [(Path(e.path).name, e.identity, e.camera) for e in found] == [
        ("1.jpg", "anna", None), ("2.JPG", "anna", None), ("1.png", "bert", None),
        ("2_c1.jpg", "bert", None),
    ]  # fmt: skip
    messages = [record.getMessage() for record in caplog.records if "Skipped" in record.message]
    assert messages == [f"{tmp_path}: Skipped 4 files (unsupported: .heic 2, .gif 1, no ending 1) "
                        "and 1 folder (.git/)"]
    assert "1 folders have no images (nobody)" in caplog.text


def test_every_accepted_ending_is_read(tmp_path: Path) -> None:
    names = [f"000{n % 2}_c{n}s1_1{ending}" for n, ending in enumerate(IMAGE_ENDINGS)]
    for name in [*names, "0001_c9s1_1.gif"]:
        picture(tmp_path / name)
    assert sorted(Path(entry.path).name for entry in collect(tmp_path)) == sorted(names)
    assert find_images(tmp_path) == sorted(tmp_path / name for name in names)
    lines = [f"{name},{name[:4]}\n" for name in names]
    (tmp_path / "list.csv").write_text("path,identity\n" + "".join(lines))
    assert len(csv_list.read(tmp_path / "list.csv")) == len(names)
    (tmp_path / "list.csv").write_text("path,identity\n0001_c9s1_1.gif,1\n")
    with pytest.raises(UserError, match=r"0001_c9s1_1\.gif is no image \(\.jpg, .*\.tiff\)"):
        csv_list.read(tmp_path / "list.csv")


def test_cameras_are_known_where_all_names_say_them(tmp_path: Path) -> None:
    for name in ("anna/0001_c1s1_1.jpg", "anna/0001_c2s1_1.jpg", "bert/0002_c02_1.jpg"):
        picture(tmp_path / name)
    assert [(e.identity, e.camera) for e in collect(tmp_path)] == [
        ("anna", "1"), ("anna", "2"), ("bert", "2"),
    ]  # fmt: skip
    picture(tmp_path / "anna" / "Copy of 0001_c1s1_1.jpg")
    with pytest.raises(UserError, match=r"3 images are named like .*, 1 are not: .*Copy of 0001_"):
        collect(tmp_path)


def test_folders_of_cameras_below_identities_tell_the_camera(tmp_path: Path) -> None:
    for name in ("anna/cam1/x.jpg", "anna/Camera_02/y.jpg", "bert/c3/z.jpg", "bert/0001_c4_1.jpg"):
        picture(tmp_path / name)
    assert sorted((e.identity, str(e.camera)) for e in collect(tmp_path)) == [
        ("anna", "1"), ("anna", "2"), ("bert", "3"), ("bert", "4"),
    ]  # fmt: skip
    picture(tmp_path / "anna" / "monday" / "x.jpg")
    with pytest.raises(UserError, match=r"4 images are .* or lie in a folder like cam1, .*monday"):
        collect(tmp_path)


def test_an_identity_named_like_a_camera_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("c1", "c2", "cam1", "camera 4"):
        for number in range(2):
            picture(tmp_path / name / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, Path()):
        found = {(entry.identity, entry.camera) for entry in collect(root)}
        assert found == {("c1", None), ("c2", None), ("cam1", None), ("camera 4", None)}
    write_split(tmp_path, tmp_path / "out.csv", NO_VALIDATION)
    assert csv_list.load(tmp_path / "out.csv").protocol == "all_gallery"
    for folder in Path().glob("c*/"):
        (folder / "c7").mkdir()
        for image in folder.glob("*.jpg"):
            image.rename(folder / "c7" / image.name)
    assert {entry.camera for entry in collect(tmp_path)} == {"7"}


def test_a_flat_folder_is_read_by_its_names_without_junk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("0002_c1s1_1.jpg", "0002_c3s1_1.jpg", "-1_c3s1_1.jpg"):
        picture(tmp_path / name)
    with caplog.at_level(logging.INFO):
        assert [(e.identity, e.camera) for e in collect(tmp_path)] == [("2", "1"), ("2", "3")]
    assert "dropped 1 junk" in caplog.text
    picture(tmp_path / "holiday.jpg")
    with pytest.raises(UserError, match=r"1 images are neither in a folder .*: holiday\.jpg"):
        collect(tmp_path)


def test_images_beside_folders_are_an_error(tmp_path: Path) -> None:
    for name in ("anna/1.jpg", "2.jpg"):
        picture(tmp_path / name)
    with pytest.raises(UserError, match=r"1 folders \(anna\) and 1 images beside them \(2\.jpg\)"):
        collect(tmp_path)


def test_folders_that_are_one_number_are_an_error(tmp_path: Path) -> None:
    for name in ("7/1.jpg", "007/1.jpg"):
        picture(tmp_path / name)
    with pytest.raises(UserError, match="has both 007 and 7"):
        collect(tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_split(tmp_path, tmp_path / "out.csv", NO_VALIDATION)
    assert (tmp_path / "out.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("identities", "parts"),
    [(4, (2, 0, 2)), (5, (3, 0, 2)), (12, (6, 0, 6)), (16, (6, 2, 8)), (20, (8, 2, 10)),
     (40, (18, 2, 20)), (100, (45, 5, 50))],
)
def test_any_number_of_identities_from_four_on_is_split_by_default(
    identities: int, parts: tuple[int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = by_part(split(people(identities, 3), Options()))
    assert tuple(len(found[part]) for part in ("train", "validation", "query")) == parts
    assert ("no identities are held out for validation" in caplog.text) == (parts[1] == 0)


def test_by_default_no_more_are_tested_than_can_be_matched() -> None:
    alone = [Entry(f"/d/{i}.jpg", f"x{i}") for i in range(8)]
    found = by_part(split([*people(3, 3), *alone], Options()))
    assert (len(found["query"]), len(found["train"])) == (3, 8)
    with pytest.raises(UserError, match="1 of 9 identities can be matched: two images are"):
        split([*people(1, 3), *alone], Options())


def test_the_log_says_why_no_identities_are_held_out(caplog: pytest.LogCaptureFixture) -> None:
    alone = [Entry(f"/d/{i}.jpg", f"x{i}") for i in range(20)]
    with caplog.at_level(logging.INFO):
        split([*people(8, 3), *alone], Options())
        split(people(12, 3), Options())
    assert [message for message in caplog.messages if "held out" in message] == [
        "no identities are held out for validation: besides the tested ones 0 can be matched, "
        "2 are needed",
        "no identities are held out for validation: 6 are left for training",
    ]


def test_too_few_identities_are_an_error_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"of 3 identities 1 .*, so at least 4 identities are need"):
        split(people(3, 3), Options())
    with pytest.raises(UserError, match=r"of 12 identities 5 .*, 1 held out .*; leave out --test"):
        split(people(12, 3), Options(validation=0.1))
    with pytest.raises(UserError, match=r"5 tested, and only 4 can be matched \(two images\)"):
        split([*people(4, 3), *[Entry(f"/d/{i}.jpg", f"x{i}") for i in range(4)]],
              Options(test=0.6, validation=0))  # fmt: skip


def test_options_that_make_no_sense_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Options(test=1, validation=-1, queries=0)
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(UserError, match="one query per camera"):
        split(people(8, 4, 2), Options(validation=0, queries=2))


def test_which_image_asks_depends_on_the_seed() -> None:
    asking = []
    for seed in (1, 2):
        found = split(people(40, 9), Options(test=0.9, validation=0, seed=seed))
        asking.append({e.identity: e.path for e in found if e.split == "query"})
    both = asking[0].keys() & asking[1].keys()
    assert len(both) > 20
    same = sum(asking[0][identity] == asking[1][identity] for identity in both)
    assert same < len(both) / 2


def test_files_beside_and_links_below_folders_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("anna/1.jpg", "anna/.2.jpg", "bert/1.jpg"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "anna" / "more").symlink_to(tmp_path / "bert")
    (tmp_path / "anna" / "3.jpg").symlink_to("nowhere")
    assert [Path(entry.path).name for entry in collect(tmp_path)] == ["1.jpg", "3.jpg", "1.jpg"]
    assert caplog.messages == [
        f"{tmp_path}: Skipped 1 file (unsupported: .txt 1), 1 hidden image (.2.jpg) and 1 "
        "folder (more/)"
    ]
    (tmp_path / "carl").symlink_to(tmp_path / "bert")
    with pytest.raises(UserError, match="bert and carl are the same folder"):
        collect(tmp_path)


@pytest.mark.parametrize("name", ["NA", "-2", "1,000", "1E+12"])
def test_folders_that_a_list_could_not_name_are_refused_before_it_is_written(
    tmp_path: Path, name: str
) -> None:
    for who in ("a", "b", "c", "d", name):
        for number in range(2):
            picture(tmp_path / "own" / who / f"{number}.jpg")
    with pytest.raises(UserError, match=rf"own/{re.escape(name)}: identity is {re.escape(name)}"):
        write_split(tmp_path / "own", tmp_path / "out.csv", NO_VALIDATION)
    assert not (tmp_path / "out.csv").exists()


def test_odd_names_are_read_back_as_they_were(tmp_path: Path) -> None:
    for who in (" a", "b,\n", 'c"', "d\r", "-1.0"):
        for number in range(2):
            picture(tmp_path / who / f"\\.{number}.jpg")
    entries = write_split(tmp_path, tmp_path / "out.csv", NO_VALIDATION)
    assert {Path(entry.path).parent.name for entry in entries} == {" a", "b,\n", 'c"', "d\r"}
    found = csv_list.read(tmp_path / "out.csv")
    assert sorted(entry.path for entry in found) == sorted(entry.path for entry in entries)
    assert {entry.identity for entry in found} == {"a", "b,", 'c"', "d"}


def test_images_of_identity_0_in_a_flat_folder_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("0000_c1s1_1.jpg", "0000_c2s1_1.jpg", "0001_c2s1_1.jpg"):
        picture(tmp_path / name)
    assert len(collect(tmp_path)) == 3
    assert "2 images of identity 0, which Market-1501 gives to many people" in caplog.text
