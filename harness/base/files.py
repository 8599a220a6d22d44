"""Atomic writing: a reader, or a kill at any moment, sees the old file or the new one."""

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.locks import check_held
from harness.base.machine import user_name
from harness.base.reading import retried

LOG_LINES = 20


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a private file beside `path` to write to; on success, fsync it and rename it to `path`.

    Its name is unique, so a file left by a kill never blocks a later writer. When the body raises,
    the private file is removed and `path` is untouched. Raises LockLost in a folder whose lock this
    process has lost.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent)
    os.close(handle)
    private = Path(name)
    try:
        yield private
        # mkstemp made it 0600, and a library may have put another file in its place
        umask = os.umask(0)
        os.umask(umask)
        private.chmod(0o666 & ~umask)
        with private.open("rb") as written:
            os.fsync(written.fileno())
        check_held(final)
        os.replace(private, final)
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename durable
        finally:
            os.close(folder)
    except BaseException:
        private.unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check, before long work, that a file can be written at `path`; leave nothing behind. Raises
    UserError if `path` is a folder or cannot be written."""
    final = Path(path)
    made: list[Path] = []
    try:
        if final.is_dir():
            raise UserError(f"{final}: is a folder; name a file")
        made = [place for place in final.parents if not place.exists()]
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=final.parent):
            pass
    except OSError as error:
        raise UserError(f"{final}: cannot be written: {error.strerror or error}; name another "
                        "place") from None
    finally:
        for place in made:
            with suppress(OSError):  # it was not made, or has files by now
                place.rmdir()


def own_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; restrict an existing one. Raises OSError."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_uid == os.getuid():
        path.chmod(0o700)


def is_private(folder: Path) -> bool:
    """Return whether only this user may enter a folder, so that code from it may be executed. False
    for a link and a missing folder. Raises other OSErrors."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def owner_of(path: Path) -> str:
    """Return who owns a file, or the folder that hides it: name and number."""
    for place in (path, *path.parents):
        with suppress(OSError):
            uid = place.stat().st_uid
            return f"{user_name(uid)} (uid {uid})"
    return "another user"


def denied(error: PermissionError) -> UserError:
    """Return the error of a file that this user may not use, with its owner."""
    if error.filename is None:
        return UserError(str(error))
    file = Path(os.fsdecode(error.filename))
    return UserError(f"{file}: {error.strerror}; it belongs to {owner_of(file)}, you are "
                     f"{user_name()}; get access to it, or use another file or folder "
                     "(of runs: run.runs=FOLDER)")


def write_text(
    path: str | os.PathLike[str], text: str, *, errors: str = "backslashreplace"
) -> None:
    """Replace the file at `path` with `text` in UTF-8, atomically.

    errors: for file names that are not UTF-8: `backslashreplace` keeps the file UTF-8,
    `surrogateescape` writes the bytes unchanged.
    """
    with atomic_write(path) as private:
        private.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replace the file at `path` with `value` as JSON, atomically. NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the JSON value in `path`. Raises FileNotFoundError, ValueError."""
    return retried(lambda: json.loads(Path(path).read_text(encoding="utf-8")), ValueError)


def write_json_lines(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Replace the file at `path` with a line of JSON for each value, atomically."""
    write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def read_json_lines(path: str | os.PathLike[str]) -> list[Any]:
    """Return the value of each line, without a last line that a kill cut short; [] if there is no
    file. Raises ValueError for another damaged line."""
    def read() -> list[Any]:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    with suppress(FileNotFoundError):
        return retried(read, ValueError)
    return []


def link_folder(source: Path, target: Path) -> None:
    """Replace the folder `target` by hard links (else copies) of the files in `source`, whole or
    not at all."""
    private = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    private.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, private, copy_function=_link)
        check_held(target)
        if target.exists():
            target.rename(private.with_suffix(".old"))
        private.rename(target)
    finally:
        for left in (private, private.with_suffix(".old")):
            shutil.rmtree(left, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def tail(path: Path, size: int = 16384) -> str:
    """Return the last `size` bytes of a text file; its first line may be cut. "" for no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def log_tail(path: Path) -> str:
    """Return the last lines of a log file, "" when there is none."""
    return "\n".join(tail(path).splitlines()[-LOG_LINES:])
