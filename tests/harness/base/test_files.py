"""A reader sees the old file or the new one, never a part."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.files import (
    atomic_write,
    check_writable,
    link_folder,
    own_folder,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text,
)
from tests.disk import Disk

UMASK = 0o022


def test_what_was_written_is_there_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "folder" / "file.txt", "grüße\n")
    assert (tmp_path / "new" / "folder" / "file.txt").read_text(encoding="utf-8") == "grüße\n"
    assert os.listdir(tmp_path / "new" / "folder") == ["file.txt"]


def test_bytes_that_are_not_utf_8_are_escaped_or_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "a", name)
    write_text(tmp_path / "b", name, errors="surrogateescape")
    write_json(tmp_path / "c", name)
    assert (tmp_path / "a").read_bytes() == b"caf\\udce9"
    assert (tmp_path / "b").read_bytes() == b"caf\xe9"
    assert read_json(tmp_path / "c") == name


def test_lines_of_json_are_read_back_without_one_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "points.jsonl"
    assert read_json_lines(file) == []
    write_json_lines(file, [{"a": 1}, [2.5]])
    assert file.read_text() == '{"a": 1}\n[2.5]\n'
    file.write_text(file.read_text() + '{"a": ')
    assert read_json_lines(file) == [{"a": 1}, [2.5]]
    file.write_text("no\n" + file.read_text())
    with pytest.raises(ValueError, match="line 1"):
        read_json_lines(file)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with atomic_write(path) as private:
        private.write_text("half of the n")
        assert path.read_text() == "old"
        private.write_text("new")
    assert path.read_text() == "new"


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(private: Path, failure: type[BaseException]) -> None:
        private.write_text("new")
        raise failure

    for failure in (ValueError, KeyboardInterrupt):
        with pytest.raises(failure), atomic_write(path) as private:
            fail(private, failure)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_failure_of_the_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), atomic_write(tmp_path / "file.txt"):
        raise ValueError("no")
    assert os.listdir(tmp_path) == []


def test_a_path_that_cannot_be_written_is_reported_beforehand_without_traces(
    tmp_path: Path,
) -> None:
    write_text(tmp_path / "there.txt", "old")
    for place in ("there.txt", "new.txt", "new/folder/file.txt"):
        check_writable(tmp_path / place)
    assert os.listdir(tmp_path) == ["there.txt"]
    assert (tmp_path / "there.txt").read_text() == "old"
    with pytest.raises(UserError, match=rf"^{tmp_path}: is a folder; name a file$"):
        check_writable(tmp_path)
    for nowhere in (Path("/proc/nope/file.txt"), tmp_path / "there.txt" / "new" / "file.txt"):
        with pytest.raises(UserError, match=rf"^{nowhere}: cannot be written: .*; name another"):
            check_writable(nowhere)


def test_a_kill_while_writing_leaves_the_old_file_and_does_not_block_the_next_writer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    program = (
        "import os, signal, sys\n"
        "from harness.base.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as private:\n"
        "    private.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_the_private_name_is_hidden_unique_and_in_the_same_folder(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        assert first.parent == second.parent == tmp_path
        assert first.name.startswith(".file.txt.")


def test_a_library_may_put_another_file_in_the_private_ones_place(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file.txt") as private:
        other = tmp_path / "other"
        other.write_text("by a library")
        other.rename(private)
    assert (tmp_path / "file.txt").read_text() == "by a library"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(UMASK)
    try:
        write_text(tmp_path / "file.txt", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o666 & ~UMASK


def test_the_umask_of_the_process_is_never_changed_as_other_threads_make_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("files are open to all meanwhile"))
    write_text(tmp_path / "file.txt", "")


@pytest.fixture(params=[True, False])
def can_link(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has hard links."""
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not request.param:
        monkeypatch.setattr(os, "link", refuse)
    return bool(request.param)


@pytest.mark.usefixtures("can_link")
def test_all_that_was_written_outlasts_a_crash_of_the_machine_with_the_names_of_new_folders(
    tmp_path: Path,
) -> None:
    (root := tmp_path / "disk").mkdir()
    disk = Disk(root)
    with disk.watch(lambda: None):
        write_text(root / "new" / "folder" / "file.txt", "text")
        own_folder(root / "own" / "folder")
        (root / "new" / "unsynced.txt").write_text("more")
        link_folder(root / "new", root / "far" / "linked")
        (root / "new" / "unsynced.txt").unlink()
        disk.image("nothing more", tmp_path / "left")
    assert tree(tmp_path / "left") == tree(root)
    assert (tmp_path / "left" / "far" / "linked" / "unsynced.txt").read_text() == "more"


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {place.relative_to(folder): place.read_bytes() if place.is_file() else None
            for place in folder.rglob("*")}


def test_of_many_writers_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    values = [{"writer": n, "text": str(n) * 5000} for n in range(8)]
    seen, stop = [], threading.Event()

    def write(value: object) -> None:
        for _ in range(5):
            write_json(path, value)

    def read() -> None:
        while not stop.is_set():
            seen.append(read_json(path))

    write_json(path, values[0])
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(value,)) for value in values]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert all(value in values for value in seen)
    assert seen
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_folder_is_linked_or_else_copied_in_place_of_what_was_there(
    tmp_path: Path, can_link: bool
) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    for folder, text in ((source, "new"), (target, "old")):
        folder.mkdir(parents=True)
        (folder / f"{text}.txt").write_text(text)
    link_folder(source, target)
    assert os.listdir(target) == ["new.txt"]
    assert os.listdir(target.parent) == ["target"]
    assert (target / "new.txt").read_text() == "new"
    assert (target / "new.txt").samefile(source / "new.txt") == can_link


def test_json_comes_back_and_nan_is_refused(tmp_path: Path) -> None:
    value = {"text": "ü", "number": 0.1 + 0.2, "nothing": None, "list": [1, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == value
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_is_no_json_is_an_error_of_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")
