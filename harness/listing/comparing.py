"""Two runs or sweeps side by side: their points, seed by seed, for the paired tests."""

import re
from collections.abc import Mapping
from pathlib import Path

from harness.base.errors import UserError
from harness.base.mappings import numeric_leaves
from harness.base.units import counted
from harness.listing.entries import Metric
from harness.listing.folders import find, look_at
from harness.runs.run import Run, state_of
from harness.sweeps.paired_test import Verdict, compare
from harness.sweeps.sweep_results import Outcome, Ranked, read_outcomes

SEED = re.compile(r"^seed: (\d+)$", re.M)
APART = re.compile(r"^(?:seed: .*|run:(?:\n[ -].*)*)\n?", re.M)
"""What differs between the config.yaml of runs that differ in their seed alone."""
SURE = 0.05
FEWEST = 6
"""Fewer seeds cannot give a p-value below SURE."""


def side(folder: Path, metric: Metric) -> tuple[Ranked, str]:
    """Return what a folder stands for in a comparison, and its metric: a sweep for its best point,
    a run for itself and the runs beside it that differ in their seed alone.

    Raises UserError where nothing is complete.
    """
    if look_at(folder) == "sweep":
        results = read_outcomes(folder)
        ranked = results.in_file.ranked()
        if not ranked:
            raise UserError(f"{folder}: no run is complete, so there is nothing to compare")
        return ranked[0], results.metric
    chosen = Run(folder)
    if not chosen.is_complete():
        raise UserError(f"{folder}: is {state_of(chosen)}; only complete runs can be compared")
    runs = seeds_of(chosen)
    numbers = {seed: numeric_leaves(run.result() or {}) for seed, run in runs.items()}
    key = metric.key if all(metric.key in one for one in numbers.values()) else metric.instead
    outcomes = [Outcome({}, seed, run, "complete", numbers[seed].get(key), numbers[seed])
                for seed, run in runs.items()]
    return Ranked({}, outcomes, len(outcomes)), key


def seeds_of(run: Run) -> dict[int, Run]:
    """Return, by seed, the complete runs beside a run that differ from it in their seed alone; the
    run itself comes first."""
    text = _config(run)
    found = {_seed(run, text): run}
    for one in find(run.folder.parent, 1):
        other = Run(one.folder)
        if one.kind == "run" and other != run and not one.fault and other.is_complete():
            theirs = _config(other)
            if APART.sub("", theirs) == APART.sub("", text):
                found.setdefault(_seed(other, theirs), other)
    return found


def _config(run: Run) -> str:
    try:
        return run.config_file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{run.config_file}: cannot be read: {error}") from None


def _seed(run: Run, text: str) -> int:
    found = SEED.search(text)
    if found is None:
        raise UserError(f"{run.config_file}: has no line `seed: NUMBER`; put a copy back")
    return int(found[1])


def compare_seeds(a: Ranked, b: Ranked, metric: str) -> tuple[int, dict[str, Verdict]]:
    """Return how many seeds both sides have, and the test over these seeds if there are any."""
    values = [{one.seed: one.value for one in side.outcomes if one.value is not None}
              for side in (a, b)]
    seeds = sorted(values[0].keys() & values[1].keys())
    if not seeds:
        return 0, {}
    found = compare(*([float(one[seed] or 0.0) for seed in seeds] for one in values))
    return len(seeds), {f"{metric} over {counted(found.pairs, 'seed')}": found}


def verdict_lines(seeds: int, verdicts: Mapping[str, Verdict]) -> list[str]:
    """Return a line for each test of A against B, and one on a number of seeds that is too small
    to show anything."""
    lines = []
    for test, verdict in verdicts.items():
        conclusion = "A and B differ" if verdict.p < SURE else "no significant difference"
        lines.append(f"{test}: A - B = {verdict.mean:+.4f}, higher "
                     f"{counted(verdict.wins, 'time')}, lower {counted(verdict.losses, 'time')}, "
                     f"p = {verdict.p:.2g}: {conclusion}")
    if 0 < seeds < FEWEST:
        lines.append(f"with {counted(seeds, 'seed')} p is at least {2.0 ** (1 - seeds):.2g}")
    return lines
