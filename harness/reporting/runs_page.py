"""Tables of a page on runs: their state and results, their differing settings, damaged files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.mappings import flatten, leaves
from harness.config.yaml_files import read_yaml
from harness.reporting import page
from harness.reporting.curves import LabelledRun
from harness.reporting.page import Html
from harness.runs.run import Run, epoch_lines, state_of

FILES = ("log.txt", "config.yaml", "metrics.jsonl", "result.json")  # what a run's row links to
UNKNOWN = "?"


def result_of(run: Run) -> dict[str, Any]:
    """Return a run's result; {} when there is none, or none that can be read."""
    with suppress(UserError, ValueError):
        return run.result() or {}
    return {}


def _status_of(run: Run) -> dict[str, Any]:
    with suppress(UserError):
        return run.status()
    return {}


def _epochs_of(run: Run) -> int:
    with suppress(UserError):
        return len(epoch_lines(run))
    return 0


def runs_table(runs: Sequence[LabelledRun], columns: Mapping[str, str], folder: Path) -> Html:
    """Return a row for each run: state, host, attempts, numbers, links to files.

    columns: title and dotted key in the result of each number. folder: where the page will be.
    """
    rows = []
    for label, run in runs:
        status, result = _status_of(run), flatten(result_of(run))
        numbers = [result.get(key) for key in ("seconds", *columns.values())]
        rows.append([
            label, state_of(run), status.get("host"), status.get("attempts"), _epochs_of(run),
            numbers[0] and round(numbers[0] / 60, 1),
            *(None if value is None else f"{value:.4f}" for value in numbers[1:]),
            _links(run, folder),
        ])
    return page.table(
        ["run", "state", "host", "attempts", "epochs", "minutes (last attempt)", *columns, "files"],
        rows,
    )


def _links(run: Run, folder: Path) -> Html:
    files = [run.folder / name for name in FILES if (run.folder / name).exists()]
    links = [page.link(os.path.relpath(file, folder), file.name) for file in files]
    return page.join(*(part for link in links for part in (link, " ")))


def incomplete(runs: Sequence[LabelledRun]) -> list[str]:
    """Return the state and error of each run that is not complete, and each damaged file."""
    lines = []
    for label, run in runs:
        status, state = _status_of(run), state_of(run)
        why = status.get("error") or status.get("reason")
        if state != "complete":
            lines.append(f"{label}: {state}{f': {why}' if why else ''}")
        lines += [f"{label}: {fault}" for fault in _faults(run)]
    return lines


def _faults(run: Run) -> Iterator[str]:
    if not config_of(run):
        yield f"{run.config_file.name} is missing or cannot be read"
    readers: tuple[Callable[[], object], ...] = run.status, run.result
    for read in readers:
        try:
            read()
        except (UserError, ValueError) as error:
            yield str(error)


def config_of(run: Run) -> dict[str, Any]:
    """Return a run's configuration by dotted key, whatever version wrote it; {} for none."""
    with suppress(UserError):
        return leaves(read_yaml(run.config_file)[0])
    return {}


def environment_of(run: Run) -> dict[str, Any]:
    """Return a run's environment by dotted key; {} when it is not recorded."""
    with suppress(OSError, ValueError, AttributeError):
        return leaves(read_json(run.environment_file))
    return {}


def comparison(
    runs: Sequence[LabelledRun], sides: Sequence[Mapping[str, Any]], subject: str
) -> Html:
    """Return a table of the keys in which runs differ; differences from the first are marked.

    subject: what the keys belong to, such as `configuration`.
    """
    known = dict.fromkeys(key for side in sides for key in side)
    values = {key: [side.get(key, UNKNOWN) for side in sides] for key in known}
    differing = {key: row for key, row in values.items() if any(v != row[0] for v in row)}
    if not differing:
        return page.element("p", f"The {subject} is the same for all.")
    rows = [
        [key, *("none" if value is None else str(value) for value in row)]
        for key, row in differing.items()
    ]
    line = f"{len(rows)} keys of the {subject} differ."
    if len(sides) == 2:
        line = f"The first differing key is {rows[0][0]}: {rows[0][1]} against {rows[0][2]}."
    marked = [[False, *(value != row[0] for value in row)] for row in differing.values()]
    columns = ["key", *(one.label for one in runs)]
    return page.join(page.element("p", line), page.table(columns, rows, marked=marked))
