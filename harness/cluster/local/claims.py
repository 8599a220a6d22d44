"""Machine-wide claims: one lock file per GPU and per core, shared by the sweeps of all users.

    /tmp/svll-claims/gpu-<UUID>  core-<number>  turn-gpu  turn-core

The kernel drops a lock (flock) when the last process that has it open ends, however it ends. A
trial's ranks inherit the locks of their worker, so a GPU is free only after its ranks have ended.

Who waits holds a turn, one process for each kind, and keeps what comes free until it has enough;
others take none of the files that the turn names. Processes wait for GPUs first and for cores
next, so none waits for another that waits for it.
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
"""Names another folder, such as one that containers with the same GPUs share."""
OWNER_BYTES = 200
POLL_S = 0.2


@dataclass(frozen=True)
class Claim:
    """GPUs, by names for CUDA_VISIBLE_DEVICES, and locks that processes inherit to keep them."""

    gpus: tuple[str, ...]
    locks: tuple[int, ...]
    trials: int = 1

    def release(self) -> None:
        """Give everything back, unless another process has inherited it."""
        _close(self.locks)


@dataclass(frozen=True)
class Pool:
    """GPUs and cores, and how many of each a trial takes."""

    gpus: Sequence[str]
    gpus_each: int
    cores: Sequence[int]
    cores_each: int

    def take(
        self, owner: str, most: int = 1, is_needed: Callable[[], bool] | None = None
    ) -> Claim | None:
        """Claim the shares of as many trials as there is room for, up to `most`.

        owner: name shown to sweeps that wait. While there is room for none, waits as long as
        `is_needed()`; None when it is not needed, or at once without that function.
        """
        held: list[dict[Path, int]] = []
        kinds = self._kinds()
        for kind in kinds:
            locked = kind.lock(owner, most)
            if not locked and is_needed is not None:
                locked = kind.wait(owner, most, is_needed)
            held.append(locked)
            if not locked:
                _close(lock for files in held for lock in files.values())
                return None
        trials = min([most, *(len(f) // k.each for f, k in zip(held, kinds, strict=True))])
        for files, kind in zip(held, kinds, strict=True):
            _close(files.pop(file) for file in list(files)[trials * kind.each :])
        gpus = tuple(name for name in self.gpus if any(_gpu_file(name) in files for files in held))
        locks = [lock for files in held for lock in files.values()]
        return Claim(gpus, (*locks, _locked_folder()) if locks else (), trials)

    def free(self) -> int:
        """Return for how many trials there is room now."""
        room = [
            sum(_owner(file) is None for file in kind.files) // kind.each for kind in self._kinds()
        ]
        return min(room, default=len(self.cores))

    def users(self, trials: int = 1) -> list[str]:
        """Return who has what some trials wait for; nothing while there is room for them."""
        found: list[str] = []
        for kind in self._kinds():
            owners = [owner for file in kind.files if (owner := _owner(file)) is not None]
            if len(kind.files) - len(owners) < kind.each * trials:
                found += owners
        return list(dict.fromkeys(found))

    def _kinds(self) -> list["_Kind"]:
        """Return the kinds that a trial takes, in the order in which they are taken."""
        folder = _folder()
        cores = [folder / f"core-{number}" for number in self.cores]
        kinds = [
            _Kind(folder / "turn-gpu", [_gpu_file(name) for name in self.gpus], self.gpus_each),
            _Kind(folder / "turn-core", cores, self.cores_each),
        ]
        return [kind for kind in kinds if kind.each]


@dataclass(frozen=True)
class _Kind:
    """The lock files of GPUs or of cores, how many a trial takes, and the file of the turn."""

    turn: Path
    files: list[Path]
    each: int

    def lock(self, owner: str, most: int) -> dict[Path, int]:
        """Lock the free files of up to `most` trials, except those that a waiting one wants."""
        wanted = self._wanted_by_another()
        files = [file for file in self.files if file.name not in wanted]
        held = _lock_some(files, self.each * most, owner)
        if len(held) < self.each:
            _close(held.values())
            return {}
        return held

    def wait(self, owner: str, most: int, is_needed: Callable[[], bool]) -> dict[Path, int]:
        """Lock as `lock` does, once there are enough; none when that is no longer needed."""
        held: dict[Path, int] = {}
        turn = None
        with ExitStack() as stack:
            while len(held) < self.each and is_needed():
                if turn is None and (turn := _locked(self.turn)) is not None:
                    stack.callback(os.close, turn)
                    _write(turn, " ".join(file.name for file in self.files).encode())
                if turn is None:
                    held = self.lock(owner, most)
                else:
                    others = [file for file in self.files if file not in held]
                    held |= _lock_some(others, self.each * most - len(held), owner)
                if len(held) < self.each:
                    time.sleep(POLL_S)
        if len(held) < self.each:
            _close(held.values())
            return {}
        return held

    def _wanted_by_another(self) -> set[str]:
        if not _is_held(self.turn):
            return set()
        return set(self.turn.read_bytes().decode(errors="replace").split())


def _folder() -> Path:
    folder = Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)
    if not folder.is_absolute():
        raise UserError(f"{FOLDER_VARIABLE}={folder}: write an absolute path: all sweeps of this "
                        "machine must use the same folder")
    return folder


def _gpu_file(name: str) -> Path:
    return _folder() / f"gpu-{name.replace('/', '_')}"  # MIG's names have slashes


def _lock_some(files: Sequence[Path], count: int, owner: str) -> dict[Path, int]:
    """Lock the first free files, as many as are wanted and there are."""
    held: dict[Path, int] = {}
    for file in files:
        if len(held) < count and (lock := _locked(file)) is not None:
            _write(lock, owner.encode()[:OWNER_BYTES])
            held[file] = lock
    return held


def _locked(file: Path, how: int = fcntl.LOCK_EX) -> int | None:
    """Return the open file with its lock, None when another process holds it."""
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
    """Return the open folder with a shared lock: systemd removes no old files from such ones."""
    lock = os.open(_folder(), os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _is_held(file: Path) -> bool:
    lock = _locked(file, fcntl.LOCK_SH)
    if lock is not None:
        os.close(lock)
    return lock is None


def _owner(file: Path) -> str | None:
    """Return who holds a lock, None when nobody does."""
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
        raise UserError(
            f"{file}: cannot be opened ({error.strerror}), so other sweeps cannot see which GPUs "
            f"and cores are in use; have its owner remove it, or set {FOLDER_VARIABLE}=FOLDER"
        ) from None
