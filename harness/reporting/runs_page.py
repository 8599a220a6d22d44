"""Tables of a page on runs: their state and results, their differing settings, damaged files."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.mappings import leaves, numeric_leaves
from harness.config.yaml_files import has_keys, read_yaml
from harness.reporting import page
from harness.reporting.curves import LabelledRun
from harness.reporting.page import Html
from harness.runs.run import Run, state_of
from harness.runs.takeovers import changes

FILES = ("log.txt", "config.yaml", "metrics.jsonl", "result.json")  # what a run's row links to
UNKNOWN = "?"


def read_or(read: Callable[[], Any], otherwise: Any) -> Any:
    """Return what `read` returns, or `otherwise` when a file is missing or damaged."""
    with suppress(UserError, ValueError, OSError, AttributeError):
        return read()
    return otherwise


def config_of(run: Run) -> dict[str, Any]:
    """Return a run's configuration by dotted key, whatever version wrote it; {} for none."""
    return read_or(lambda: leaves(read_yaml(run.config_file)[0]), {})


def environment_of(run: Run) -> dict[str, Any]:
    """Return a run's environment by dotted key; {} when it is not recorded."""
    return read_or(lambda: leaves(_environment(run)), {})


def _environment(run: Run) -> dict[str, Any]:
    try:
        return dict(read_json(run.environment_file))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{run.environment_file}: cannot be read: {error}") from None


class Facts(NamedTuple):
    """What the files of a run say, each read once."""

    label: str
    run: Run
    state: str
    status: Mapping[str, Any]
    result: Mapping[str, Any]
    faults: Sequence[str]
    """Its damaged files."""


def facts_of(one: LabelledRun) -> Facts:
    """Read the files of a run; empty is what is missing or damaged."""
    run, faults = one.run, []
    if not read_or(partial(has_keys, run.config_file), False):
        faults.append(f"{run.config_file.name} is missing or cannot be read")
    found: list[Any] = []
    for read in (run.status, run.result, partial(changes, run), partial(_environment, run)):
        try:
            found.append(read())
        except UserError as error:
            found.append(None)
            faults.append(str(error))
    return Facts(one.label, run, state_of(run), found[0] or {}, found[1] or {}, faults)


def runs_table(runs: Sequence[Facts], columns: Mapping[str, str], folder: Path) -> Html:
    """Return a row per run; columns: title and result key of numbers; folder: the page's."""
    rows = []
    for label, run, state, status, result, _ in runs:
        numeric = numeric_leaves(result)
        seconds, *numbers = (numeric.get(key) for key in ("seconds", *columns.values()))
        files = [file for name in FILES if (file := run.folder / name).exists()]
        links = [page.link(os.path.relpath(file, folder), file.stem) for file in files]
        # counted, not parsed: the logs of a thousand runs would take a second
        epochs = read_or(run.metrics_file.read_bytes, b"").count(b'"kind": "epoch"')
        listed = page.join(*(part for link in links for part in (link, " ")))
        rows.append([label, page.element("span", listed, class_="files"), state,
                     *(None if value is None else f"{value:.4f}" for value in numbers),
                     epochs, seconds and round(seconds / 60, 1), status.get("attempts"),
                     status.get("host")])
    return page.runs_table(
        ["run", "files", "state", *columns, "epochs", "minutes (last attempt)", "attempts", "host"],
        rows, [[one.run.signature] for one in runs],
    )


def incomplete(runs: Sequence[Facts]) -> list[str]:
    """Return the state and error of each run that is not complete, and each damaged file."""
    lines = []
    for one in runs:
        why = one.status.get("error") or one.status.get("reason")
        if one.state != "complete":
            lines.append(f"{one.label}: {one.state}{f': {why}' if why else ''}")
        lines += [f"{one.label}: {fault}" for fault in one.faults]
    return lines


def comparison(
    runs: Sequence[LabelledRun | Facts], sides: Sequence[Mapping[str, Any]], subject: str
) -> Html:
    """Return a table of the keys in which runs differ; subject: such as `configuration`."""
    known = dict.fromkeys(key for side in sides for key in side)
    values = {key: [side.get(key, UNKNOWN) for side in sides] for key in known}
    differing = {key: row for key, row in values.items() if any(v != row[0] for v in row)}
    if not differing:
        return page.element("p", f"The {subject} is the same for all.")
    rows = [[key, *("none" if value is None else str(value) for value in row)]
            for key, row in differing.items()]
    line = f"{len(rows)} keys of the {subject} differ."
    if len(sides) == 2:
        line = f"The first differing key is {rows[0][0]}: {rows[0][1]} against {rows[0][2]}."
    marked = [[False, *(value != row[0] for value in row)] for row in differing.values()]
    columns = ["key", *(one.label for one in runs)]
    return page.join(page.element("p", line), page.table(columns, rows, marked=marked))
