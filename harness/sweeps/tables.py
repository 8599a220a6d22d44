"""The tables of a sweep: trials.csv, trials.parquet, best.yaml."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.base.files import atomic_write, write_text
from harness.config.yaml_files import read_yaml, to_text
from harness.runs.takeovers import changed_settings
from harness.sweeps.outcomes import Sweeping, _of_one_type

BEST = "best.yaml"


def write_best(
    sweeping: Sweeping, *, without: Mapping[str, Any],
    absent: Mapping[str, Any] = MappingProxyType({}),
) -> Path | None:
    """Write the best point as a recipe; returns the file, None when no trial is complete.

    without: keys (dotted) and what they are to be in it, as what only a search needs. absent: what
    keys mean that an earlier version's run does not have.
    """
    ranked = sweeping.ranked()
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
    shown = f" +- {best.half_width:.4f} (95 %)" if best.half_width is not None else ""
    point = " ".join(f"{key}={json.dumps(value)}" for key, value in best.point.items())
    runs = ", ".join(one.run.signature for one in best.outcomes)
    warning = f"# Settings changed on the way ({run.folder / 'changes.json'}); here are the last.\n"
    warning = warning if changed else ""
    head = (
        f"# The best of {len(ranked)} points of the sweep {sweeping.name}, selected on "
        f"{sweeping.selected_on}:\n# {sweeping.metric} {best.mean:.4f}{shown}, "
        f"{len(best.values)} seed(s), runs {runs}\n# {point}\n{warning}"
        f"#   python launch/train.py --recipe {sweeping.folder / BEST}\n"
    )
    path = sweeping.folder / BEST
    write_text(path, head + to_text(settings))
    return path


def write_tables(sweeping: Sweeping) -> list[Path]:
    """Write every trial to trials.csv and, with types, to trials.parquet; returns the files."""
    names = list(dict.fromkeys(name for one in sweeping.outcomes for name in one.numbers))
    rows = [
        {
            **{key: one.point.get(key) for key in sweeping.keys}, "seed": one.seed,
            "run": one.run.signature, "state": one.state,
            **{name: one.numbers.get(name) for name in names},
        }
        for one in sweeping.outcomes
    ]
    columns = [*sweeping.keys, "seed", "run", "state", *names]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    table, typed = sweeping.folder / "trials.csv", sweeping.folder / "trials.parquet"
    write_text(table, text.getvalue())
    import pyarrow  # half a second
    import pyarrow.parquet

    plain = {column: _of_one_type([row[column] for row in rows]) for column in columns}
    with atomic_write(typed) as private:
        pyarrow.parquet.write_table(pyarrow.table(plain), private)
    return [table, typed]
