"""The tables of a sweep: trials.csv, trials.parquet, best.yaml."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.base.files import atomic_write, write_text
from harness.config.yaml_files import read_yaml, to_text
from harness.runs.takeovers import changed_settings
from harness.sweeps.outcomes import SweepResults

BEST = "best.yaml"


def write_best(
    results: SweepResults, *, without: Mapping[str, Any],
    absent: Mapping[str, Any] = MappingProxyType({}),
) -> Path | None:
    """Write the best point as a recipe; return the file, None when no trial is complete.

    without: values by dotted key that replace the run's (None: leave the key out), for keys that
    only a search needs. absent: values of keys that an earlier version's run lacks.
    """
    ranked = results.ranked()
    if not ranked:
        return None
    best = ranked[0]
    run = best.outcomes[0].run
    settings, _ = read_yaml(run.config_file)
    changed = {setting.key: setting.value for setting in changed_settings(run)}
    for key, value in {**absent, **changed, **without}.items():
        node, (*above, last) = settings, key.split(".")
        for part in above:
            node = node.get(part, {})
        if value is None:
            node.pop(last, None)
        elif key in absent and key not in changed:
            node.setdefault(last, value)
        else:
            node[last] = value
    width = f" +- {best.half_width:.4f} (95 %)" if best.half_width is not None else ""
    point = " ".join(f"{key}={json.dumps(value)}" for key, value in best.point.items())
    runs = ", ".join(one.run.signature for one in best.outcomes)
    warning = f"# Settings changed during training ({run.folder / 'changes.json'}): the last.\n"
    path = results.folder / BEST
    head = (
        f"# The best of {len(ranked)} points of the sweep {results.name}, selected on "
        f"{results.selected_on}:\n# {results.metric} {best.mean:.4f}{width}, "
        f"{len(best.values)} seed(s), runs {runs}\n# {point}\n{warning if changed else ''}"
        f"#   python launch/train.py --recipe {path}\n"
    )
    write_text(path, head + to_text(settings))
    return path


def write_tables(results: SweepResults) -> list[Path]:
    """Write every trial (point, seed, state, all numbers of its result) to trials.csv and, with
    types, to trials.parquet; return the files."""
    names = list(dict.fromkeys(name for one in results.outcomes for name in one.numbers))
    rows = [
        {
            **{key: one.point.get(key) for key in results.keys}, "seed": one.seed,
            "run": one.run.signature, "state": one.state,
            **{name: one.numbers.get(name) for name in names},
        }
        for one in results.outcomes
    ]
    columns = [*results.keys, "seed", "run", "state", *names]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    table, typed = results.folder / "trials.csv", results.folder / "trials.parquet"
    write_text(table, text.getvalue())
    import pyarrow  # takes half a second to import
    import pyarrow.parquet

    plain = {column: _of_one_type([row[column] for row in rows]) for column in columns}
    with atomic_write(typed) as private:
        pyarrow.parquet.write_table(pyarrow.table(plain), private)
    return [table, typed]


def _of_one_type(values: Sequence[Any]) -> Sequence[Any]:
    """Return values that fit into a column: numbers, one other type, or else their texts."""
    kinds = {float if type(v) is int else type(v) for v in values if v is not None}
    if len(kinds) <= 1 and not kinds & {list, dict}:
        return values
    return [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
