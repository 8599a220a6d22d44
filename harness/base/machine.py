"""The cores and GPUs that this process may use, found without importing torch."""

import ctypes
import functools
import importlib.util
import logging
import os
import pwd
import re
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

DEVICES = Path("/dev")
DRIVER = Path("/sys/module/nvidia/version")
MODELS = Path("/proc/driver/nvidia/gpus")
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


# --- GPUs ---


class Gpu(NamedTuple):
    """A GPU, or a part of a split one (MIG)."""

    name: str
    """For CUDA_VISIBLE_DEVICES."""
    model: str


def has_gpu() -> bool:
    """Return whether this process may use a GPU; fast, as it does not ask the driver."""
    if not _names_a_gpu(os.environ.get("CUDA_VISIBLE_DEVICES", "0")):
        return False
    return bool(_device_files()) or (DEVICES / "dxg").exists()  # dxg: WSL


def _names_a_gpu(visible: str) -> bool:
    """Return whether a value of CUDA_VISIBLE_DEVICES names any; -1 and SLURM's NoDevFiles do not,
    and CUDA ignores what follows them."""
    first = visible.partition(",")[0].strip()
    return first.isdigit() or first.startswith(("GPU-", "MIG-"))


def allotted_gpus() -> str:
    """Return the variable by which GPUs were given to this process, with its value; "" if none
    were. CUDA_VISIBLE_DEVICES decides where it is set, also when it names none."""
    visible, count = (os.environ.get(n) for n in ("CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE"))
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible}" if _names_a_gpu(visible) else ""
    return f"SLURM_GPUS_ON_NODE={count}" if count not in (None, "", "0") else ""


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, by names for CUDA_VISIBLE_DEVICES.

    That variable limits them, with numbers as nvidia-smi has them. The names are UUIDs if
    nvidia-smi is installed, and so the same in every process.
    """
    return [gpu.name for gpu in _visible()]


def visible_models() -> list[str]:
    """Return the models of the GPUs that this process may use, in the order of `visible_gpus`."""
    return [gpu.model for gpu in _visible()]


def _visible() -> list[Gpu]:
    installed = _installed()
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limited is None:
        return installed
    found: list[Gpu] = []
    for word in map(str.strip, limited.split(",")):
        if word.isdigit():
            named = installed[int(word) : int(word) + 1]
        else:
            named = [gpu for gpu in installed if word and gpu.name.startswith(word)]
        if not named:  # CUDA ignores everything after an unknown name
            break
        found += named[:1]
    return list(dict.fromkeys(found))


def machine_gpus() -> list[str]:
    """Return all GPUs of this machine or container; for a split one (MIG), its parts."""
    return [gpu.name for gpu in _installed()]


def _installed() -> list[Gpu]:
    command = shutil.which("nvidia-smi")
    if command is not None:
        return list(_listed(command))
    models = _driver_models()
    numbers = sorted(int(file.name.removeprefix("nvidia")) for file in _device_files())
    return [Gpu(str(place), models.get(number, "")) for place, number in enumerate(numbers)]


@functools.cache  # it may take seconds
def _listed(command: str) -> tuple[Gpu, ...]:
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
    found: list[Gpu] = []
    model = ""
    for line in output.splitlines():
        named = re.match(r"(?:GPU \d+: )?(.+?)(?:\s+Device\s+\d+:)? \(UUID: ([\w.\-/]+)\)", line)
        if named is None:
            continue
        is_part = line[:1].isspace()
        if not is_part:
            model = named[1]
        elif found and found[-1].name.startswith("GPU-"):
            found.pop()  # only the parts of a split GPU can be used
        found.append(Gpu(named[2], f"{model} {named[1].strip()}" if is_part else model))
    return tuple(found)


def _driver_models() -> dict[int, str]:
    """Return the models of the node's GPUs by the number of their device files."""
    models = {}
    for file in MODELS.glob("*/information"):
        with suppress(OSError, ValueError, KeyError):
            lines = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
            facts = {name: value.strip() for name, _, value in lines}
            models[int(facts["Device Minor"])] = facts["Model"]
    return models


def _device_files() -> list[Path]:
    return list(DEVICES.glob("nvidia[0-9]*"))


# --- torch and the driver ---


def cuda_fault() -> str:
    """Return why the installed torch cannot use GPUs here, with its CUDA and the driver; "" if
    they fit together. The driver is only asked for its versions."""
    built, runs = torch_cuda(), driver_cuda()
    if built is None:
        reason = "torch was built without CUDA"
    elif runs is None:
        reason = ("libcuda.so.1, the driver's library, is not found; in a container, start it with "
                  "its GPUs (docker --gpus all, apptainer --nv)")
    elif runs[0] < built[0]:  # within one major version, all go together
        reason = (f"the driver is too old for torch: update it, or install torch for CUDA "
                  f"{runs[0]}")
    else:
        return ""
    return f"{reason} ({cuda_versions()})"


def cuda_versions() -> str:
    """Return the versions of torch and of its CUDA, of the driver and of the CUDA that it runs."""
    parts = []
    with suppress(metadata.PackageNotFoundError):
        built = torch_cuda()
        cuda = f"for CUDA {built[0]}.{built[1]}" if built else "without CUDA"
        parts.append(f"torch {metadata.version('torch')} {cuda}")
    try:
        driver = f"driver {DRIVER.read_text().strip()}"
    except OSError:
        driver = "driver of unknown version"
    runs = driver_cuda()
    parts.append(f"{driver}, up to CUDA {runs[0]}.{runs[1]}" if runs else "no driver")
    return "; ".join(parts)


def torch_cuda() -> tuple[int, int] | None:
    """Return the version of CUDA that the installed torch was built for, None without one."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    version = re.search(r"^cuda\b.*= '(\d+)\.(\d+)", text, re.M)
    return (int(version[1]), int(version[2])) if version else None


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest version of CUDA that the driver runs, None without a driver."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or not number.value else (number.value // 1000, number.value % 1000 // 10)
