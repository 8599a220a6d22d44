"""What a job finds where it runs: the doctor's questions, answered by every rank.

Each rank writes its answers to a file of its own, after every question, so that a rank that hangs
or dies has told all but the last. A finding is a text and whether it is as it should be.
"""

import importlib
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from harness.base.files import read_json, write_json, write_text
from harness.base.locks import Busy, held_lock
from harness.base.machine import has_gpu
from harness.cluster.rank import say_plainly
from harness.cluster.slurm.job import set_slurm_ranks

log = logging.getLogger(__name__)

PACKAGES = {
    "torch": "torch", "deepspeed": "deepspeed", "open_clip": "open_clip_torch", "h5py": "h5py",
    "nvidia.dali": "nvidia-dali-cuda130", "submitit": "submitit", "ray": "ray", "numba": "numba",
}
"""Modules, and the distributions whose versions they have."""
NEEDED = {
    "gpus": ("packages",), "all-reduce": ("packages",), "files": ("packages", "all-reduce"),
}
"""Questions that another must have answered well."""
TIMEOUT_MIN = 2.0
NUMBERS = 2_000_000
"""What is summed over the ranks: 8 MB, as a small model's gradients."""
PATIENCE_S = 30.0
SCRATCH_GB = 10.0
CLOCK_S = 2.0
"""Beyond this, a lock's age as another node sees it is wrong."""


@dataclass(frozen=True)
class Finding:
    """The answer to one question."""

    told: str
    fine: bool = True


@dataclass
class Answers:
    """All that one rank found."""

    rank: int
    host: str
    findings: dict[str, Finding] = field(default_factory=dict)
    clock_s: float | None = None
    """How much this node's clock is ahead of the file server's."""
    done: bool = False


def answers_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def read_answers(folder: Path, ranks: int) -> list[Answers]:
    """Return what the ranks have written so far."""
    found = []
    for rank in range(ranks):
        if answers_file(folder, rank).exists():
            said = read_json(answers_file(folder, rank))
            findings = {name: Finding(**finding) for name, finding in said["findings"].items()}
            found.append(Answers(**{**said, "findings": findings}))
    return found


def examine_job(folder: str, cpus: int, gpus: int | None) -> None:
    """Answer as one rank of a SLURM job; called by submitit."""
    say_plainly()
    set_slurm_ranks()
    if gpus == 0:  # where SLURM does not hide them, ranks would meet on the first one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    examine(Path(folder), cpus=cpus, gpus=gpus)


def examine(folder: Path, *, cpus: int, gpus: int | None) -> Answers:
    """Answer every question; cpus and gpus are what each rank and each node were promised.

    gpus: None where an option of sbatch asks for some.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    answers = Answers(rank, os.uname().nodename)
    questions: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "cores": lambda: _cores(cpus),
        "gpus": lambda: _gpus(gpus),
        "all-reduce": _all_reduce,
        "files": lambda: _files(folder, rank, world),
        "scratch": _scratch,
    }
    answers.clock_s = clock_ahead(folder)
    for name, question in questions.items():
        failed = [n for n in NEEDED.get(name, ()) if not answers.findings[n].fine]
        try:
            # without what it needs it would only say the same in other words, or the wrong thing
            found = Finding(f"not tried: see {failed[0]}") if failed else question()
            answers.findings[name] = found
        except Exception as error:  # whatever it is, it is the answer
            log.exception("%s", name)
            first = (str(error).strip().splitlines() or [""])[0]
            answers.findings[name] = Finding(f"{type(error).__name__}: {first}", fine=False)
        write_json(answers_file(folder, rank), asdict(answers))
    answers.done = True
    write_json(answers_file(folder, rank), asdict(answers))
    return answers


def clock_ahead(folder: Path) -> float | None:
    """Return how many seconds this machine's clock is ahead of the file server's, as files tell."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            before = time.time()
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            return (before + time.time()) / 2 - os.stat(file.name).st_mtime
    except OSError:
        return None


def _python() -> Finding:
    fine = sys.version_info >= (3, 11)
    return Finding(f"{platform.python_version()} ({sys.executable})", fine)


def _packages() -> Finding:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if has_gpu() else "cpu")
    found, missing = [], []
    for module, distribution in PACKAGES.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken library raises what it likes
            first = (str(error).strip().splitlines() or [""])[0]
            missing.append(f"{module}: {type(error).__name__}: {first}")
            continue
        try:
            found.append(f"{module} {metadata.version(distribution)}")
        except metadata.PackageNotFoundError:
            found.append(module)
    return Finding("; ".join(missing) or ", ".join(found), fine=not missing)


def _cores(asked: int) -> Finding:
    given = sorted(os.sched_getaffinity(0))
    numbers = ",".join(map(str, given))
    return Finding(f"{numbers}; {asked} asked", len(given) >= asked)


def _gpus(asked: int | None) -> Finding:
    if asked == 0:
        return Finding("none asked")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
    kinds = f" ({', '.join(names)})" if names else ""
    told = "some" if asked is None else asked
    return Finding(f"{count}{kinds}; {told} asked", count >= (asked or 1))


def _all_reduce() -> Finding:
    import torch
    import torch.distributed as dist

    from harness.training import ranks

    ranks.init_ranks(TIMEOUT_MIN)
    world = ranks.world_size()
    if world == 1:
        return Finding("not tested: one rank has no other to talk to")
    for _ in range(2):  # the first one makes the connections
        numbers = torch.full((NUMBERS,), ranks.rank() + 1.0, device=ranks.device())
        ranks.barrier()
        started = time.perf_counter()
        dist.all_reduce(numbers)
        sums = numbers.unique().tolist()
        seconds = time.perf_counter() - started
    right = sums == [world * (world + 1) / 2]
    told = f"{dist.get_backend()}, {world} ranks, 8 MB in {1000 * seconds:.0f} ms"
    return Finding(told if right else f"{told}: wrong sum {sums[:3]}", right)


def _files(folder: Path, rank: int, world: int) -> Finding:
    """Exclusive creation, hard links, replacing and locks, as all ranks see them."""
    from harness.training import ranks

    own = folder / f"own-{rank}"
    write_text(own, "1")
    write_text(own, "2")  # replaces it
    linked = folder / f"linked-{rank}"
    linked.unlink(missing_ok=True)
    os.link(own, linked)
    try:
        os.link(own, linked)
    except FileExistsError:
        pass
    else:
        return Finding("a hard link replaced a file: locks are not safe there", fine=False)
    ranks.barrier()
    waited = max(_until(lambda n=n: (folder / f"own-{n}").exists()) for n in range(world))  # type: ignore[misc]
    held = _lock_together(folder / "doctor.lock", ranks.barrier)
    ranks.barrier()
    write_text(folder / f"held-{rank}", str(int(held)))
    ranks.barrier()
    for other in range(world):
        _until(lambda n=other: bool((folder / f"held-{n}").read_text()))  # type: ignore[misc]
    holders = sum(int((folder / f"held-{n}").read_text()) for n in range(world))
    if holders != 1:
        return Finding(f"{holders} ranks held one lock at once", fine=False)
    return Finding(f"create, link, replace, lock; seen by all after {1000 * waited:.0f} ms")


def _lock_together(path: Path, barrier: Callable[[], None]) -> bool:
    """Try to take a lock while all ranks try, and keep it until all have tried."""
    try:
        with held_lock(path):
            barrier()
            return True
    except Busy:
        barrier()
        return False


def _until(check: Callable[[], bool]) -> float:
    """Wait until something is seen; returns how long that took. Raises TimeoutError."""
    started = time.monotonic()
    while True:
        try:
            if check():
                return time.monotonic() - started
        except FileNotFoundError:
            pass
        if time.monotonic() - started > PATIENCE_S:
            raise TimeoutError(f"what another rank wrote was not seen within {PATIENCE_S:.0f} s")
        time.sleep(0.01)


def _scratch() -> Finding:
    place = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    with tempfile.NamedTemporaryFile(dir=place) as file:
        file.write(b"x")
    room = os.statvfs(place)
    free = room.f_bavail * room.f_frsize / 1e9
    return Finding(f"{place}: {free:.0f} GB free", free >= SCRATCH_GB)


if __name__ == "__main__":
    say_plainly()
    examine(Path(sys.argv[1]), cpus=int(sys.argv[2]), gpus=int(sys.argv[3]))
