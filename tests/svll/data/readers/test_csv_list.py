"""A CSV list of a user's images: labels may be any text, and all faults are reported at once."""

import logging
import os
import shlex
from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.data.readers.csv_list import Entry, load, numbers, read, write


def listed(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "own list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path)
    return str(caught.value).splitlines()


def test_every_column_is_read_in_any_order_and_numbers_are_kept(tmp_path: Path) -> None:
    path = listed(
        tmp_path,
        "split, camera,path,view,identity\n"
        "train,3,a/1.jpg,1,12\n"
        "query,2,/data/q.PNG,0,7\n"
        "\n"
        "gallery,2,b.jpeg,2,7\n"
        "validation,1,c.jpg,0,40\n",
    )
    dataset = load(path)
    assert dataset.train.paths == (str(tmp_path / "a" / "1.jpg"),)
    assert dataset.query.paths == ("/data/q.PNG",)
    parts = [dataset.train, dataset.validation, dataset.query, dataset.gallery]
    assert [part.identities.tolist() for part in parts] == [[12], [40], [7], [7]]
    assert [part.cameras.tolist() for part in parts] == [[3], [1], [2], [2]]
    assert [part.views.tolist() for part in parts] == [[1], [0], [0], [2]]
    assert (dataset.name, dataset.protocol) == ("list", "cross_camera")


def test_texts_become_numbers_in_sorted_order_over_all_parts(tmp_path: Path) -> None:
    path = listed(
        tmp_path,
        "path,identity,camera,view,split\n"
        "1.jpg,zoë,yard,side,train\n2.jpg,10,door,front,query\n3.jpg,10,gate,rear,gallery\n",
    )
    dataset = load(path)
    parts = [dataset.train, dataset.query, dataset.gallery]
    assert [part.identities[0] for part in parts] == [1, 0, 0]
    assert [part.cameras[0] for part in parts] == [2, 0, 1]
    assert [part.views[0] for part in parts] == [2, 0, 1]
    assert numbers(["b", "a", "b"]) == {"a": 0, "b": 1}
    assert numbers(["9", "10"]) == {"9": 9, "10": 10}


def test_what_excel_writes_is_read(tmp_path: Path) -> None:
    text = 'path,identity,split\r\n"a, b.jpg",1,train\r\nsub\\c.jpg,2,train\r\n'
    dataset = load(listed(tmp_path, text, "utf-8-sig"))
    assert dataset.train.paths == (str(tmp_path / "a, b.jpg"), str(tmp_path / "sub" / "c.jpg"))


def test_an_open_quote_is_named_by_the_line_in_which_it_begins(tmp_path: Path) -> None:
    path = listed(tmp_path, 'path,identity\n1.jpg,1\n"2.jpg,1\n3.jpg,2\n')
    assert faults(path) == [
        f"{path}, line 3: cannot be read as CSV: unexpected end of data; close each quote, and "
        "write a quote inside of quotes twice"
    ]


def test_without_cameras_no_gallery_image_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = listed(tmp_path, "path,identity,split\n1.jpg,1,query\n2.jpg,1,gallery\n")
    with caplog.at_level(logging.INFO):
        dataset = load(path)
    assert dataset.protocol == "all_gallery"
    assert dataset.query.cameras.tolist() == dataset.gallery.cameras.tolist() == [0]
    assert "no column camera" in caplog.text


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    lines = ["2.jpg,1,train", "1.jpg,1,train", "3.jpg,4,train"]
    found = []
    for order in (lines, lines[::-1]):
        dataset = load(listed(tmp_path, "path,identity,split\n" + "\n".join(order)))
        found.append((dataset.train.paths, dataset.train.identities.tolist(), dataset.fingerprint))
    assert found[0] == found[1]


def test_junk_is_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = listed(tmp_path, "path,identity,split\n1.jpg,-1,gallery\n2.jpg,3,train\n")
    with caplog.at_level(logging.INFO):
        dataset = load(path)
    assert list(dataset.parts()) == ["train"]
    assert dataset.train.identities.tolist() == [3]
    assert "dropped 1 junk images" in caplog.text


def test_without_a_split_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    path = listed(tmp_path, "path,identity\n1.jpg,1\n")
    (fault,) = faults(path)
    assert f"python launch/data.py split --root {shlex.quote(str(path))} --out NEW.csv" in fault


def test_all_faults_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    path = listed(
        tmp_path,
        "path,identity,camera,split\n"
        "1.jpg,1,1,train\n"
        "2.jpg,,1,tests\n"
        "./1.jpg,1,1,train\n"
        "3.jpg,1,1\n"
        "4.txt,-3,-1,query\n",
    )
    assert faults(path) == [
        f"{path}, line 3: identity is empty",
        f"{path}, line 3: split is 'tests'; one of train, validation, query, gallery",
        f"{path}, line 4: ./1.jpg is on line 2 already",
        f"{path}, line 5: expected 4 cells, found 3",
        f"{path}, line 6: 4.txt is no image (.jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff)",
        f"{path}, line 6: identity is -3; numbers may not be negative",
        f"{path}, line 6: camera is -1; numbers may not be negative",
    ]


def test_of_very_many_faults_twenty_are_shown(tmp_path: Path) -> None:
    found = faults(listed(tmp_path, "path,identity,split\n" + "1.jpg,,train\n" * 30))
    assert len(found) == 21
    assert found[-1] == "and 10 more lines at fault"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path;identity", "line 1: no column path; no column identity; unknown column 'path;"),
        ("path,identity,spilt", "line 1: unknown column 'spilt'; expected path,identity and"),
        ("path,path,identity", "line 1: column path appears twice"),
    ],
)
def test_a_header_of_other_columns_is_an_error(tmp_path: Path, header: str, message: str) -> None:
    (fault,) = faults(listed(tmp_path, f"{header}\n1.jpg,1,train\n"))
    assert message in fault


def test_two_texts_that_are_one_number_are_an_error(tmp_path: Path) -> None:
    (fault,) = faults(listed(tmp_path, "path,identity,split\n1.jpg,7,train\n2.jpg,007,train\n"))
    assert "column identity has both 007 and 7, which are one number" in fault
    for other in ("7.0", "007"):  # whatever else the column holds
        lines = f"1.jpg,7,train\n2.jpg,{other},train\n3.jpg,a,train\n"
        (fault,) = faults(listed(tmp_path, f"path,identity,split\n{lines}"))
        assert f"has both {min('7', other)} and {max('7', other)}, which are one number" in fault


def test_queries_need_a_gallery_and_the_other_way_round(tmp_path: Path) -> None:
    for one, other in (("query", "gallery"), ("gallery", "query")):
        (fault,) = faults(listed(tmp_path, f"path,identity,split\n1.jpg,1,{one}\n2.jpg,2,train\n"))
        assert f"no image has split {other}" in fault


def test_identities_in_training_and_test_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = "1.jpg,1,train\n2.jpg,1,query\n3.jpg,1,gallery\n4.jpg,2,validation\n"
    load(listed(tmp_path, "path,identity,split\n" + lines))
    assert "1 identities are in both train and query" in caplog.text
    assert "train and validation" not in caplog.text


def test_what_is_no_list_is_an_error(tmp_path: Path) -> None:
    assert "no such file" in faults(tmp_path / "none.csv")[0]
    path = listed(tmp_path, "")
    assert "is empty" in faults(path)[0]
    assert "own list.csv" in faults(tmp_path)[0]
    assert "lists no images" in faults(listed(tmp_path, "path,identity,split\n"))[0]
    for text in (b"path,\xff\n1.jpg,1\n", "path,identity\n1.jpg,1\n".encode("utf-16")):
        path.write_bytes(text)
        assert faults(path) == [f"{path} is not UTF-8; save the list as UTF-8"]


def test_a_name_that_is_not_utf_8_is_read_and_written_with_its_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xb2\xe2.jpg")
    (tmp_path / name).touch()
    entries = [Entry(str(tmp_path / name), os.fsdecode(b"\xd5\xc5"), split="train")]
    write(tmp_path / "new.csv", entries)
    assert (tmp_path / "new.csv").read_bytes().endswith(b"\n\xb2\xe2.jpg,\xd5\xc5,train\n")
    assert read(tmp_path / "new.csv") == entries
    (tmp_path / name).unlink()  # a list that another encoding wrote
    assert faults(tmp_path / "new.csv") == [
        f"{tmp_path / 'new.csv'}, line 2: {2 * chr(0xFFFD)}.jpg is not UTF-8, and no file has that "
        "name; save the list as UTF-8"
    ]


def test_paths_with_dots_are_the_file_that_they_open(tmp_path: Path) -> None:
    """`link/..` is the folder above what the link points to."""
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    (tmp_path / "a\\b.jpg").touch()  # as some tools unpack archives from Windows
    lines = "../1.jpg,1\n./2.jpg,1\nlink/../3.jpg,1\na\\b.jpg,1\na\\c.jpg,1\n"
    found = [entry.path for entry in read(listed(tmp_path, "path,identity\n" + lines))]
    assert found == [
        str(tmp_path.parent / "1.jpg"), str(tmp_path / "2.jpg"), str(tmp_path / "far" / "3.jpg"),
        str(tmp_path / "a\\b.jpg"), str(tmp_path / "a" / "c.jpg"),
    ]
    twice = listed(tmp_path, "path,identity,split\nlink/../3.jpg,1,train\nfar/3.jpg,1,train\n")
    assert faults(twice) == [f"{twice}, line 3: far/3.jpg is on line 2 already"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    entries = [
        Entry(str(tmp_path / 'a "b", c.jpg'), "zoë, 2", split="train"),
        Entry("/elsewhere/d.jpg", "1", split="query"),
    ]
    write(tmp_path / "new.csv", entries)
    assert read(tmp_path / "new.csv") == entries
    first = (tmp_path / "new.csv").read_text(encoding="utf-8").splitlines()[:2]
    assert first == ["path,identity,split", '"a ""b"", c.jpg","zoë, 2",train']


@pytest.mark.parametrize("junk", ["-1", "-1.0", "-1.00"])
def test_junk_is_junk_however_a_table_writes_whole_numbers(tmp_path: Path, junk: str) -> None:
    point = junk[2:]
    lines = [f"1.jpg,{junk},1{point},gallery", f"2.jpg,12{point},3{point},train",
             f"3.jpg,7{point},3{point},train"]
    dataset = load(listed(tmp_path, "path,identity,camera,split\n" + "\n".join(lines)))
    assert list(dataset.parts()) == ["train"]
    assert dataset.train.identities.tolist() == [12, 7]
    assert dataset.train.cameras.tolist() == [3, 3]
    lines.append("4.jpg,007,3,train")
    (fault,) = faults(listed(tmp_path, "path,identity,camera,split\n" + "\n".join(lines)))
    assert "column identity has both 007 and 7, which are one number" in fault
    versions = listed(tmp_path, "path,identity,split\n1.jpg,1.0,train\n2.jpg,1.5,train\n")
    assert [entry.identity for entry in read(versions)] == ["1.0", "1.5"]
    negative = listed(tmp_path, "path,identity,split\n1.jpg,-3.0,train\n")
    assert faults(negative) == [
        f"{negative}, line 2: identity is -3.0; numbers may not be negative"
    ]
    names = listed(tmp_path, f"path,identity,split\n1.jpg,{junk},train\n2.jpg,anna,train\n")
    assert len(load(names).train) == 1


@pytest.mark.parametrize("stray", ["x7", "\u00bd", "7.5", "9" * 19])
def test_a_text_among_numbers_is_warned_of_with_its_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stray: str
) -> None:
    lines = ["1.jpg,1,10,train", "2.jpg,1,9,train", f"3.jpg,1,{stray},train"]
    with caplog.at_level(logging.INFO):
        path = listed(tmp_path, "path,identity,camera,split\n" + "\n".join(lines))
        assert load(path).train.cameras.tolist() == [
            sorted(["10", "9", stray]).index(text) for text in ("10", "9", stray)
        ]
    assert (f"column camera has numbers and 1 text, such as {stray!r} of {tmp_path / '3.jpg'}, so "
            "all 3 are numbered from 0 in sorted order") in caplog.text


def test_texts_as_cameras_are_logged_with_their_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load(listed(tmp_path, "path,identity,camera,split\n1.jpg,a,yard,train\n2.jpg,b,door,train"))
    [message] = caplog.messages
    assert message.endswith("column camera has texts (door, yard), so all 2 are numbered from 0 in "
                            "sorted order")


def test_numbers_are_kept_up_to_18_digits(tmp_path: Path) -> None:
    path = listed(tmp_path, "path,identity,camera,view,split\n"
                  f"1.jpg,{10**12},70000,300,train\n2.jpg,{10**18 - 1},{2**31},{2**40},train\n")
    train = load(path).train
    assert train.identities.tolist() == [10**12, 10**18 - 1]
    assert train.cameras.tolist() == [70000, 2**31]
    assert train.views.tolist() == [300, 2**40]


def test_a_column_of_whole_numbers_is_read_in_any_notation(tmp_path: Path) -> None:
    lines = ['1.jpg,7.0,1', '2.jpg,1e+05,"2,0"', '3.jpg,8,3.', '4.jpg,\uff19,+4', '5.jpg, "7",1']
    entries = read(listed(tmp_path, "path,identity,camera\n" + "\n".join(lines)))
    assert [entry.identity for entry in entries] == ["7", "100000", "8", "9", "7"]
    assert [entry.camera for entry in entries] == ["1", "2", "3", "4", "1"]


def test_missing_labels_and_odd_cells_are_faults_with_their_lines(tmp_path: Path) -> None:
    path = listed(tmp_path, "path,identity,camera,split\n1.jpg,NA,1,train\n2.jpg,1,nan,train\n"
                  '3.jpg,"1,000",1,Train\n4\0.jpg,1E+12,\u22122,train\n')
    missing = "which stands for a missing value; give every image its label"
    assert faults(path) == [
        f"{path}, line 2: identity is NA, {missing}",
        f"{path}, line 3: camera is nan, {missing}",
        f"{path}, line 4: identity is 1,000; write numbers without separators",
        f"{path}, line 4: split is 'Train'; one of train, validation, query, gallery",
        f"{path}, line 5: path holds a zero byte",
        f"{path}, line 5: identity is 1E+12, which may be rounded; store long numbers with all "
        "their digits, as text",
        f"{path}, line 5: camera is \u22122; numbers may not be negative",
    ]


def test_a_list_of_junk_only_is_an_error(tmp_path: Path) -> None:
    [fault] = faults(listed(tmp_path, "path,identity,split\n1.jpg,-1,train\n2.jpg,-1.0,query\n"))
    assert fault.endswith("all 2 images are junk (identity -1)")
