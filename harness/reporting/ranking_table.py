"""A sweep's ranking, for the terminal and for a page: a table of points, and remarks on it."""

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.base.mappings import short_names
from harness.base.units import counted
from harness.sweeps.sweep_results import Outcome, Ranked, SweepResults, unbeaten

LONG = 8  # longer numbers (drawn ones) are shown in four digits


class RankingTable(NamedTuple):
    """The points of a sweep that have a complete trial, best first."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    remarks: list[str]


def ranking_table(results: SweepResults, columns: Mapping[str, str]) -> RankingTable:
    """Return a sweep's ranking; columns: title and result key of each further number."""
    ranked, objectives = results.ranked(), list(results.objectives)
    names = ["rank", *results.keys, "seeds", results.metric, "+- (95 %)", *objectives]
    names += ["unbeaten", *columns] if objectives else [*columns]
    rows = []
    points = zip(ranked, unbeaten(results, ranked), strict=True)
    for rank, (one, is_unbeaten) in enumerate(points, start=1):
        half = one.half_width
        row = [str(rank), *(setting(one.point.get(key)) for key in results.keys)]
        row += [f"{len(one.values)}" if one.is_whole else f"{len(one.values)} of {one.trial_count}"]
        row += [f"{one.mean:.4f}", "" if half is None else f"{half:.4f}"]
        row += [f"{one.mean_of(key):.4g}" for key in objectives]
        row += ["yes" if is_unbeaten else ""] if objectives else []
        for key in columns.values():
            values = [o.numbers[key] for o in one.outcomes if key in o.numbers]
            row.append(f"{statistics.fmean(values):.4f}" if values else "")
        rows.append(row)
    selection = f"{results.selected_on} ({results.metric}, {results.mode})"
    title = f"{results.name}: selected on {selection}"
    return RankingTable(title, names, rows, _remarks(results, ranked))


def setting(value: Any) -> str:
    """Return a setting for readers: long floats in four digits, "" for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and len(str(value)) > LONG else str(value)


def trial_label(one: Outcome) -> str:
    """Return a trial's point and seed; of its keys the last parts, where these differ."""
    names = short_names(one.point)
    parts = [f"{names[key]}={setting(value)}" for key, value in one.point.items()]
    left = ["(no longer in the file)"] if one.dropped else []
    return " ".join([*parts, f"seed={one.seed}", *left])


def _remarks(results: SweepResults, ranked: list[Ranked]) -> list[str]:
    """Return remarks on the number of trials, important keys, and the ranking's uncertainty."""
    states = [one.state for one in results.outcomes]
    each = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"{counted(len(states), 'trial')}: {each}"]
    if not ranked:
        return [*lines, "No trial is complete."]
    if not all(one.is_whole for one in ranked):
        lines.append("Points with missing seeds rank last: their mean leaves out trials that "
                     "ended early or failed.")
    if left := [str(rank) for rank, one in enumerate(ranked, start=1) if not one.in_file]:
        lines.append(f"No longer in the sweep file, so their other settings may differ: rank "
                     f"{', '.join(left)}.")
    if results.has_changed:
        lines.append("Settings changed during training (changes.json in the run folders); the "
                     "table shows those at the start.")
    elif results.shares:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in results.shares.items())
        lines.append(f"Share of the variance of {results.metric}: {shares}")
    else:
        lines.append("Too few complete points to tell which key matters.")
    if all(one.trial_count == 1 for one in ranked):
        lines.append("One seed per point: differences may be chance. Try seeds=[1,2,3].")
    return lines
