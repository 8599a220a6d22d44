"""What a run was computed with: the machine, the packages, the code; for whoever compares runs."""

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.base.files import read_json, write_json
from harness.base.machine import usable_cores

PACKAGES = (
    "torch", "torchvision", "deepspeed", "open_clip_torch", "nvidia-dali-cuda130", "numpy", "numba",
    "h5py", "ray", "submitit", "optuna",
)
"""Whose versions are told."""
CODE = Path(__file__).parents[2]
"""Where this project's packages are that are run."""
GPUS = Path("/proc/driver/nvidia/gpus")
GIT_LIMIT_S = 10.0


def environment(code: Path) -> dict[str, Any]:
    """Return what this process computes with; `code` is the folder its packages come from."""
    return {
        "python": platform.python_version(), "system": platform.platform(),
        "host": platform.node(), "processor": _processor(),
        "cores": len(usable_cores()), "gpus": _gpus(), "packages": _versions(),
        "code": str(code), "git": git_state(code),
    }


def arithmetic(code: Path, packages: Sequence[str]) -> list[str]:
    """Return what the last digits of a result depend on besides its configuration.

    That is the code of some packages in a folder, torch, and what it computes on.
    """
    return [_digest(code, packages), metadata.version("torch"), _processor(), *_gpus()]


def _digest(code: Path, packages: Sequence[str]) -> str:
    """Return a hash of the packages' Python files; beside them may lie gigabytes of others."""
    whole = hashlib.sha256()
    for file in sorted(file for package in packages for file in (code / package).rglob("*.py")):
        whole.update(f"{file.relative_to(code)} {len(content := file.read_bytes())}\n".encode())
        whole.update(content)
    return whole.hexdigest()


def git_state(code: Path) -> dict[str, Any] | None:
    """Return the commit of a working tree and whether its files differ from it.

    New files that git does not know are not looked at. None where `code` is no working tree of its
    own, as packages that were installed into somebody's folder. Of code that was frozen for a
    sweep: as it was told then, see `note_git_state`.
    """
    with suppress(FileNotFoundError, ValueError):
        return dict(read_json(_note(code)))
    top, commit = _git(code, "rev-parse", "--show-toplevel"), _git(code, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != code.resolve():
        return None
    return {"commit": commit, "changed": bool(_git(code, "status", "--porcelain", "-uno"))}


def note_git_state(frozen: Path, tree: Path) -> None:
    """Note beside frozen code what the working tree was that it was copied from."""
    if (state := git_state(tree)) is not None:
        write_json(_note(frozen), state)


def _note(frozen: Path) -> Path:
    return frozen.with_name(f"{frozen.name}.git.json")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words], capture_output=True,
            text=True, timeout=GIT_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):  # not installed, or a file system that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _gpus() -> list[str]:
    """Return the node's GPUs as the driver knows them; torch would take seconds to be asked."""
    found = []
    for file in sorted(GPUS.glob("*/information")):
        with suppress(OSError):
            lines = file.read_text(encoding="utf-8").splitlines()
            found += [
                line.partition(":")[2].strip() for line in lines if line.startswith("Model:")
            ]
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
