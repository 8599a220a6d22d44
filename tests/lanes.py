"""How tests share two cores, and which of them take longer than their folder's tests should.

`make test` runs several processes. A lane is what one of them runs from beginning to end: a file,
as a rule, so that fixtures of modules and of the one SLURM are made once. Long lanes begin first.
"""

import re
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LANES = {
    # each of the first two has a SLURM of its own
    "slurm/test_faults.py": "slurm 1",
    "slurm/": "slurm 2",
}
"""Lanes of more than a file, by the beginning of the path; the longest first."""
FAR_OVER = 2.0
"""A test is told when it took so many times what its folder allows."""
SHOWN = 20


def lane(item: pytest.Item) -> str:
    """Return which tests an item must be run in one process with."""
    path = item.path.relative_to(HERE).as_posix()
    if path.startswith("ways/") and isinstance(item, pytest.Function):
        return f"ways {item.callspec.params['layout']}"
    return next((name for begin, name in LANES.items() if path.startswith(begin)), path)


def budgets() -> dict[str, float]:
    """Return the seconds that one test may take, by folder, as README.md has them."""
    rows = re.findall(r"^\| `([\w/]*)` \|.*\| (\d+) \|$", (HERE / "README.md").read_text("utf-8"),
                      re.MULTILINE)
    return {folder: float(seconds) for folder, seconds in rows}


# --- pytest calls these, by way of conftest.py ---


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-xdist the lanes, and put those first that take longest."""
    order = list(LANES.values())
    for item in items:
        item.add_marker(pytest.mark.xdist_group(lane(item)))
    items.sort(key=lambda item: order.index(lane(item)) if lane(item) in order else len(order))


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
