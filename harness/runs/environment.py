"""The machine, packages and code of a run, so that runs can be compared."""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.base.files import read_json, write_json
from harness.base.machine import usable_cores, visible_models

PACKAGES = ("torch", "torchvision", "deepspeed", "open_clip_torch", "nvidia-dali-cuda130", "numpy",
            "numba", "h5py", "ray", "submitit", "optuna")
"""Packages whose versions are recorded."""
CODE = Path(__file__).parents[2]
"""The folder of this project's imported packages."""
GIT_LIMIT_S = 10.0


def environment(code: Path) -> dict[str, Any]:
    """Return the machine, packages and code of this process; `code`: the folder of its packages."""
    versions = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"python": platform.python_version(), "system": platform.platform(),
            "host": platform.node(), "processor": _processor(),
            "cores": len(usable_cores()), "gpus": visible_models(), "packages": versions,
            "code": str(code), "git": git_state(code)}


def arithmetic(code: Path, packages: Sequence[str]) -> list[str]:
    """Return what the last digits of a result depend on, besides its configuration.

    That is a hash of the packages' Python files in the folder `code`, torch's version, the
    processor, and the models of the GPUs that this process may use. The other GPUs of its node, and
    how many there are, do not matter.
    """
    whole = hashlib.sha256()
    for file in sorted(file for package in packages for file in (code / package).rglob("*.py")):
        whole.update(f"{file.relative_to(code)} {len(content := file.read_bytes())}\n".encode())
        whole.update(content)
    return [whole.hexdigest(), metadata.version("torch"), _processor(),
            *sorted({*visible_models()})]


def git_state(code: Path) -> dict[str, Any] | None:
    """Return the commit of a working tree and whether tracked files differ from it.

    None if `code` is not the top of a working tree, as with installed packages. For code that was
    frozen for a sweep: the state when it was frozen (see `note_git_state`).
    """
    with suppress(FileNotFoundError, ValueError):
        return dict(read_json(code.with_name(f"{code.name}.git.json")))
    top, commit = _git(code, "rev-parse", "--show-toplevel"), _git(code, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != code.resolve():
        return None
    return {"commit": commit, "changed": bool(_git(code, "status", "--porcelain", "-uno"))}


def note_git_state(frozen: Path, tree: Path) -> None:
    """Write the git state of the original working tree beside frozen code."""
    if (state := git_state(tree)) is not None:
        write_json(frozen.with_name(f"{frozen.name}.git.json"), state)


def _git(folder: Path, *words: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):  # not installed, or a file system that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    return next(iter(_values(Path("/proc/cpuinfo"), "model name")), platform.processor())


def _values(file: Path, name: str) -> list[str]:
    """Return the values of the lines `name: value`; none of a file that cannot be read."""
    with suppress(OSError):
        lines = file.read_text(encoding="utf-8").splitlines()
        return [line.partition(":")[2].strip() for line in lines if line.startswith(name)]
    return []
