"""What a sweep is and which trials it has, as a file: runs/<name>/sweep.json."""

from collections.abc import Iterable
from typing import Any

from harness.base.files import write_json
from harness.sweeps.reading import Sweep, Trial


def write_summary(sweep: Sweep) -> None:
    """Write runs/<name>/sweep.json: what the sweep is and its trials, in order."""
    write_json(sweep.folder / "sweep.json", summary(sweep, sweep.trials))


def summary(sweep: Sweep, trials: Iterable[Trial]) -> dict[str, Any]:
    """Return what a sweep is, with these trials of it."""
    return {
        "file": sweep.file, "name": sweep.name, "backend": sweep.backend, "metric": sweep.metric,
        "mode": sweep.mode, "objectives": dict(sweep.objectives),
        "trials": [{"point": t.point, "seed": t.seed, "signature": t.signature} for t in trials],
    }
