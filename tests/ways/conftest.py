"""The matrix of layouts and steps, printed at the end where output is shown (`-s`)."""

from collections.abc import Iterator
from typing import Any

import pytest

Cells = dict[tuple[str, str], tuple[str, float]]
"""How a step ended, and its seconds, by layout and step."""
CELLS = pytest.StashKey[Cells]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CELLS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    step = getattr(getattr(item, "function", None), "step", None)
    if step is not None and isinstance(item, pytest.Function):
        cells, place = item.config.stash[CELLS], (item.callspec.params["layout"], step)
        ended, seconds = cells.get(place, ("ok", 0.0))
        if report.failed:
            ended = "FAILED"
        cells[place] = ended, seconds + report.duration
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    cells = config.stash[CELLS]
    if not cells or config.getoption("capture") != "no":
        return
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
