"""The data command as it is typed: checking the six benchmarks, splitting one's own images."""

from functools import partial
from pathlib import Path

import pytest

from svll.data.benchmarks import load_benchmark
from tests.commands import Command, called, started
from tests.svll.data import trees


@pytest.fixture
def run() -> Command:
    """Call the command in this process; returns exit status, stdout and stderr."""
    return partial(called, "data")


@pytest.mark.parametrize("name", trees.NAMES)
def test_a_complete_benchmark_of_any_size_is_sound(run, tmp_path: Path, name) -> None:
    tree = trees.build(name, tmp_path)
    status, out, err = run("check", name, "--root", tmp_path)
    dataset = load_benchmark(name, tmp_path)
    assert status == 0, err
    assert out.startswith(f"{dataset.title}: {dataset.protocol} (")
    assert f"fingerprint  {dataset.fingerprint}\n" in out
    assert out.endswith(f"all {len(dataset.files())} images decode\n")
    line = next(line for line in out.splitlines() if line.startswith("train"))
    identities = len(set(dataset.train.identities.tolist()))
    published = load_published(name)
    assert line.split() == [
        "train", str(identities), str(len(tree.images["train"])),
        str(len(set(dataset.train.cameras.tolist()))), *published,
    ]  # fmt: skip
    cameras = {camera for part in ("train", "query", "gallery")
               for _, camera in tree.images[part].values()}  # fmt: skip
    known = {"msmt17": 15, "dukemtmc": 8, "occluded_duke": 8, "veri776": 20, "vehicleid_800": 1}
    assert f"cameras      {len(cameras)}, published {known.get(name, 6)}\n" in out
    assert "WARNING" in err
    assert "has " in err


def load_published(name: str) -> list[str]:
    """The words that a table's line ends with, from the papers' numbers."""
    identities, images = {
        "market1501": (751, 12936), "msmt17": (1041, 32621), "dukemtmc": (702, 16522),
        "occluded_duke": (702, 15618), "veri776": (576, 37778), "vehicleid_800": (13164, 113346),
    }[name]
    return [str(identities), "identities,", str(images), "images"]


@pytest.mark.parametrize("name", trees.NAMES)
def test_a_broken_benchmark_names_what_is_broken(run, tmp_path: Path, name) -> None:
    tree = trees.build(name, tmp_path)
    files = list(tree.labels("train"))
    cut, text = files[0], files[1]
    cut.write_bytes(cut.read_bytes()[:-40])
    text.write_bytes(b"not found")
    expected = {f"  {cut}: truncated", f"  {text}: not an image"}
    if tree.listed:
        gone = next(iter(tree.labels("gallery")))
        gone.unlink()
        expected.add(f"  {gone}: missing")
    status, out, _ = run("check", name, "--root", tmp_path, "--threads", 1)
    assert status == 1
    _, _, broken = out.partition("images are missing or broken:\n")
    assert set(broken.splitlines()) == expected
    assert f"{len(expected)} of {len(load_benchmark(name, tmp_path).files())} images" in out


def test_content_is_hashed_on_request_alone(run, tmp_path: Path) -> None:
    trees.market1501(tmp_path)
    expected = load_benchmark("market1501", tmp_path).content_hash()
    status, out, err = run("check", "market1501", "--root", tmp_path, "--content")
    assert status == 0
    assert f"content      {expected}\n" in out
    assert "hashing: 10 of 10" in err
    assert "decoding: 10 of 10" in err
    assert "content " not in run("check", "market1501", "--root", tmp_path)[1]


def test_notes_on_labels_do_not_make_a_dataset_unsound(run, tmp_path: Path) -> None:
    tree = trees.market1501(tmp_path)
    trees.picture(tree.folder / "query" / "0003_c1_1.jpg")
    status, out, _ = run("check", "folder", "--root", tmp_path)
    assert status == 0
    assert "note: 1 of 3 query identities are absent from the gallery; 1 of 3 queries" in out


def test_a_dataset_that_is_not_there_is_status_1_with_a_message(run, tmp_path: Path) -> None:
    status, out, err = run("check", "dukemtmc", "--root", tmp_path)
    assert (status, out) == (1, "")
    assert "nothing to download" in err
    status, _, err = run("check", "markt1501", "--root", tmp_path)
    assert status == 1
    assert "did you mean market1501" in err


def test_own_images_are_split_checked_and_never_overwritten(run, tmp_path: Path) -> None:
    for who in "abcdefgh":
        for number in range(3):
            trees.picture(tmp_path / "own" / who / f"{who}{number}.jpg")
    out_file = tmp_path / "own.csv"
    split = ("split", "--root", tmp_path / "own", "--out", out_file)
    status, out, err = run(*split, "--validation", 0, "--queries", 2, "--seed", 3)
    assert status == 0, err
    assert "train          12 images of 4 identities" in out
    assert "query           8 images of 4 identities" in out
    assert "gallery         4 images of 4 identities" in out
    assert f"data.name=list data.root={out_file}" in out
    status, out, _ = run("check", "list", "--root", out_file)
    assert status == 0
    assert out.startswith("list: all_gallery (")
    assert out.endswith("all 24 images decode\n")
    status, _, err = run(*split)
    assert status == 1
    assert "exists already" in err
    status, _, err = run("split", "--root", tmp_path / "own", "--out", "/proc/nope/x.csv")
    assert status == 1
    assert err.startswith("error: /proc/nope/x.csv: cannot be written: ")


def test_the_command_starts_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.dukemtmc(tmp_path)
    monkeypatch.chdir(tmp_path)
    status, out, err = started("data", "check", "dukemtmc", "--root", ".")
    assert status == 0, err
    assert out.endswith("all 9 images decode\n")
    assert "INFO decoding: 9 of 9" in err


@pytest.mark.parametrize("threads", [-1, 100_000, 10**12])
def test_more_threads_than_a_machine_starts_are_refused(run, tmp_path, threads):
    status, out, err = run("check", "folder", "--root", tmp_path, "--threads", threads)
    assert (status, out) == (2, "")
    assert "--threads" in err
