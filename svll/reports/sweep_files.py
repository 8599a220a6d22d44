"""What a report leaves of a sweep beside its page, and what to do next."""

from collections.abc import Sequence
from pathlib import Path

from harness.base.paths import typed
from harness.reporting.ranking_table import setting
from harness.sweeps.sweep_results import BEST, SweepResults, write_best, write_tables
from svll.config import Config

ON_THE_FULL_SET = {
    "data.validation": 0.0, "data.fingerprint": None, "model.fingerprint": None, "run": None,
}
"""Keys of the best recipe that differ: it trains on all identities, wherever its files lie."""


def write_sweep_files(results: SweepResults) -> list[Path]:
    """Write best.yaml and the tables of trials into a sweep's folder; return the files."""
    best = write_best(results, without=ON_THE_FULL_SET, absent=Config.absent)
    return [*([best] if best else []), *write_tables(results)]


def next_steps(sweeps: Sequence[SweepResults], page: Path) -> list[str]:
    """Return the best point of each sweep, the command that trains it on all identities, and the
    command that opens the page."""
    lines: list[str] = []
    for results in sweeps:
        for best in results.in_file.ranked()[:1]:
            name = f"{results.name}: " if len(sweeps) > 1 else ""
            values = [f"{key}={setting(value)}" for key, value in best.point.items()]
            point = " ".join(values) or best.outcomes[0].run.signature
            recipe = typed(results.folder / BEST)
            lines += [f"{name}best point: {point} ({results.metric} {best.mean:.4f})",
                      f"train it on all identities: python launch/train.py --recipe {recipe}"]
    return [*lines, f"open the page: python -m webbrowser {typed(page)}"]
