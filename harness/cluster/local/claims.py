"""Machine-wide claims: one lock file per GPU and per core, shared by the sweeps of all users.

    /tmp/svll-claims/gpu-<UUID>  core-<number>  turn-gpu  turn-core

The kernel drops a lock (flock) when the last process that has it open ends, however it ends. A
trial's ranks inherit the locks of their worker, so a GPU is free only after its ranks have ended.

One waiting process per kind (GPUs, cores) holds the turn. It keeps what becomes free until it has
enough; others take none of the files that the turn names. All processes wait for GPUs first and for
cores next, so they cannot deadlock.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import UserError

FOLDER = "/tmp/svll-claims"
FOLDER_VARIABLE = "SVLL_CLAIMS"
"""Environment variable for another folder, such as one that containers with the same GPUs share."""
OWNER_BYTES = 200
POLL_S = 0.2


@dataclass(frozen=True)
class Claim:
    """GPUs, as in CUDA_VISIBLE_DEVICES, and the locks that processes inherit to keep them."""

    gpus: tuple[str, ...]
    locks: tuple[int, ...]
    trials: int = 1

    def release(self) -> None:
        """Release all locks, except those that another process has inherited."""
        _close(self.locks)


@dataclass(frozen=True)
class Pool:
    """GPUs and cores, and the number of each per trial."""

    gpus: Sequence[str]
    gpus_each: int
    cores: Sequence[int]
    cores_each: int

    def take(
        self, owner: str, most: int = 1, is_needed: Callable[[], bool] | None = None
    ) -> Claim | None:
        """Claim GPUs and cores for as many trials as there is room for, up to `most`.

        owner: name shown to sweeps that wait. While there is no room, waits as long as
        `is_needed()`; returns None when it is not, or at once without that function.
        """
        held: list[dict[Path, int]] = []
        kinds = self._kinds()
        for kind in kinds:
            held.append(kind.lock(owner, most, is_needed))
            if not held[-1]:
                _close(lock for files in held for lock in files.values())
                return None
        trials = min([most, *(len(f) // k.each for f, k in zip(held, kinds, strict=True))])
        for files, kind in zip(held, kinds, strict=True):
            _close(files.pop(file) for file in list(files)[trials * kind.each :])
        gpus = tuple(name for name in self.gpus if any(_gpu_file(name) in files for files in held))
        locks = [lock for files in held for lock in files.values()]
        return Claim(gpus, (*locks, _locked_folder()) if locks else (), trials)

    def free(self) -> int:
        """Return how many trials there is room for now."""
        room = [sum(_owner(f) is None for f in kind.files) // kind.each for kind in self._kinds()]
        return min(room, default=len(self.cores))

    def users(self, trials: int = 1) -> list[str]:
        """Return who holds what some trials need; nothing while there is room for them."""
        users: list[str] = []
        for kind in self._kinds():
            owners = [owner for file in kind.files if (owner := _owner(file)) is not None]
            if len(kind.files) - len(owners) < kind.each * trials:
                users += owners
        return list(dict.fromkeys(users))

    def _kinds(self) -> list["_Kind"]:
        """Return the kinds that a trial needs, in locking order."""
        folder = _folder()
        cores = [folder / f"core-{number}" for number in self.cores]
        kinds = [
            _Kind(folder / "turn-gpu", [_gpu_file(name) for name in self.gpus], self.gpus_each),
            _Kind(folder / "turn-core", cores, self.cores_each),
        ]
        return [kind for kind in kinds if kind.each]


@dataclass(frozen=True)
class _Kind:
    """The lock files of GPUs or of cores, the number per trial, and the turn's lock file."""

    turn: Path
    files: list[Path]
    each: int

    def lock(self, owner: str, most: int, is_needed: Callable[[], bool] | None) -> dict[Path, int]:
        """Lock free files for up to `most` trials; none unless enough for one. See `Pool.take`."""
        held: dict[Path, int] = {}
        turn: int | None = None
        with ExitStack() as stack:
            while True:
                wanted: list[str] = []  # by the process that holds the turn
                if turn is None and _is_held(self.turn):
                    wanted = self.turn.read_bytes().decode(errors="replace").split()
                free = [f for f in self.files if f not in held and f.name not in wanted]
                held |= _lock_some(free, self.each * most - len(held), owner)
                if len(held) >= self.each:
                    return held
                if turn is None:  # only the turn's holder keeps too few
                    _close(held.values())
                    held = {}
                if is_needed is None or not is_needed():
                    break
                if turn is None and (turn := _locked(self.turn)) is not None:
                    stack.callback(os.close, turn)
                    _write(turn, " ".join(file.name for file in self.files).encode())
                else:
                    time.sleep(POLL_S)
        _close(held.values())
        return {}


def _folder() -> Path:
    folder = Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)
    if not folder.is_absolute():
        raise UserError(f"{FOLDER_VARIABLE}={folder}: write an absolute path: all sweeps of this "
                        "machine must use one folder")
    return folder


def _gpu_file(name: str) -> Path:
    return _folder() / f"gpu-{name.replace('/', '_')}"  # MIG's names have slashes


def _lock_some(files: Sequence[Path], count: int, owner: str) -> dict[Path, int]:
    """Lock the first free files, at most `count`."""
    held: dict[Path, int] = {}
    for file in files:
        if len(held) < count and (lock := _locked(file)) is not None:
            _write(lock, owner.encode()[:OWNER_BYTES])
            held[file] = lock
    return held


def _locked(file: Path, how: int = fcntl.LOCK_EX) -> int | None:
    """Return the open file with its lock, None when another process holds the lock."""
    while True:
        lock = _open(file)
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), file.stat(follow_symlinks=False)):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        os.close(lock)  # somebody removed the file after it was opened


def _locked_folder() -> int:
    """Return the open folder with a shared lock: systemd removes no old files from it."""
    lock = os.open(_folder(), os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _is_held(file: Path) -> bool:
    lock = _locked(file, fcntl.LOCK_SH)
    if lock is not None:
        os.close(lock)
    return lock is None


def _owner(file: Path) -> str | None:
    """Return who holds a lock, None when it is free."""
    if not _is_held(file):
        return None
    text = file.read_bytes()[:OWNER_BYTES].decode(errors="replace")
    return "".join(filter(str.isprintable, text)) or "another process"


def _write(lock: int, content: bytes) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, content, 0)


def _close(locks: Iterable[int]) -> None:
    for lock in locks:
        os.close(lock)


def _open(file: Path) -> int:
    """Open a lock file, creating it for all users if needed; it is never deleted."""
    try:
        if not file.parent.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.parent.chmod(0o1777)  # as /tmp: nobody removes what another user made
        try:
            # not with O_CREAT: in such a folder Linux refuses that for another user's file
            return os.open(file, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            if os.fstat(lock).st_uid == os.getuid():
                os.fchmod(lock, 0o666)
            return lock
    except OSError as error:
        raise UserError(f"{file}: cannot be opened ({error.strerror}), so other sweeps cannot see "
                        "which GPUs and cores are in use; have its owner remove it, or set "
                        f"{FOLDER_VARIABLE}=FOLDER") from None
