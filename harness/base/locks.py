"""Lock files with a heartbeat, which other processes take over when their holder is dead.

A process that was suspended, or cut off from the file system, cannot refresh its lock and looks
dead to other machines. So a holder checks before each write that it still has the lock
(`check_held`), and never refreshes another's. filelock's SoftFileLease does neither before its
second heartbeat, and on NFS, which cannot exchange two names, it never takes over a stale lock.

Clocks of hosts differ by minutes. So the age of another machine's lock is measured with the clock
of its file system, and before a takeover the lock is watched: on some file systems (Lustre) each
host dates files by its own clock.
"""

import json
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.base.errors import Hindered, UserError
from harness.base.reading import from_json, retried

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A lock of another machine that was not touched for so long is stale."""
WATCHED_BEATS = 2.5
"""For how many heartbeats a stale lock of another machine is watched before it is taken over."""
CLOCK_S = 60.0
"""For how long the measured clock of a file system is used."""


class Busy(UserError):
    """A living process holds the lock: `who`."""

    def __init__(self, message: str, who: str = "another process") -> None:
        super().__init__(message)
        self.who = who


class LockLost(Busy):
    """Another process has taken over the lock that this one held."""


_held: dict[Path, str] = {}
"""The tokens of the locks that this process holds, by the locks' resolved paths."""
os.register_at_fork(after_in_child=_held.clear)  # the parent may release a lock first


@contextmanager
def held_lock(path: Path, on_loss: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold the lock file at `path`, and so its folder, while the body runs; see `Run.lock`.

    Call `check_held` before writing there. `on_loss` is called, in another thread, when a heartbeat
    finds that another process has the lock. Raises Busy, or Hindered if it cannot be written.
    """
    key, token = path.resolve(), _acquire(path)
    _held[key] = token
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, token, ended, on_loss), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        _held.pop(key, None)  # empty in a fork
        with suppress(OSError):  # if it cannot be removed, others see that its process has ended
            if _is_own(path, token):
                path.unlink(missing_ok=True)


def check_held(path: Path) -> None:
    """Raise LockLost when this process has lost a lock that guards `path`; call before a write.
    Reads the lock file, as a process does not notice that it was suspended."""
    if not _held:
        return
    place = path.resolve()
    for lock, token in tuple(_held.items()):
        if place.is_relative_to(lock.parent) and not _is_own(lock, token):
            holder = _holder(lock)
            now = f"the folder is now in use by {_description(holder)}" if holder else (
                f"{lock.name} was removed, or its new holder has ended; give the command again"
            )
            raise LockLost(f"{lock.parent}: this process ({os.getpid()} on {socket.gethostname()}) "
                           "was suspended or cut off for too long, lost the lock and writes "
                           f"nothing more; {now}")


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Return the living holder of the lock at `path`, if there is one."""
    holder = _holder(path)
    return holder if holder and _is_alive(path, holder) else None


def is_beating(path: Path) -> bool:
    """Watch the lock at `path` and return whether its holder still touches or replaces it."""
    before, deadline = _touched(path), time.monotonic() + WATCHED_BEATS * HEARTBEAT_S
    while before is not None and time.monotonic() < deadline:
        time.sleep(HEARTBEAT_S / 5)
        if (now := _touched(path)) != before:
            return now is not None
    return False


def job_id() -> str | None:
    """Return the id of this process's SLURM job (array_task for an array), or None."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def _acquire(path: Path) -> str:
    token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": start_time(os.getpid()),
            "job": job_id(), "token": token}
    private = path.with_name(f".{path.name}.{token}")
    try:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            private.write_text(json.dumps(mine), encoding="utf-8")
        for _ in range(3):
            try:
                # on NFS too, link() creates the name with its content or not at all
                os.link(private, path)
                return token
            except FileExistsError:
                holder = _holder(path)
                if holder is None:  # released just now
                    continue
                if holder and (_is_alive(path, holder)
                               or (not _is_here(holder) and is_beating(path))):
                    raise Busy(f"{path.parent}: in use by {_description(holder)}",
                               _who(holder)) from None
                _remove_stale(path, holder)
    finally:
        with suppress(OSError):  # a read-only file system has nothing to remove
            private.unlink(missing_ok=True)
    raise Busy(f"{path.parent}: another process took the lock just now; try again")


def _description(holder: dict[str, Any]) -> str:
    """Return who holds a lock and what to do about it."""
    job = holder.get("job")
    end = f"scancel {job}" if job else f"kill {holder['pid']} on {holder['host']}"
    return f"{_who(holder)}; wait until it has ended, or end it ({end}) and give the command again"


def _who(holder: dict[str, Any]) -> str:
    job = holder.get("job")
    return f"process {holder['pid']} on {holder['host']}" + (f" (job {job})" if job else "")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise an OSError of the body as Hindered."""
    try:
        yield
    except OSError as error:
        raise Hindered(f"{folder}: cannot be written: {error.strerror}; make room, let this "
                       "machine write there, or name another place (run.runs=FOLDER)") from None


def _remove_stale(path: Path, holder: dict[str, Any]) -> None:
    """Remove a dead holder's lock; the rename succeeds in only one of several processes."""
    aside = path.with_name(f".{path.name}.stale.{os.getpid()}.{time.time_ns()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if (_holder(aside) or {}).get("token") != holder.get("token"):  # a new holder's: restore it
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _beat(
    path: Path, token: str, ended: threading.Event, on_loss: Callable[[], object] | None
) -> None:
    while not ended.wait(HEARTBEAT_S):
        with suppress(OSError):  # a network file system may fail once; the next beat may succeed
            if not _touch_own(path, token) and on_loss is not None:
                on_loss()


def _touch_own(path: Path, token: str) -> bool:
    """Date the lock now if it is ours, and return whether it is. One that replaces it meanwhile is
    another file, and keeps its date."""
    try:
        with path.open("rb") as lock:
            own = token.encode() in lock.read()
            if own:
                os.utime(lock.fileno())
    except FileNotFoundError:
        return False
    return own


def _is_own(path: Path, token: str) -> bool:
    return (_holder(path) or {}).get("token") == token


def _holder(path: Path) -> dict[str, Any] | None:
    """Return the content of a lock file; empty when it is damaged, None when there is none."""
    try:
        holder = retried(lambda: from_json(path.read_text(encoding="utf-8")), ValueError)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    kinds = {"host": str, "pid": int, "token": str}
    is_whole = isinstance(holder, dict) and all(isinstance(holder.get(key), kind)
                                                for key, kind in kinds.items())
    return holder if is_whole else {}


def _is_here(holder: dict[str, Any]) -> bool:
    return bool(holder.get("host") == socket.gethostname())


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    if _is_here(holder):
        return start_time(holder["pid"]) == holder.get("started") is not None
    try:
        return now_at(path.parent) - retried(path.stat).st_mtime < STALE_S
    except FileNotFoundError:
        return False


def _touched(path: Path) -> tuple[int, int] | None:
    """Return which file the lock is and when it was touched; None for no file. Opened, as NFS
    remembers the times of a file that is not."""
    try:
        with path.open("rb") as lock:
            found = os.fstat(lock.fileno())
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


_clocks: dict[int, tuple[float, float]] = {}
"""By file system: when its clock was measured, and how far it was ahead; by the monotonic clock."""


def now_at(folder: Path) -> float:
    """Return the time by the clock with which a folder's file system dates files; by this host's
    where it cannot be written."""
    device, now = folder.stat().st_dev, time.monotonic()
    measured, ahead = _clocks.get(device, (-math.inf, 0.0))
    if now - measured > CLOCK_S:
        ahead = time.time() - time.monotonic()
        with suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
            os.utime(probe.fileno())
            ahead = os.fstat(probe.fileno()).st_mtime - time.monotonic()
        _clocks[device] = now, ahead
    return time.monotonic() + ahead


def start_time(pid: int) -> str | None:
    """Return when a living process started, in clock ticks since boot, as ids are reused; else
    None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
