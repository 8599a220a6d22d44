"""A sweep as an Optuna study: one trial per run, for Optuna's plots and for optuna-dashboard.

    number              place in sweep.json
    params              the point; lists and mixed values as JSON
    values              the metric, then the objectives
    intermediate        the validation metric by epoch
    user attributes     signature, seed, folder, state (Optuna has no `stopped`)
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.base.files import atomic_write
from harness.base.mappings import is_number, numeric_leaves
from harness.base.reading import from_json
from harness.runs.run import Run, epoch_lines
from harness.sweeps.dimensions import Dimension
from harness.sweeps.sweep_results import Outcome, SweepResults

if TYPE_CHECKING:  # optuna takes a third of a second to import
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STATES = {"complete": "COMPLETE", "ended early": "PRUNED", "failed": "FAIL", "unreadable": "FAIL",
          "running": "RUNNING"}
"""Optuna's states; trials in other states wait: the same command starts or resumes them."""
HEAD = 8
"""So many lines at the start of a journal say which study it holds."""
LONGEST = 100_000
"""Bytes of a line of these."""


def as_study(
    results: SweepResults, outcomes: Sequence[Outcome] | None = None, *, storage: Any = None,
    by_epoch: bool = False,
) -> "Study":
    """Return a sweep's runs as a study, in memory unless a storage is given.

    outcomes: the runs, in the order of their numbers; None: all. by_epoch: with the validation
    metric of each epoch, which takes reading all logs.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    outcomes = results.outcomes if outcomes is None else outcomes
    modes = [results.mode, *results.objectives.values()]
    study = optuna.create_study(
        storage=storage, study_name=results.name,
        directions=["maximize" if mode == "max" else "minimize" for mode in modes],
    )
    study.set_user_attr("folder", str(results.folder.resolve()))
    study.set_user_attr("values", [results.metric, *results.objectives])
    axes = {key: distribution(one, [outcome.point[key] for outcome in outcomes
                                    if key in outcome.point])
            for key, one in results.dimensions.items()}
    study.add_trials([_trial(one, axes, results, by_epoch) for one in outcomes])
    return study


def distribution(dimension: Dimension, tried: Sequence[Any]) -> "BaseDistribution":
    """Return Optuna's distribution of what a key's search declares and of the values `tried`, which
    an earlier form of the sweep file may have declared.

    Numbers are a range, on a log scale where the search was (`Dimension.is_log`); anything else is
    categorical.
    """
    from optuna import distributions as kinds

    declared = list(dimension.values)
    if dimension.kind == "randint":
        declared[-1] -= 1  # excludes the upper end
    known = [*declared, *tried]
    if not all(map(is_number, known)):
        return kinds.CategoricalDistribution(list(dict.fromkeys(map(_choice, known))))
    low, high = min(known), max(known)
    is_log = dimension.is_log and low > 0
    if dimension.kind not in ("uniform", "loguniform") and all(type(v) is int for v in known):
        return kinds.IntDistribution(low, high, log=is_log)
    return kinds.FloatDistribution(low, high, log=is_log)


def _choice(value: Any) -> str | bool | None:
    return value if isinstance(value, str | bool | None) else json.dumps(value)


def _trial(
    one: Outcome, axes: Mapping[str, "BaseDistribution"], results: SweepResults, by_epoch: bool
) -> "FrozenTrial":
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import FrozenTrial, TrialState

    found = [one.value, *map(one.numbers.get, results.objectives)]
    values = [value for value in found if value is not None]
    state = TrialState[STATES.get(one.state, "WAITING")]
    is_odd = state == TrialState.COMPLETE and len(values) < len(found)  # its result lacks a number
    if is_odd or (state == TrialState.PRUNED and len(found) > 1):  # Optuna prunes one value only
        state = TrialState.FAIL
    start, end = _times(one)
    return FrozenTrial(
        number=-1, trial_id=-1, state=state, value=None,
        values=values if state == TrialState.COMPLETE else None,
        datetime_start=None if state == TrialState.WAITING else start,
        datetime_complete=end if state.is_finished() else None,
        params={key: _choice(value) if isinstance(axes[key], CategoricalDistribution) else value
                for key, value in one.point.items()},
        distributions={key: axes[key] for key in one.point},
        user_attrs={"signature": one.run.signature, "seed": one.seed, "state": one.state,
                    "folder": str(one.run.folder)},
        system_attrs={},
        intermediate_values=_epochs(one.run, results.metric) if by_epoch else {},
    )


def _times(one: Outcome) -> tuple[datetime, datetime]:
    """Return when the last attempt began and ended; from the files' times where no status says."""
    status: dict[str, Any] = {}
    with suppress(UserError):
        status = one.run.status()
    end = status.get("time")
    if end is None:
        file = next((f for f in (one.run.result_file, one.run.folder) if f.exists()), Path("/"))
        end = file.stat().st_mtime
    seconds = status.get("seconds", one.numbers.get("seconds", 0.0))
    start = min(status.get("started", end - seconds), end)
    return datetime.fromtimestamp(start), datetime.fromtimestamp(end)


def _epochs(run: Run, metric: str) -> dict[int, float]:
    """Return the metric after each epoch; of a metric of the test set, its validation's."""
    lines: list[dict[str, float]] = []
    with suppress(UserError):  # a damaged log: the page names it
        lines = [numeric_leaves(line) for line in epoch_lines(run)]
    names = (metric, f"validation.{metric}")
    key = next((name for name in names if any(name in line for line in lines)), metric)
    return {int(line["epoch"]): line[key] for line in lines
            if "epoch" in line and math.isfinite(line.get(key, math.nan))}


# --- files ---


def check_study_file(file: Path, folder: Path) -> None:
    """Raise UserError if `file` exists and is not an earlier study of the sweep in `folder`."""
    if not os.path.lexists(file):
        return
    found: list[Any] = []
    with suppress(OSError, ValueError), file.open("rb") as lines:
        heads = (lines.readline(LONGEST) for _ in range(HEAD))
        found += (from_json(line.decode()) for line in heads if line)
    logs = [log for log in found if isinstance(log, dict)]
    attributes = [log["user_attr"] for log in logs if isinstance(log.get("user_attr"), dict)]
    folders = [one["folder"] for one in attributes if "folder" in one]
    if folders[:1] != [str(folder.resolve())]:
        raise UserError(f"{file}: exists and is not a study of the sweep in {folder}; name another "
                        "file, or delete this one")


def write_study(results: SweepResults, file: Path) -> Path:
    """Write what is in the sweep file as an Optuna journal, for `optuna-dashboard FILE`. Replaces
    an earlier study of the sweep; raises UserError for any other file."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    check_study_file(file, results.folder)
    with tempfile.TemporaryDirectory() as folder, atomic_write(file) as private:
        journal = Path(folder) / "journal"  # each line is synced: quick on a local disk only
        storage = JournalStorage(JournalFileBackend(str(journal)))
        as_study(results.in_file, storage=storage, by_epoch=True)
        shutil.copyfile(journal, private)
    return file


def single(results: SweepResults) -> SweepResults:
    """Return the results with their metric as the only objective."""
    return replace(results, objectives={})
