"""Locks as files: with a heartbeat, taken over when their holder is dead.

A process that was suspended, or cut off from the file system, cannot keep its lock alive, and looks
dead to other machines. So a holder asks whether the lock is still its own before each write
(`check_held`), and never refreshes another's. filelock's SoftFileLease does neither before its
second heartbeat, and on NFS, which cannot exchange two names, it never takes over a dead holder's.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.base.errors import Hindered, UserError

HEARTBEAT_S = 5.0
"""How often the holder of a lock touches it."""
STALE_S = 60.0
"""A lock untouched for so long, by a process of another machine, belongs to a dead holder."""


class Busy(UserError):
    """A living process holds the lock."""


class LockLost(Busy):
    """Another process has taken over the lock that this one held."""


_held: dict[Path, str] = {}
"""The tokens of the locks that this process holds, by the locks' resolved paths."""
os.register_at_fork(after_in_child=_held.clear)  # the parent may give a lock back first


@contextmanager
def held_lock(path: Path, on_loss: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the lock file at `path` while the body runs; see `Run.lock`.

    Meanwhile the lock guards its folder: `check_held` is for what is written there. `on_loss` is
    called, in another thread, when a heartbeat finds the lock in other hands.
    """
    token = _acquire(path)
    key = path.resolve()
    _held[key] = token
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, token, ended, on_loss), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        _held.pop(key, None)  # a fork has none
        with suppress(OSError):  # one that cannot be removed is known to be stale by its process
            if _is_own(path, token):
                path.unlink(missing_ok=True)


def check_held(path: Path) -> None:
    """Raise LockLost when this process has lost a lock that guards `path`; called before a write.

    Reads the lock file: a process that was suspended cannot tell from its own memory.
    """
    if not _held:
        return
    place = path.resolve()
    for lock, token in tuple(_held.items()):
        if place.is_relative_to(lock.parent) and not _is_own(lock, token):
            holder = _holder(lock)
            taken = f"is now in use by {_told_of(holder)}" if holder else (
                f"{lock.name} was removed, or its new holder has ended; give the command again"
            )
            raise LockLost(
                f"{lock.parent}: this process ({os.getpid()} on {socket.gethostname()}) was "
                "suspended or cut off for so long that it lost the folder, and writes nothing more "
                f"there; the folder {taken}"
            )


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock at `path`, or None when nobody alive does."""
    holder = _holder(path)
    return holder if holder and _is_alive(path, holder) else None


def job_id() -> str | None:
    """Return SLURM's id of the job that this process is in (array_task for an array), or None."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def _acquire(path: Path) -> str:
    token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    mine = {
        "host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid()),
        "job": job_id(), "token": token,
    }
    private = path.with_name(f".{path.name}.{token}")
    try:
        with writing(path.parent):
            private.write_text(json.dumps(mine), encoding="utf-8")
        for _ in range(3):
            try:
                # link() creates the name with its content or not at all, on NFS too
                os.link(private, path)
                return token
            except FileExistsError:
                holder = _holder(path)
                if holder is None:  # given back just now
                    continue
                if holder and _is_alive(path, holder):
                    raise Busy(f"{path.parent}: in use by {_told_of(holder)}") from None
                _remove_stale(path, holder)
    finally:
        with suppress(OSError):  # on a read-only file system there is nothing to remove
            private.unlink(missing_ok=True)
    raise Busy(f"{path.parent}: another process took the lock just now; try again")


def _told_of(holder: dict[str, Any]) -> str:
    """Say who holds a lock and what to do about it."""
    pid, host, job = holder["pid"], holder["host"], holder.get("job")
    who = f"process {pid} on {host}" + (f" (job {job})" if job else "")
    end = f"scancel {job}" if job else f"kill {pid} on {host}"
    return f"{who}; wait until it has ended, or end it ({end}) and give the command again"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that says so."""
    try:
        yield
    except OSError as error:
        raise Hindered(
            f"{folder}: cannot be written: {error.strerror}; make room, let this machine write "
            "there, or name another place (run.runs=FOLDER)"
        ) from None


def _remove_stale(path: Path, holder: dict[str, Any]) -> None:
    """Take a dead holder's lock away; of several that try, the rename lets one through."""
    aside = path.with_name(f".{path.name}.stale.{os.getpid()}.{time.time_ns()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if (_holder(aside) or {}).get("token") != holder.get("token"):  # a new holder's: give it back
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _beat(
    path: Path, token: str, ended: threading.Event, on_loss: Callable[[], object] | None
) -> None:
    while not ended.wait(HEARTBEAT_S):
        # a network file system may fail once; without a heartbeat the holder would look dead
        with suppress(OSError):
            if _is_own(path, token):
                os.utime(path)
            elif on_loss is not None:
                on_loss()


def _is_own(path: Path, token: str) -> bool:
    return (_holder(path) or {}).get("token") == token


def _holder(path: Path) -> dict[str, Any] | None:
    """Return what a lock file says; nothing when it is damaged, None when there is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return said if isinstance(said, dict) and {"host", "pid", "token"} <= said.keys() else {}


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname():
        return _start_time(int(holder["pid"])) == holder.get("started") is not None
    try:
        return time.time() - path.stat().st_mtime < STALE_S
    except FileNotFoundError:
        return False


def _start_time(pid: int) -> str | None:
    """Return when a living process started, in clock ticks since boot; None when there is none.

    A process id may be used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # a zombie has ended and only waits for its parent to ask
    return None if fields[0] in "ZX" else fields[19]
