"""How pytest-xdist shares the tests out to processes, and in which order they run.

`make test` runs three processes on two cores. A process takes a lane and runs it to its end, so
that module fixtures are made once: a lane is a file, or all files that need the ranks of
conftest.py. The longest files come first, so that all processes end at about the same time.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FIRST = (
    "slurm/test_faults.py", "slurm/test_array.py", "end_to_end/", "slurm/test_ray.py",
    "harness/cluster/test_searching.py", "harness/cluster/ray/", "slurm/test_places.py",
    "harness/cluster/", "slurm/", "launch/", "gpu/test_equal", "svll/reports/", "svll/test_",
    "test_documents.py",
)
"""The longest, in turns those that wait (for SLURM) and those that compute."""
SLOW = (
    "slurm/", "end_to_end/", "gpu/test_equal_runs.py", "gpu/test_two_ranks.py",
    "harness/cluster/local/test_worker.py",
    "harness/cluster/test_pages.py", "harness/cluster/ray/test_external.py",
    "harness/cluster/ray/test_watched_run.py", "harness/cluster/test_searching.py",
    "harness/cluster/test_snapshots.py", "launch/test_planted_code.py",
    "svll/models/weights/test_onnx_export.py", "svll/reports/test_report.py",
    "svll/reuse/test_shared_stage1.py", "svll/test_takeovers.py", "svll/test_variants.py",
    "svll/test_world_size.py",
)
"""Files that `make test-fast` leaves out, besides tests marked as slow."""


@cache
def lane(file: str) -> str:
    """Return the lane of a test file, a path below the root; ranks take seconds to start."""
    text = (HERE.parent / file).read_text("utf-8")
    return "ranks" if re.search(r"\b(one_rank|two_ranks)\b", text) else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, and mark the slow ones."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(HERE).as_posix()
        if path.startswith(SLOW):
            item.add_marker("slow")
        return next((n for n, begin in enumerate(FIRST) if path.startswith(begin)), len(FIRST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler of lanes. xdist's own `loadgroup` has no effect under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return lane(nodeid.partition("::")[0])

    return Lanes(config, log)
