"""What the loop does when the machine has crashed: it goes on from what is durable, to the same
end."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.runs.run import Run
from tests.disk import IMAGES, Disk
from tests.harness.training.test_loop import COUNTS, log_of, newest, train, train_and_listen

# --- what runs on the ranks ---


def train_and_crash(folder: str, images: str, **options: Any) -> list[str]:
    """Train; writes what crashes of the machine may leave, at every moment, below `images`. Returns
    the folders of the run there."""
    Path(folder).mkdir()
    disk, seen = Disk(Path(folder)), dict[str, str]()

    def crash() -> None:
        for kind in IMAGES:
            image = Path(images) / f"{len(seen):03d}, {kind}" / Path(folder).name
            disk.image(kind, image)
            found = {str(p.relative_to(image)): p.read_bytes() for p in sorted(image.rglob("*"))
                     if p.is_file() and "/." not in str(p)}  # those of unfinished writers
            if seen.setdefault(repr(found), str(image)) != str(image):
                shutil.rmtree(image.parent)

    with disk.watch(crash):
        train(folder, **options)
    return list(seen.values())


def train_each(folders: list[str], **options: Any) -> list[dict[str, Any]]:
    """Train in some folders in turn, on a disk that never crashes and so has no need to wait."""
    fsync, os.fsync = os.fsync, lambda descriptor: None
    try:
        return [train(folder, **options) for folder in folders]
    finally:
        os.fsync = fsync


# --- tests ---


def test_a_crash_of_the_machine_at_any_moment_loses_nothing_that_a_checkpoint_names(
    one_rank: Any, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    (undisturbed,) = one_rank(train, folder=whole, stages=2)
    (left,) = one_rank(train_and_crash, folder=tmp_path / "run", images=tmp_path, stages=2)
    assert {Path(folder).parent.name.split(", ")[1] for folder in left} == set(IMAGES)
    pointers = [Run(Path(folder)).checkpoints / "latest.json" for folder in left]
    named = [newest(Path(f)) if p.exists() else "" for f, p in zip(left, pointers, strict=True)]
    assert len(set(named)) == 1 + 2 * len(COUNTS)
    # every second moment, to save time
    (results,) = one_rank(train_each, folders=left[::2], stages=2)
    for folder, name, result in zip(left[::2], named[::2], results, strict=True):
        assert (result["ending"], result["weights"]) == ("done", undisturbed["weights"]), folder
        assert log_of(Path(folder)) == log_of(whole), folder
        for line in result["reported"][:1]:  # nothing if it was at the end
            assert f"{line['stage']}-{line['epoch']:04d}-000000" >= name, folder


def lose_lines(file: Path, count: int) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-count]))


def zero(file: Path, first: int, last: int) -> None:
    """Put zeros in place of a part of a file, as a crash leaves blocks that were never written."""
    content = file.read_bytes()
    file.write_bytes(content[:first] + bytes(last - first) + content[last:])


@pytest.mark.parametrize(("damage", "lines", "told"), [
    ("a line lost", 5, "written after 6, there are 5; resuming from stage1-0002-000000"),
    ("two lines lost", 4, "written after 5, there are 4; the stage starts over"),
    ("no log", 0, "written after 6, there are 0; the stage starts over"),
    ("zeros at the end", 5, "written after 6, there are 5; resuming from stage1-0002-000000"),
    ("zeros within", 1, "metrics.jsonl: damaged after line 1, as by a crash of the machine"),
])
def test_a_log_shorter_than_its_checkpoint_goes_on_from_the_one_before_to_the_same_end(
    one_rank: Any, tmp_path: Path, damage: str, lines: int, told: str
) -> None:
    one_rank(train, folder=tmp_path / "whole", log_every=1)
    folder = tmp_path / "run"
    options = {"folder": folder, "log_every": 1, "save_every_s": 0.0}
    one_rank(train, disturbance={"kind": "cut", "epoch": 2, "step": 1}, **options)
    file = Run(folder).metrics_file
    size = file.stat().st_size
    {
        "a line lost": lambda: lose_lines(file, 1), "two lines lost": lambda: lose_lines(file, 2),
        "no log": file.unlink, "zeros at the end": lambda: zero(file, size - 40, size),
        "zeros within": lambda: zero(file, 300, 400),
    }[damage]()
    assert len(Run(folder).metrics()) == lines
    (heard,) = one_rank(train_and_listen, folder=folder, log_every=1)
    assert told in "\n".join(heard)
    assert log_of(folder) == log_of(tmp_path / "whole")
