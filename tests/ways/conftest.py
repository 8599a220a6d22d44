"""The matrix of layouts and steps, printed at the end where output is shown (`-s`)."""

from typing import Any

import pytest

from tests.lanes import reports

Cells = dict[tuple[str, str], tuple[str, float]]
"""How a step ended, and its seconds, by layout and step."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    step = getattr(getattr(item, "function", None), "step", None)
    if step is not None and isinstance(item, pytest.Function):
        item.user_properties.append(("cell", (item.callspec.params["layout"], step)))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    cells: Cells = {}
    for report in reports(terminalreporter):
        for place in [tuple(value) for name, value in report.user_properties if name == "cell"]:
            ended, seconds = cells.get(place, ("ok", 0.0))
            cells[place] = "FAILED" if report.failed else ended, seconds + report.duration
    if cells and config.getoption("capture") == "no":
        for line in table(cells):
            terminalreporter.write_line(line)


def table(cells: Cells) -> list[str]:
    """Return the lines of the matrix: seconds where a step went well, with sums."""
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
