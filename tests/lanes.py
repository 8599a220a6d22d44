"""In which order files of tests are run, and which tests take longer than their folder's should.

`make test` has three processes share two cores. Each takes a file and runs it to its end, so that
what a file's tests share is made once; those that take longest come first, or one process would
still be busy with them when the others are done.
"""

import re
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FIRST = ("slurm/test_faults.py", "slurm/test_array.py", "ways/", "slurm/", "harness/cluster/")
FAR_OVER = 2.0
"""A test is told when it took so many times what its folder allows."""
SHOWN = 20


def budgets() -> dict[str, float]:
    """Return the seconds that one test may take, by folder, as README.md has them."""
    rows = re.findall(r"^\| `([\w/]*)` \|.*\| (\d+) \|$", (HERE / "README.md").read_text("utf-8"),
                      re.MULTILINE)
    return {folder: float(seconds) for folder, seconds in rows}


# --- pytest calls these, by way of conftest.py ---


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that take longest."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(HERE).as_posix()
        return next((n for n, begin in enumerate(FIRST) if path.startswith(begin)), len(FIRST))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which tests took far longer than their folder allows; fixtures are not counted."""
    allowed, found = budgets(), []
    for report in reports(terminalreporter):
        folder = report.nodeid.partition("::")[0].rpartition("/")[0].removeprefix("tests")
        limit = allowed.get(folder.strip("/"))
        if report.when == "call" and limit and report.duration > FAR_OVER * limit:
            words = f"{report.nodeid}: {report.duration:.0f} s, its folder allows {limit:.0f} s"
            found.append((report.duration, words))
    if found:
        terminalreporter.section("longer than tests/README.md allows")
        for _, line in sorted(found, reverse=True)[:SHOWN]:
            terminalreporter.write_line(line)


def reports(terminalreporter: Any) -> list[pytest.TestReport]:
    """Return what was reported of all tests, by whichever process."""
    every = [one for some in terminalreporter.stats.values() for one in some]
    return [one for one in every if isinstance(one, pytest.TestReport)]


def told(terminalreporter: Any, name: str) -> list[Any]:
    """Return what tests have noted under a name (`item.user_properties`), in the order of time."""
    return [value for report in reports(terminalreporter) if report.when == "call"
            for key, value in report.user_properties if key == name]
