"""The cores and GPUs that this process may use, found without importing torch."""

import functools
import logging
import os
import pwd
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

DEVICES = Path("/dev")
ANSWER_LIMIT_S = 30.0
PERIOD_US = 100_000
"""Default period of a quota in control groups version 1."""


def user_name(uid: int | None = None) -> str:
    """Return the name of a user (None: of this process), or the number where it has none. Unlike
    `getpass.getuser` it does not believe LOGNAME."""
    number = os.getuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may use. The quota of a control group (of a
    container) limits their count only."""
    cores = sorted(os.sched_getaffinity(0))
    for text in cgroup_texts("cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, _, period = text.partition(" ")
        if quota.isdigit():
            cores = cores[: max(1, int(quota) // int(period or PERIOD_US))]
    return cores


def cgroup_texts(controller: str, name: str, name_in_version_1: str) -> list[str]:
    """Return the contents of a file in this process's control group and in its parents."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root, file = "/sys/fs/cgroup", name
        if controllers:  # version 1
            root, file = f"{root}/{controller}", name_in_version_1
        group = Path(root + path)
        for place in (group, *group.parents):
            with suppress(OSError):
                found.append((place / file).read_text().strip())
    return found


def has_gpu() -> bool:
    """Return whether this process may use a GPU; fast, as it does not ask the driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return bool(_device_files()) or (DEVICES / "dxg").exists()  # dxg: WSL


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by names for CUDA_VISIBLE_DEVICES.

    That variable limits them, with numbers as nvidia-smi has them. The names are UUIDs if
    nvidia-smi is installed, and so the same in every process.
    """
    installed = machine_gpus()
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limited is None:
        return installed
    found: list[str] = []
    for word in map(str.strip, limited.split(",")):
        if word.isdigit():
            named = installed[int(word) : int(word) + 1]
        else:
            named = [name for name in installed if word and name.startswith(word)]
        if not named:  # CUDA ignores everything after an unknown name
            break
        found += named[:1]
    return list(dict.fromkeys(found))


def machine_gpus() -> list[str]:
    """Return all GPUs of this machine or container; for a split one (MIG), its parts."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return [str(number) for number in range(len(_device_files()))]
    return list(_listed(command))


@functools.cache  # it may take seconds
def _listed(command: str) -> tuple[str, ...]:
    output = failure = ""
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True,
                              timeout=ANSWER_LIMIT_S)
        output = done.stdout
        if done.returncode != 0:
            failure = (done.stderr.strip() or output.strip()).rpartition("\n")[2] or "no message"
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure and _device_files():
        log.warning("nvidia-smi fails, so this machine's GPUs are not used: %s", failure)
    found: list[str] = []
    for line in output.splitlines():
        uuid = re.search(r"\(UUID: ([\w.\-/]+)\)", line)
        if uuid is None:
            continue
        if line[:1].isspace() and found and found[-1].startswith("GPU-"):
            found.pop()  # only the parts of a split GPU can be used
        found.append(uuid[1])
    return tuple(found)


def _device_files() -> list[Path]:
    return list(DEVICES.glob("nvidia[0-9]*"))
