"""The summary of a test run: the fault table, the matrix of layouts, and tests that took too long.

Tests add rows to `item.user_properties`, which pytest-xdist sends to the main process.
"""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).with_name("README.md")
FAR_OVER = 2.0
"""A test is listed when it took more than this many times its folder's budget."""
SHOWN = 20


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the parts that are not empty; the matrix only with `-s`."""
    reports = [one for some in terminalreporter.stats.values() for one in some
               if isinstance(one, pytest.TestReport)]
    parts = {"faults": fault_table(reports), "over the budget in tests/README.md": overdue(reports)}
    if config.getoption("capture") == "no":
        parts["ways"] = matrix(reports)
    for title, lines in parts.items():
        if lines:
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(lines))


def noted(report: pytest.TestReport, name: str) -> list[tuple[str, ...]]:
    """Return the properties of a test that have this name."""
    return [tuple(value) for key, value in report.user_properties if key == name]


def fault_table(reports: list[pytest.TestReport]) -> list[str]:
    """Return the lines of the fault table, empty when no test added a row."""
    rows = [row for report in reports if report.when == "call" for row in noted(report, "fault")]
    head = ("fault", "the trial goes on", "steps done twice", "final numbers")
    table = [head, ("---",) * len(head), *rows] if rows else []
    return [f"| {' | '.join(row)} |" for row in table]


def budgets() -> dict[str, float]:
    """Return the budget of one test in seconds, by folder, from the table in README.md."""
    rows = re.findall(r"^\| `(\S+)` \|.* (\d+) \|$", README.read_text("utf-8"), re.MULTILINE)
    return {folder: float(seconds) for folder, seconds in rows}


def overdue(reports: list[pytest.TestReport]) -> list[str]:
    """Return the tests that took far longer than their folder's budget, without fixtures."""
    allowed, found = budgets(), []
    for report in reports:
        folders = map(str, Path(report.nodeid.partition("::")[0]).parents)
        limit = next((allowed[folder] for folder in folders if folder in allowed), float("inf"))
        if report.when == "call" and report.duration > FAR_OVER * limit:
            words = f"{report.duration:.0f} s, budget {limit:.0f} s: {report.nodeid}"
            found.append((report.duration, words))
    return [words for _, words in sorted(found, reverse=True)[:SHOWN]]


def matrix(reports: list[pytest.TestReport]) -> list[str]:
    """Return the lines of the matrix of layouts: seconds where a step went well, with sums."""
    cells: dict[tuple[str, ...], tuple[str, float]] = {}
    for report in reports:
        for place in noted(report, "cell"):
            ended, seconds = cells.get(place, ("ok", 0.0))
            cells[place] = "FAILED" if report.failed else ended, seconds + report.duration
    if not cells:
        return []
    names, steps = (list(dict.fromkeys(place[side] for place in cells)) for side in (0, 1))
    rows = [["", *steps, "seconds"]]
    for name in names:
        found = [cells.get((name, step)) for step in steps]
        texts = ["" if one is None else f"{one[0]} {one[1]:.1f}" for one in found]
        rows.append([name, *texts, f"{sum(one[1] for one in found if one):.1f}"])
    sums = [sum(one[1] for (_, at), one in cells.items() if at == step) for step in steps]
    rows.append(["seconds", *(f"{value:.1f}" for value in sums), f"{sum(sums):.1f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
