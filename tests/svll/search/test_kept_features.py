"""A second search of a gallery: what has not changed is not encoded again."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from harness.runs.run import Run
from svll.models.extractor import Extractor
from svll.search.search import SearchResults, search
from tests.svll.search.test_search import draw, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    for seed in range(1, 7):
        draw(tmp_path / "gallery" / f"{seed}.jpg", seed)
    return tmp_path / "gallery"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are read to be encoded."""
    names: list[str] = []
    read = Extractor.read

    def counted(extractor: Extractor, paths: list[str], broken: list) -> object:
        names.extend(map(os.path.basename, paths))
        return read(extractor, paths, broken)

    monkeypatch.setattr(Extractor, "read", counted)
    return names


def similarities(found: SearchResults) -> list[list[tuple[str, float]]]:
    return [[(hit.path.name, hit.similarity) for hit in answer.hits] for answer in found.queries]


def test_a_second_search_encodes_nothing_and_finds_the_same_to_the_digit(
    run: Run, gallery: Path, encoded: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = similarities(search(run.folder, gallery, gallery))
    encoded.clear()
    first = similarities(search(run.folder, gallery, gallery, keep=tmp_path / "keep"))
    assert sorted(encoded) == [f"{seed}.jpg" for seed in range(1, 7)]
    encoded.clear()
    monkeypatch.chdir(tmp_path)  # the same gallery by another spelling
    with caplog.at_level(logging.INFO):
        second = search(run.folder, Path("gallery"), Path("gallery"), keep=Path("keep"))
    assert (encoded, similarities(second), first) == ([], plain, plain)
    assert second.queries[0].query == Path("gallery/1.jpg")
    assert "6 of 6 features are kept from an earlier search" in caplog.text
    one = search(run.folder, gallery / "2.jpg", gallery, keep=tmp_path / "keep")
    assert encoded == ["2.jpg"]  # the query alone
    assert similarities(one) == similarities(search(run.folder, gallery / "2.jpg", gallery))


def test_only_new_and_changed_images_are_encoded_and_removed_ones_are_forgotten(
    run: Run, gallery: Path, encoded: list[str], tmp_path: Path
) -> None:
    keep = tmp_path / "keep"
    search(run.folder, gallery, gallery, keep=keep)
    draw(gallery / "2.jpg", 50)
    draw(gallery / "7.jpg", 7)
    (gallery / "3.jpg").unlink()
    times = (gallery / "5.jpg").stat()
    os.utime(gallery / "5.jpg", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    encoded.clear()
    again = search(run.folder, gallery, gallery, keep=keep)
    assert sorted(encoded) == ["2.jpg", "5.jpg", "7.jpg"]
    whole = search(run.folder, gallery, gallery)
    for one, other in zip(similarities(again), similarities(whole), strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        np.testing.assert_allclose([s for _, s in one], [s for _, s in other], rtol=0, atol=1e-6)
    [file] = keep.iterdir()
    with np.load(file) as stored:
        assert b"3.jpg" not in stored["paths"].tobytes()
    encoded.clear()
    assert similarities(search(run.folder, gallery, gallery, keep=keep)) == similarities(again)
    assert encoded == []


def test_other_weights_and_other_galleries_have_other_files(
    run: Run, gallery: Path, encoded: list[str], tmp_path: Path
) -> None:
    keep = tmp_path / "keep"
    search(run.folder, gallery, gallery, keep=keep)
    encoded.clear()
    sided = make_run(tmp_path / "other", "camera")
    search(sided.folder, gallery, gallery, keep=keep)
    assert len(encoded) == 6
    draw(tmp_path / "g2" / "1.jpg", 1)
    search(run.folder, gallery, tmp_path / "g2", keep=keep)
    assert len(list(keep.iterdir())) == 3
    encoded.clear()
    search(run.weights_file, gallery, gallery, keep=keep)  # the file itself instead of its run
    assert encoded == []
    for count in (6, 0):
        search(Path("svll-tiny"), gallery, gallery, keep=keep)
        assert len(encoded) == count
        encoded.clear()


def test_a_damaged_file_is_told_in_one_line_and_made_again(
    run: Run, gallery: Path, encoded: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep = tmp_path / "keep"
    plain = similarities(search(run.folder, gallery, gallery, keep=keep))
    [file] = keep.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", b"text", whole[:-40], bytes(flipped)):
        file.write_bytes(damaged)
        encoded.clear()
        caplog.clear()
        assert similarities(search(run.folder, gallery, gallery, keep=keep)) == plain
        assert len(encoded) == 6
        [line] = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
        assert line.startswith(f"{file}: is damaged (")
        assert line.endswith("), so all images are encoded again")
        assert "\n" not in line
        assert file.read_bytes() == whole


def test_broken_images_are_tried_again_and_a_folder_that_cannot_be_written_does_not_matter(
    run: Run, gallery: Path, encoded: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (gallery / "4.jpg").write_bytes(b"text")
    for _ in range(2):
        encoded.clear()
        found = search(run.folder, gallery, gallery, keep=tmp_path / "keep")
        assert (found.images, len(found.faults)) == (5, 1)
    assert encoded == ["4.jpg"]
    (tmp_path / "file").touch()
    assert search(run.folder, gallery, gallery, keep=tmp_path / "file" / "keep").images == 5
    assert "so the next search encodes these images again" in caplog.text
