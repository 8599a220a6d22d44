"""VehicleID's lists have names and identities only; evaluation draws its gallery."""

from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.data.benchmarks import load_benchmark
from tests.svll.data import trees


@pytest.mark.parametrize("size", [800, 1600, 2400])
def test_the_size_says_which_list_is_the_test_set(tmp_path: Path, size: int) -> None:
    tree = trees.vehicleid(tmp_path)
    dataset = load_benchmark(f"vehicleid_{size}", tmp_path)
    assert dataset.name == f"vehicleid_{size}"
    assert dataset.query is dataset.gallery
    assert set(map(Path, dataset.query.paths)) == set(tree.labels(f"test_list_{size}"))
    assert set(map(Path, dataset.train.paths)) == set(tree.labels("train_list"))


def test_its_name_alone_means_the_smallest_test_set(tmp_path: Path) -> None:
    trees.vehicleid(tmp_path)
    assert load_benchmark("vehicleid", tmp_path).name == "vehicleid_800"


def test_only_the_list_that_is_asked_for_is_needed(tmp_path: Path) -> None:
    tree = trees.vehicleid(tmp_path)
    (tree.folder / "train_test_split" / "test_list_2400.txt").unlink()
    assert len(load_benchmark("vehicleid_800", tmp_path).query) == 5
    with pytest.raises(UserError, match=r"lacks train_test_split/test_list_2400\.txt"):
        load_benchmark("vehicleid_2400", tmp_path)


def test_malformed_lines_are_an_error_with_file_and_line(tmp_path: Path) -> None:
    tree = trees.vehicleid(tmp_path)
    path = tree.folder / "train_test_split" / "train_list.txt"
    trees.write_list(path, ["0000001 1", "0000002", "0000003 -4", "0000001 1"])
    with pytest.raises(UserError) as caught:
        load_benchmark("vehicleid_800", tmp_path)
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{path}, line {number}" for number in (2, 3, 4)
    ]
    assert f"0000001 is named by {path}, line 1 already" in str(caught.value)


def test_of_very_many_faults_twenty_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    tree = trees.vehicleid(tmp_path)
    trees.write_list(tree.folder / "train_test_split" / "train_list.txt", ["nonsense"] * 25)
    with pytest.raises(UserError) as caught:
        load_benchmark("vehicleid_800", tmp_path)
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("and 5 more lines at fault")


def test_two_files_that_lists_call_alike_are_an_error(tmp_path: Path) -> None:
    tree = trees.vehicleid(tmp_path)
    trees.picture(tree.folder / "image" / "0000001.png", "PNG")
    with pytest.raises(UserError, match=r"0000001\.jpg and 0000001\.png have one name in the list"):
        load_benchmark("vehicleid", tmp_path)


def test_an_image_in_both_training_and_test_is_an_error(tmp_path: Path) -> None:
    tree = trees.vehicleid(tmp_path)
    path = tree.folder / "train_test_split" / "test_list_800.txt"
    trees.write_list(path, ["0000010 4", "0000001 4"])
    with pytest.raises(UserError, match=r"1 image in both .*train_list\.txt and .*0000001\.jpg"):
        load_benchmark("vehicleid", tmp_path)
