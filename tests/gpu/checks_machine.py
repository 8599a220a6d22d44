"""The GPU and its driver, as torch and this project see them; and the tests marked `gpu`."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import torch

from harness.base.machine import cuda_versions, visible_gpus
from harness.runs.environment import CODE, environment
from harness.training import ranks
from tests.commands import ROOT
from tests.gpu.checks import Extent, Finding

TAKEN = 0.2
"""Share of a GPU's memory that others than torch may hold: a display, CUDA itself."""
LIMIT_S = 65
"""Of the tests, so that their last lines are reported within the part's time."""
MARK = re.compile(r"^\s*@pytest\.mark\.gpu\b|^pytestmark\b.*\bmark\.gpu\b", re.MULTILINE)


def the_driver(_: Extent) -> Iterator[Finding]:
    """Whether torch's wheel fits the GPU and its driver; versions."""
    major, minor = torch.cuda.get_device_capability()
    name, built = torch.cuda.get_device_name(), torch.cuda.get_arch_list()
    gigabytes = torch.cuda.get_device_properties(ranks.device()).total_memory / 1e9
    numbers = {
        "gpu": name, "count": torch.cuda.device_count(), "capability": f"{major}.{minor}",
        "gb": round(gigabytes, 1), "versions": cuda_versions(),
        "built_for": built, "bf16": ranks.has_fast_bf16(), "environment": environment(CODE),
    }
    fits = any(_runs_on(each, (major, minor)) for each in built)
    yield Finding(
        "torch is built for the GPU", fits,
        f"{name}, {gigabytes:.0f} GB; {numbers['versions']}",
        "" if fits else f"it has no code for {major}.{minor}, only {', '.join(built)}", numbers,
    )


def the_count(_: Extent) -> Iterator[Finding]:
    """Whether torch and the launcher, which does not ask torch, see as many GPUs."""
    ours, torchs = visible_gpus(), torch.cuda.device_count()
    yield Finding(
        "GPUs are counted alike", len(ours) == torchs, f"{torchs}: {', '.join(ours)}",
        "" if len(ours) == torchs else f"the launcher finds {len(ours)}",
    )


def the_free_memory(_: Extent) -> Iterator[Finding]:
    """Whether other processes use the GPU, which would spoil all times."""
    free, total = torch.cuda.mem_get_info()
    taken = 1 - (free + torch.cuda.memory_reserved()) / total
    yield Finding(
        "the GPU is not in use", taken <= TAKEN, f"{taken:.0%} of its memory is taken",
        "" if taken <= TAKEN else "other processes hold it; times will not mean much",
    )


def _runs_on(built: str, capability: tuple[int, int]) -> bool:
    """Return whether code for an architecture such as sm_80 or compute_90 runs on a GPU."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", built)
    if found is None:
        return False
    major, minor = int(found[2]), int(found[3])
    if found[1] == "compute":  # the driver compiles it
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]


def the_tests(extent: Extent) -> Iterator[Finding]:
    """Run the tests marked `gpu`."""
    wanted = _marked() if extent.tests is None else extent.tests
    name = "tests marked gpu"
    if not wanted:
        yield Finding(name, None, why="no test is marked so")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider",
               "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *wanted]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # they take a second
        )
    except subprocess.TimeoutExpired:
        yield Finding(name, False, why=f"stopped after {LIMIT_S} s: {' '.join(wanted)}")
        return
    print(done.stdout, done.stderr, file=sys.stderr)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    lost = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    ran = "passed" in last
    yield Finding(
        name, (done.returncode == 0) if ran or done.returncode else None, last.strip("= "),
        "; ".join(lost[:3]) or ("" if ran else f"none ran, exit status {done.returncode}"),
    )


def _marked() -> tuple[str, ...]:
    """Return the test files with tests marked `gpu`: collecting all takes half a minute."""
    return tuple(
        str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if MARK.search(file.read_text(encoding="utf-8"))
    )


CHECKS = {"machine": (the_driver, the_count, the_free_memory), "tests": (the_tests,)}
