"""Images are copied to a node once, whole, and read there with the same result."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.base.errors import Hindered, UserError
from harness.base.locks import held_lock
from harness.runs.stopping import Stopped, request_stop, stop_on_signals
from svll.base.records import Dataset, Records, Row
from svll.data import staging
from svll.data.readers import csv_list
from svll.data.readers.drawn_world import load_world
from svll.data.staging import stage, staged, staged_folder, staged_paths
from svll.world.world import World, write_world

WORLD = World(train_identities=4, test_identities=4, shots=2)

PROGRAM = """
import logging, os, shutil, sys, time
from svll.data import staging
from svll.data.readers.drawn_world import load_world
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
root, place, slow = sys.argv[1:]
copyfile = shutil.copyfile
def slowly(source, target):
    time.sleep(float(slow))
    copyfile(source, target)
staging.shutil.copyfile = slowly
staging.THREADS = 2
staging.stage([load_world(root)], place)
print("staged")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(WORLD, tmp_path_factory.mktemp("drawn") / "world")


@pytest.fixture
def dataset(world: Path) -> Dataset:
    return load_world(world)


def start(world: Path, place: Path, slow: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(world), str(place), str(slow)], text=True,
        stdout=subprocess.PIPE,
    )


def assert_whole(dataset: Dataset, place: Path) -> None:
    places = staged_paths([dataset], str(place))
    assert sorted(places) == dataset.files()
    for path, copied in places.items():
        assert Path(copied).read_bytes() == Path(path).read_bytes()
    left = [p for p in staged_folder(dataset, str(place)).rglob("*") if p.is_file()]
    assert len(left) == len(places)


def test_every_image_is_copied_below_a_folder_named_by_the_fingerprint(
    dataset: Dataset, tmp_path: Path
) -> None:
    stage([dataset], str(tmp_path))
    assert_whole(dataset, tmp_path)
    [folder] = tmp_path.iterdir()
    assert folder.name == f"svll-{os.getuid()}-{dataset.fingerprint}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_copy_that_was_stopped_goes_on_where_it_was(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []

    def copy(source: str, target: Path) -> None:
        copied.append(source)
        if len(copied) == 5:
            request_stop()
        shutil.copyfile(source, target)

    monkeypatch.setattr(staging, "THREADS", 2)
    monkeypatch.setattr(staging, "shutil", SimpleNamespace(
        copyfile=copy, disk_usage=shutil.disk_usage
    ))
    with stop_on_signals(), pytest.raises(Stopped, match="while copying images to this node"):
        staged([dataset], str(tmp_path))
    assert 5 <= len(copied) <= 6
    staged([dataset], str(tmp_path))
    assert sorted(copied) == dataset.files()
    assert_whole(dataset, tmp_path)


def test_a_run_that_waits_for_the_copy_of_another_can_be_stopped(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = staged_folder(dataset, str(tmp_path))
    with held_lock(folder.with_name(f"{folder.name}.lock")), stop_on_signals():
        threading.Timer(0.3, request_stop).start()
        with pytest.raises(Stopped, match="while copying images to this node"):
            staged([dataset], str(tmp_path))


def test_what_is_there_is_not_copied_again_and_what_a_cleaner_took_is(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage([dataset], str(tmp_path))
    with caplog.at_level(logging.INFO):
        caplog.clear()
        stage([dataset], str(tmp_path))
        assert caplog.text == ""
        copies = sorted(staged_paths([dataset], str(tmp_path)).values())
        Path(copies[0]).unlink()
        os.truncate(copies[1], 10)
        stage([dataset], str(tmp_path))
    assert "copying 2 files" in caplog.text
    assert_whole(dataset, tmp_path)


def test_processes_that_want_the_same_copy_share_one(
    world: Path, dataset: Dataset, tmp_path: Path
) -> None:
    racers = [start(world, tmp_path, 0.02) for _ in range(3)]
    outputs = [racer.communicate(timeout=60)[0] for racer in racers]
    assert all(text.endswith("staged\n") for text in outputs)
    assert sum("copying" in text for text in outputs) == 1
    assert_whole(dataset, tmp_path)


def test_a_copy_that_was_killed_is_completed_by_the_next(
    world: Path, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = start(world, tmp_path, 0.05)
    folder = staged_folder(dataset, str(tmp_path))
    deadline = time.monotonic() + 30
    while len(list(folder.rglob("*.jpg"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(list(folder.rglob("[!.]*.jpg")))
    assert before < len(dataset.files())
    with caplog.at_level(logging.INFO):
        stage([dataset], str(tmp_path))
    assert f"copying {len(dataset.files()) - before} files" in caplog.text
    assert_whole(dataset, tmp_path)


def test_another_dataset_has_another_folder(dataset: Dataset, tmp_path: Path) -> None:
    fewer = replace(dataset, query=dataset.query.take([0]))
    assert staged_folder(fewer, str(tmp_path)) != staged_folder(dataset, str(tmp_path))


def test_variables_are_those_of_the_node(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH_HERE", str(tmp_path))
    assert staged_folder(dataset, "${SCRATCH_HERE}/sets").parent == tmp_path / "sets"
    monkeypatch.delenv("SCRATCH_HERE")
    with pytest.raises(UserError, match=r"stage=\$SCRATCH_HERE: \$SCRATCH_HERE is not set on"):
        stage([dataset], "$SCRATCH_HERE")


def test_too_little_room_is_told_before_anything_is_copied(
    dataset: Dataset, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    program = PROGRAM.replace("logging.basicConfig", "slow = '0'; logging.basicConfig")
    root = os.path.commonpath(dataset.files())
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c",
         f"mount -t tmpfs -o size=40k tmpfs {tmp_path} && "
         f'exec {sys.executable} -c "$PROGRAM" {root} {tmp_path} 0'],
        env={**os.environ, "PROGRAM": program}, text=True, capture_output=True,
    )
    if "permission denied" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert "Hindered: data.stage: no room for synthetic in" in done.stderr
    assert "bytes are needed" in done.stderr
    assert "copying" not in done.stdout


def test_a_place_that_cannot_be_written_is_told(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Hindered, match=r"data\.stage: .*file.*: Not a directory; data\.stage=null"):
        stage([dataset], str(tmp_path / "file"))


def test_copies_of_a_list_are_below_their_folder_wherever_its_paths_lead(tmp_path: Path) -> None:
    """`..`, an absolute path, a link and a name of Windows, of files with one name."""
    folder = tmp_path / "lists"
    (folder / "a").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    lines = ["../1.jpg", "1.jpg", "a/../../2.jpg", f"{tmp_path}/3.jpg", "link/4.jpg", "a\\1.jpg"]
    places = ["1.jpg", "lists/1.jpg", "2.jpg", "3.jpg", "4.jpg", "lists/a/1.jpg"]
    for number, place in enumerate(places):
        (tmp_path / place).write_bytes(b"x" * (number + 1))
    parts = ["train"] * 4 + ["query", "gallery"]
    rows = [f"{line},{number},{part}" for number, (line, part) in
            enumerate(zip(lines, parts, strict=True))]
    (folder / "list.csv").write_text("\n".join(["path,identity,split", *rows]))
    listed = csv_list.load(folder / "list.csv")
    stage([listed], str(tmp_path / "node"))
    assert_whole(listed, tmp_path / "node")
    copies = staged_paths([listed], str(tmp_path / "node"))
    below = staged_folder(listed, str(tmp_path / "node"))
    assert all(Path(copy).resolve().is_relative_to(below) for copy in copies.values())
    assert sorted(Path(copy).stat().st_size for copy in copies.values()) == [1, 2, 3, 4, 5, 6]


def test_images_that_no_folder_can_hold_and_links_in_place_of_the_folder_are_refused(
    dataset: Dataset, tmp_path: Path
) -> None:
    for paths, reason in ((("/d/e/a.jpg", "/d/e/../b.jpg"), r"\.\./b\.jpg"),
                        (("/b.jpg", "/d/../b.jpg"), "two have one name")):
        images = Records.from_rows(Row(path, 0, 0) for path in paths)
        with pytest.raises(UserError, match=rf"cannot be copied below one folder \({reason}\)"):
            stage([Dataset("list", "all_gallery", images, images, images)], str(tmp_path))
    staged_folder(dataset, str(tmp_path)).symlink_to(tmp_path)
    with pytest.raises(UserError, match="belongs to another user"):
        stage([dataset], str(tmp_path))
