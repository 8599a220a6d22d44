"""Each of the six benchmarks is read whole from a tree with the quirks of the real one."""

import logging
from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.base.records import Records
from svll.data.benchmarks import describe, load_benchmark, names
from tests.svll.data import trees


@pytest.fixture(params=trees.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def labels(records: Records) -> dict[Path, tuple[int, int]]:
    rows = zip(records.identities.tolist(), records.cameras.tolist(), strict=True)
    return {Path(path): row for path, row in zip(records.paths, rows, strict=True)}


def test_every_image_is_read_with_its_identity_and_camera(name: str, tmp_path: Path) -> None:
    tree = trees.build(name, tmp_path)
    dataset = load_benchmark(name, tree.folder)
    for part in ("train", "query", "gallery"):
        records = getattr(dataset, part)
        assert labels(records) == tree.labels(part)
        assert len(records) == len(tree.images[part])
        assert all(Path(path).is_file() for path in records.paths)
        assert list(records.paths) == sorted(records.paths)
    assert dataset.protocol == ("random_gallery" if "vehicleid" in name else "cross_camera")
    assert dataset.name == name


def test_it_is_found_below_a_root_under_each_of_its_usual_names(name: str, tmp_path: Path) -> None:
    benchmark = describe(name)
    assert benchmark is not None
    tree = trees.build(name, tmp_path)
    expected = load_benchmark(name, tree.root).fingerprint
    assert len(benchmark.folders) >= 3
    place = tree.folder
    for folder in benchmark.folders:
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        place = place.rename(tmp_path / folder)
        assert load_benchmark(name, tmp_path).fingerprint == expected


def test_published_numbers_are_warned_of_with_both_numbers(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = trees.build(name, tmp_path)
    with caplog.at_level(logging.WARNING):
        load_benchmark(name, tree.root)
    published = {
        "market1501": "2 train identities; Market-1501 has 751",
        "msmt17": "4 train images; MSMT17 has 32621",
        "dukemtmc": "3 gallery identities; DukeMTMC-reID has 1110",
        "occluded_duke": "2 query images; Occluded-Duke has 2210",
        "veri776": "7 cameras; VeRi-776 has 20",
        "vehicleid_800": "2 query identities; VehicleID (800) has 800",
    }
    assert published[name] in caplog.text
    assert ("37746" in caplog.text) == (name == "veri776")


def test_nothing_there_says_where_it_looked_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    benchmark = describe(name)
    assert benchmark is not None
    (tmp_path / benchmark.folders[0]).mkdir()
    with pytest.raises(UserError) as caught:
        load_benchmark(name, tmp_path)
    message = str(caught.value)
    assert f"{tmp_path} (lacks " in message
    assert f"{tmp_path / benchmark.folders[0]} (lacks " in message
    assert f"{tmp_path / benchmark.folders[1]} (no such folder)" in message
    source = {
        "market1501": "zheng-lab", "msmt17": "pkuvmc.com", "dukemtmc": "withdrew it in 2019",
        "occluded_duke": "github.com/lightas/Occluded-DukeMTMC-Dataset",
        "veri776": "vehiclereid.github.io/VeRi", "vehicleid_800": "pkuml.org",
    }
    assert source[name] in message


def test_what_a_desktop_left_is_not_spoken_of_and_other_files_are(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = trees.build(name, tmp_path)
    image = next(iter(tree.labels("train")))
    with caplog.at_level(logging.INFO):
        load_benchmark(name, tree.root)
    assert "Skipped" not in caplog.text
    for other in ("notes.txt", "0001_c1s1_000001_00.gif"):
        (image.parent / other).write_bytes(b"x")
    with caplog.at_level(logging.INFO):
        load_benchmark(name, tree.root)
    assert caplog.text.count("Skipped 2 files (unsupported: .gif 1, .txt 1)") == 1


def test_a_listed_image_that_is_missing_does_not_stop_reading(tmp_path: Path) -> None:
    for name in ("msmt17", "vehicleid_800"):
        tree = trees.build(name, tmp_path)
        before = load_benchmark(name, tree.root).fingerprint
        missing = next(iter(tree.labels("query")))
        missing.unlink()
        dataset = load_benchmark(name, tree.root)
        assert len(dataset.query) == len(tree.images["query"])
        assert not all(Path(path).exists() for path in dataset.query.paths)
        assert dataset.fingerprint != before


def test_an_unknown_name_is_an_error_with_the_nearest_ones() -> None:
    with pytest.raises(UserError, match=r"no dataset 'Market'; did you mean market1501\? "):
        load_benchmark("Market", "/data")
    with pytest.raises(UserError, match="There are: market1501, msmt17, dukemtmc, "):
        load_benchmark("qqqq", "/data")


def test_names_are_those_of_the_six_their_sizes_and_a_users_own() -> None:
    assert names() == (
        "market1501", "msmt17", "dukemtmc", "occluded_duke", "veri776", "vehicleid_800",
        "vehicleid_1600", "vehicleid_2400", "vehicleid", "folder", "list",
    )  # fmt: skip


def test_any_folder_in_the_layout_is_read_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = trees.market1501(tmp_path)
    with caplog.at_level(logging.WARNING):
        dataset = load_benchmark("folder", tree.folder)
    assert dataset.name == "folder"
    assert len(dataset.train) == 4
    assert caplog.text == ""
