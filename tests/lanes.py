"""How the files of tests are shared out to processes, and in which order they are run.

`make test` has three processes share two cores. Each takes a lane and runs it to its end, so that
what its tests share is made once: a file, or the files that need the same ranks. Those that take
longest come first, or one process would still be busy with them when the others are done.
"""

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FIRST = ("slurm/test_faults.py", "slurm/test_array.py", "ways/", "slurm/", "harness/cluster/")
RANKS = (
    "harness/test_checkpoints.py", "harness/test_engine.py", "harness/test_loop.py",
    "harness/test_pipeline.py", "harness/test_writers.py", "svll/evaluation/test_sharing.py",
    "svll/models/test_resnet.py", "svll/test_encode.py", "svll/test_stage1.py",
    "svll/test_world_size.py",
)
"""Files whose tests are carried out by the ranks of conftest.py, which take seconds to start."""

SLOW = (
    "slurm/", "ways/", "harness/cluster/test_local.py", "harness/cluster/test_pages.py",
    "harness/cluster/test_ray_guest.py", "harness/cluster/test_ray_trial.py",
    "harness/cluster/test_searching.py", "harness/cluster/test_snapshots.py",
    "launch/test_planted_code.py", "svll/models/test_onnx_export.py", "svll/test_reporting.py",
    "svll/test_shared_prompts.py", "svll/test_takeovers.py", "svll/test_variants.py",
    "svll/test_world_size.py",
)
"""Files that `make test-fast` leaves out, besides tests that are marked as slow."""


def lane(nodeid: str) -> str:
    """Return what a test must be run in one process with."""
    file = nodeid.partition("::")[0]
    return "ranks" if file.removeprefix("tests/") in RANKS else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that take longest, and mark those that are slow."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(HERE).as_posix()
        if path.startswith(SLOW):
            item.add_marker("slow")
        return next((n for n, begin in enumerate(FIRST) if path.startswith(begin)), len(FIRST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have pytest-xdist give each of its processes lane after lane."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return lane(nodeid)

    return Lanes(config, log)
