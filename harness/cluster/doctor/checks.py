"""The doctor's checks, which every rank of a job runs. Each rank rewrites its report after every
check, so that a rank that hangs or dies has reported all but the last."""

import importlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from harness.base.caches import keep_caches_here
from harness.base.files import read_json, write_json, write_text
from harness.base.locks import Busy, held_lock
from harness.base.machine import has_gpu, machine_gpus
from harness.cluster.rank_processes import log_to_stderr
from harness.cluster.slurm.job import set_slurm_ranks
from harness.runs import peers
from harness.runs.failures import one_line
from harness.runs.stopping import stop_on_signals

log = logging.getLogger(__name__)

PACKAGES = {
    "torch": "torch", "deepspeed": "deepspeed", "open_clip": "open_clip_torch", "h5py": "h5py",
    "nvidia.dali": "nvidia-dali-cuda130", "submitit": "submitit", "ray": "ray", "numba": "numba",
}
"""Modules, and the distributions that have their versions."""
NEEDED = {"gpus": ("packages",), "all-reduce": ("packages", "gpus"),
          "files": ("packages", "gpus", "all-reduce")}
"""Checks that need the success of others."""
TIMEOUT_MIN = 2.0
NUMBERS = 2_000_000
"""Numbers summed over the ranks: 8 MB, like a small model's gradients."""
PATIENCE_S = 30.0
SCRATCH_GB = 10.0
CLOCK_S = 2.0
"""Beyond this difference, another node misjudges the age of a lock."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    text: str
    fine: bool = True


@dataclass
class RankReport:
    """All findings of one rank."""

    rank: int
    host: str
    findings: dict[str, Finding] = field(default_factory=dict)
    clock_s: float | None = None
    """How much this node's clock is ahead of the file server's."""
    gpus: list[str] = field(default_factory=list)
    """Those that this rank sees; the first is the one that it uses."""
    done: bool = False

    def write(self, folder: Path) -> None:
        write_json(folder / f"rank-{self.rank}.json", asdict(self))


def read_reports(folder: Path) -> list[RankReport]:
    """Return the reports that the ranks have written so far, by rank."""
    reports = []
    for content in map(read_json, folder.glob("rank-*.json")):
        findings = {name: Finding(**found) for name, found in content["findings"].items()}
        reports.append(RankReport(**{**content, "findings": findings}))
    return sorted(reports, key=lambda report: report.rank)


def check_job(folder: str, cpus: int, gpus: int) -> None:
    """Run the checks as one rank of a SLURM job; called by submitit."""
    log_to_stderr()
    keep_caches_here()
    set_slurm_ranks()
    run_checks(Path(folder), cpus=cpus, gpus=gpus)


def run_checks(folder: Path, *, cpus: int, gpus: int) -> None:
    """Run every check; cpus and gpus are the requested cores per rank and GPUs per node."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    report = RankReport(rank, os.uname().nodename, clock_s=clock_ahead(folder))
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "cores": lambda: _cores(cpus),
        "gpus": lambda: _gpus(gpus, report),
        "all-reduce": lambda: _all_reduce(folder),
        "files": lambda: _files(folder, rank, world),
        "scratch": _scratch,
    }
    for name, check in checks.items():
        failed = [n for n in NEEDED.get(name, ()) if not report.findings[n].fine]
        try:
            # without what it needs, a check would repeat that error or mislead
            found = Finding(f"not tried: see {failed[0]}") if failed else check()
        except Exception as error:  # whatever it is, it is the finding
            log.exception("%s", name)
            found = Finding(one_line(error), fine=False)
        report.findings[name] = found
        report.write(folder)
    report.done = True
    report.write(folder)


def clock_ahead(folder: Path) -> float | None:
    """Return how many seconds this machine's clock is ahead of the file server's, if known."""
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
        except Exception as error:  # a broken library may raise anything
            missing.append(f"{module}: {one_line(error)}")
            continue
        try:
            found.append(f"{module} {metadata.version(distribution)}")
        except metadata.PackageNotFoundError:
            found.append(module)
    return Finding("; ".join(missing) or ", ".join(found), fine=not missing)


def _cores(requested: int) -> Finding:
    cores = sorted(os.sched_getaffinity(0))
    return Finding(f"{','.join(map(str, cores))}; {requested} asked", len(cores) >= requested)


def _gpus(requested: int, report: RankReport) -> Finding:
    """Find this rank's GPUs; whether they are enough, and its own, all ranks of a node show."""
    installed = len(machine_gpus())
    if requested == 0:
        return Finding(f"none asked, {installed} here" if installed else "none asked")
    import torch

    from harness.training import ranks

    if not torch.cuda.is_available():
        ranks.check_gpus()
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        return Finding(f"{requested} asked, this rank was given none of {installed} here "
                       f"(CUDA_VISIBLE_DEVICES: {given})", fine=False)
    ranks.set_gpu()
    ranks.try_gpu()
    own, count = torch.cuda.current_device(), torch.cuda.device_count()
    facts = [torch.cuda.get_device_properties((own + n) % count) for n in range(count)]
    report.gpus = [str(one.uuid) for one in facts]
    names = ", ".join(sorted({one.name for one in facts}))
    return Finding(f"{count} ({names}); {requested} asked")


def _all_reduce(folder: Path) -> Finding:
    import torch
    import torch.distributed as dist

    from harness.training import ranks

    # a rank that fails must not end the others
    with peers.together(folder, watched=False), stop_on_signals():
        peers.meet(60 * TIMEOUT_MIN)
        ranks.init_ranks(TIMEOUT_MIN)
    world = ranks.world_size()
    if world == 1:
        return Finding("not tested: there is only one rank")
    for _ in range(2):  # the first one opens the connections
        numbers = torch.full((NUMBERS,), ranks.rank() + 1.0, device=ranks.device())
        ranks.barrier()
        started = time.perf_counter()
        dist.all_reduce(numbers)
        sums = numbers.unique().tolist()
        seconds = time.perf_counter() - started
    right = sums == [world * (world + 1) / 2]
    kind = "nccl" if ranks.device().type == "cuda" else "gloo"
    text = f"{kind}, {world} ranks, 8 MB in {1000 * seconds:.0f} ms"
    return Finding(text if right else f"{text}: wrong sum {sums[:3]}", right)


def _files(folder: Path, rank: int, world: int) -> Finding:
    """Check creation, hard links, replacement and locks, across all ranks."""
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
    """Try to take a lock at the same time as all ranks, and hold it until all have tried."""
    try:
        with held_lock(path):
            barrier()
            return True
    except Busy:
        barrier()
        return False


def _until(check: Callable[[], bool]) -> float:
    """Wait until the check is true; returns the seconds waited. Raises TimeoutError."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE_S:
        with suppress(FileNotFoundError):
            if check():
                return time.monotonic() - started
        time.sleep(0.01)
    raise TimeoutError(f"another rank's file did not appear within {PATIENCE_S:.0f} s")


def _scratch() -> Finding:
    place = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    with tempfile.NamedTemporaryFile(dir=place) as file:
        file.write(b"x")
    free = shutil.disk_usage(place).free / 1e9
    return Finding(f"{place}: {free:.0f} GB free", free >= SCRATCH_GB)


if __name__ == "__main__":
    log_to_stderr()
    run_checks(Path(sys.argv[1]), cpus=int(sys.argv[2]), gpus=int(sys.argv[3]))
