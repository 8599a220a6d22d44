"""What is in use of this machine: one lock file per GPU and per core, for all sweeps of all users.

    /tmp/svll-claims/gpu-<UUID>  core-<number>  waiting

The kernel drops a lock (flock) when the last process that has it open ends, however it ends. A
trial's ranks inherit the locks of their worker, so a GPU is free only after its ranks have ended.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

FOLDER = "/tmp/svll-claims"
FOLDER_VARIABLE = "SVLL_CLAIMS"
"""Names another folder, such as one that containers with the same GPUs share."""
OWNER_BYTES = 200


@dataclass(frozen=True)
class Claim:
    """GPUs, by names for CUDA_VISIBLE_DEVICES, and locks that processes inherit to keep them."""

    gpus: tuple[str, ...]
    locks: tuple[int, ...]
    trials: int = 1

    def release(self) -> None:
        """Give everything back, unless another process has inherited it."""
        for lock in self.locks:
            os.close(lock)


@dataclass(frozen=True)
class Pool:
    """GPUs and cores, and how many of each a trial takes."""

    gpus: Sequence[str]
    gpus_each: int
    cores: Sequence[int]
    cores_each: int

    def take(self, owner: str, trials: int = 1) -> Claim | None:
        """Claim the shares of some trials, all or nothing; None while others have them.

        owner: what others are told about who has them.
        """
        held: dict[Path, int] = {}
        for files, each in self._kinds():
            locked = _lock_some(files, each * trials)
            held |= locked
            if len(locked) < each * trials:
                Claim((), tuple(held.values())).release()
                return None
        for lock in held.values():
            os.ftruncate(lock, 0)
            os.pwrite(lock, owner.encode()[:OWNER_BYTES], 0)
        gpus = tuple(name for name in self.gpus if _gpu_file(name) in held)
        return Claim(gpus, tuple(held.values()), trials)

    def free(self) -> int:
        """Return for how many trials there is room now."""
        room = [
            sum(_owner(file) is None for file in files) // each
            for files, each in self._kinds() if each
        ]
        return min(room, default=len(self.cores))

    def users(self, trials: int = 1) -> list[str]:
        """Return who has what some trials wait for; nothing while there is room for them."""
        found: list[str] = []
        for files, each in self._kinds():
            owners = [owner for file in files if (owner := _owner(file)) is not None]
            if len(files) - len(owners) < each * trials:
                found += owners
        return list(dict.fromkeys(found))

    def _kinds(self) -> list[tuple[list[Path], int]]:
        """Return the lock files of each kind and how many of them a trial takes."""
        cores = [_folder() / f"core-{number}" for number in self.cores]
        return [(list(map(_gpu_file, self.gpus)), self.gpus_each), (cores, self.cores_each)]


@contextmanager
def waiting() -> Iterator[None]:
    """Let others know, while the body runs, that somebody waits for a share."""
    lock = _open(_folder() / "waiting")
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def somebody_waits() -> bool:
    """Return whether any trial of this machine waits for its share."""
    lock = _locked(_folder() / "waiting")
    if lock is None:
        return True
    os.close(lock)
    return False


def _folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE, FOLDER))


def _gpu_file(name: str) -> Path:
    return _folder() / f"gpu-{name.replace('/', '_')}"  # MIG's names have slashes


def _lock_some(files: Sequence[Path], count: int) -> dict[Path, int]:
    """Lock the first free files, as many as are wanted and there are."""
    held: dict[Path, int] = {}
    for file in files:
        if len(held) < count and (lock := _locked(file)) is not None:
            held[file] = lock
    return held


def _locked(file: Path, how: int = fcntl.LOCK_EX) -> int | None:
    """Return the open file with its lock, None when another process holds it."""
    lock = _open(file)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
        return lock
    except BlockingIOError:
        os.close(lock)
        return None


def _owner(file: Path) -> str | None:
    """Return who holds a lock, None when nobody does."""
    lock = _locked(file, fcntl.LOCK_SH)
    if lock is not None:
        os.close(lock)
        return None
    text = file.read_bytes()[:OWNER_BYTES].decode(errors="replace")
    return "".join(filter(str.isprintable, text)) or "another process"


def _open(file: Path) -> int:
    """Open a lock file, which every user may do; it is made when needed and stays."""
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
