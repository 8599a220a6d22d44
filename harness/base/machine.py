"""What this process may use of its machine: cores and GPUs, found without importing torch."""

import functools
import logging
import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

DEVICES = Path("/dev")
ANSWER_LIMIT_S = 30.0
PERIOD_US = 100_000
"""Of version 1 of control groups: in how much time their quota may be used."""


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use.

    A control group's quota (a container's) limits how many they are, not which.
    """
    cores = sorted(os.sched_getaffinity(0))
    for text in cgroup_texts("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = text.partition(" ")
        if quota.isdigit():
            cores = cores[: max(1, int(quota) // int(period or PERIOD_US))]
    return cores


def cgroup_texts(controller: str, name: str, name_in_version_1: str) -> list[str]:
    """Return what a file says in this process' control group and in those around it."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root, file = (
            (f"/sys/fs/cgroup/{controller}", name_in_version_1) if controllers
            else ("/sys/fs/cgroup", name)
        )
        group = Path(root + path)
        for place in (group, *group.parents):
            with suppress(OSError):
                found.append((place / file).read_text().strip())
    return found


def has_gpu() -> bool:
    """Return whether this process may use a GPU; quick, and does not ask the driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return bool(_device_files()) or (DEVICES / "dxg").exists()  # dxg: Windows' Linux


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by names for CUDA_VISIBLE_DEVICES.

    That variable limits them; numbers in it count as nvidia-smi counts. The names are UUIDs where
    nvidia-smi is installed, so that every process calls a GPU by the same name.
    """
    there = machine_gpus()
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limited is None:
        return there
    found: list[str] = []
    for word in map(str.strip, limited.split(",")):
        if word.isdigit():
            named = there[int(word) : int(word) + 1]
        else:
            named = [name for name in there if word and name.startswith(word)]
        if not named:  # CUDA ignores what follows a name that it does not know
            break
        found += named[:1]
    return list(dict.fromkeys(found))


def machine_gpus() -> list[str]:
    """Return all GPUs of this machine, or container; of one that is split (MIG), its parts."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return [str(number) for number in range(len(_device_files()))]
    return list(_listed(command))


@functools.cache  # it may take seconds
def _listed(command: str) -> tuple[str, ...]:
    try:
        done = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=ANSWER_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _tell_failure(str(error))
        return ()
    if done.returncode != 0:
        _tell_failure((done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2])
    found: list[str] = []
    for line in done.stdout.splitlines():
        uuid = re.search(r"\(UUID: ([\w.\-/]+)\)", line)
        if uuid is None:
            continue
        if line[:1].isspace() and found and found[-1].startswith("GPU-"):
            found.pop()  # a split GPU is used by its parts only
        found.append(uuid[1])
    return tuple(found)


def _tell_failure(last_line: str) -> None:
    if _device_files():
        log.warning("nvidia-smi fails, so this machine's GPUs are not used: %s", last_line)


def _device_files() -> list[Path]:
    return list(DEVICES.glob("nvidia[0-9]*"))
