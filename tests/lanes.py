"""In which order the files of tests are run.

`make test` has three processes share two cores. Each takes a file and runs it to its end, so that
what a file's tests share is made once; those that take longest come first, or one process would
still be busy with them when the others are done.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
FIRST = ("slurm/test_faults.py", "slurm/test_array.py", "ways/", "slurm/", "harness/cluster/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that take longest."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(HERE).as_posix()
        return next((n for n, begin in enumerate(FIRST) if path.startswith(begin)), len(FIRST))

    items.sort(key=place)
