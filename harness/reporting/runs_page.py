"""Runs side by side in a page: how they stand, where they differ, what they were computed with."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.mappings import leaves, numeric_leaves
from harness.config.yaml_files import read_yaml
from harness.reporting import page
from harness.reporting.curves import Shown
from harness.reporting.page import Html
from harness.runs.run import Run, state_of

FILES = ("log.txt", "config.yaml", "metrics.jsonl", "result.json")
"""What a run's row links to."""
UNKNOWN = "?"


def _status(run: Run) -> dict[str, Any]:
    with suppress(UserError):
        return run.status()
    return {}


def _result(run: Run) -> dict[str, float]:
    with suppress(UserError, ValueError):
        return numeric_leaves(run.result() or {})
    return {}


def _epochs(run: Run) -> int:
    """Count the epochs that a run has logged, without reading all that its lines say."""
    with suppress(OSError):
        return run.metrics_file.read_bytes().count(b'"kind": "epoch"')
    return 0


def runs_table(shown: Sequence[Shown], numbers: Mapping[str, str], folder: Path) -> Html:
    """Return one row for each run: state, where and how often it ran, numbers, files.

    numbers: of the result, by title, as dotted keys. folder: where the page will be.
    """
    columns = [
        "run", "state", "host", "attempts", "epochs", "minutes (last attempt)", *numbers, "files"
    ]
    rows = []
    for one in shown:
        status, result = _status(one.run), _result(one.run)
        seconds = result.get("seconds")
        rows.append([
            one.label, state_of(one.run), status.get("host"), status.get("attempts"),
            _epochs(one.run),
            None if seconds is None else round(seconds / 60, 1),
            *(_fraction(result.get(key)) for key in numbers.values()), _links(one.run, folder),
        ])
    return page.table(columns, rows)


def _fraction(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _links(run: Run, folder: Path) -> Html:
    found = [run.folder / name for name in FILES if (run.folder / name).exists()]
    return page.join(*(
        part for file in found
        for part in (page.link(os.path.relpath(file, folder), file.name), " ")
    ))


def lacking(shown: Sequence[Shown]) -> list[str]:
    """Say of each run that is not complete how it stands, and of each what cannot be read."""
    told = []
    for one in shown:
        status, state = _status(one.run), state_of(one.run)
        why = status.get("error") or status.get("reason") or ""
        if state != "complete":
            told.append(f"{one.label}: {state}{f': {why}' if why else ''}")
        told += [f"{one.label}: {fault}" for fault in _faults(one.run)]
    return told


def _faults(run: Run) -> Iterator[str]:
    """Say which files of a run are there and cannot be read, or must be there and are not."""
    if not config_of(run):
        yield f"{run.config_file.name} is missing or cannot be read"
    for read in (run.status, run.result):
        try:
            read()
        except (UserError, ValueError) as error:
            yield str(error)


def config_of(run: Run) -> dict[str, Any]:
    """Return a run's configuration by dotted key, whatever version wrote it; {} for none."""
    try:
        return leaves(read_yaml(run.config_file)[0])
    except UserError:
        return {}


def environment_of(run: Run) -> dict[str, Any]:
    """Return what a run was computed with by dotted key; {} of a run that does not tell."""
    try:
        return leaves(read_json(run.environment_file))
    except (OSError, ValueError, AttributeError):
        return {}


def differing(sides: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys on which not all mappings agree, in the order of the first."""
    keys = dict.fromkeys(key for side in sides for key in side)
    return [
        key for key in keys if any(side.get(key, UNKNOWN) != sides[0].get(key, UNKNOWN)
                                   for side in sides)
    ]


def comparison(shown: Sequence[Shown], sides: Sequence[Mapping[str, Any]], what: str) -> Html:
    """Return a table of the keys on which runs differ; what differs from the first is marked.

    what: of which the keys are, for the line above, such as `configuration`.
    """
    keys = differing(sides)
    if not keys:
        return page.element("p", f"The {what} is the same for all.")
    first = f"{keys[0]}: {' against '.join(_cell(side, keys[0]) for side in sides[:2])}"
    line = f"The first differing key is {first}." if len(sides) == 2 else (
        f"{len(keys)} keys of the {what} differ."
    )
    rows = [[key, *(_cell(side, key) for side in sides)] for key in keys]
    marked = [
        [False, *(side.get(key, UNKNOWN) != sides[0].get(key, UNKNOWN) for side in sides)]
        for key in keys
    ]
    columns = ["key", *(one.label for one in shown)]
    return page.join(page.element("p", line), page.table(columns, rows, marked=marked))


def _cell(side: Mapping[str, Any], key: str) -> str:
    value = side.get(key, UNKNOWN)
    return "none" if value is None else str(value)
