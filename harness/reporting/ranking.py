"""A sweep's points in the order of its metric: as rows of a table, and what is to be said of them.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness.base.units import counted
from harness.sweeps.outcomes import Ranked, SweepResults, unbeaten

LONG = 8
"""Numbers that were drawn have more characters than anybody wants to read."""


def ranking_title(sweeping: SweepResults) -> str:
    """Return what the points were ranked by, and on which part of the data."""
    return (
        f"{sweeping.name}: selected on {sweeping.selected_on} ({sweeping.metric}, {sweeping.mode})"
    )


def ranking_rows(
    sweeping: SweepResults, ranked: Sequence[Ranked], further: Mapping[str, str]
) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of points, the best first.

    further: numbers of the results to show besides, by title, as dotted keys.
    """
    weighed = list(sweeping.objectives)
    columns = ["rank", *sweeping.keys, "seeds", sweeping.metric, "+- (95 %)", *weighed]
    columns += ["unbeaten", *further] if weighed else [*further]
    marks = unbeaten(sweeping, ranked)
    return columns, [
        _row(sweeping, place, one, is_unbeaten, further)
        for place, (one, is_unbeaten) in enumerate(zip(ranked, marks, strict=True), start=1)
    ]


def _row(
    sweeping: SweepResults, place: int, one: Ranked, is_unbeaten: bool, further: Mapping[str, str]
) -> list[str]:
    half = one.half_width
    row = [str(place), *(told(one.point.get(key)) for key in sweeping.keys)]
    row += [f"{len(one.values)}" if one.is_whole else f"{len(one.values)} of {one.trial_count}"]
    row += [f"{one.mean:.4f}", "" if half is None else f"{half:.4f}"]
    row += [f"{one.mean_of(key):.4g}" for key in sweeping.objectives]
    row += ["yes" if is_unbeaten else ""] if sweeping.objectives else []
    for key in further.values():
        values = [o.numbers[key] for o in one.outcomes if key in o.numbers]
        row.append(f"{statistics.fmean(values):.4f}" if values else "")
    return row


def told(value: Any) -> str:
    """Return a setting as a reader wants it: drawn numbers in four digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and len(str(value)) > LONG else str(value)


def remarks(sweeping: SweepResults, ranked: Sequence[Ranked]) -> list[str]:
    """Say how many trials this is of, what mattered, and where the ranking is not sure."""
    states = [one.state for one in sweeping.outcomes]
    lines = [f"{counted(len(states), 'trial')}: " + ", ".join(
        f"{states.count(state)} {state}" for state in dict.fromkeys(states)
    )]
    if not ranked:
        return [*lines, "no trial is complete"]
    if not all(one.is_whole for one in ranked):
        lines.append("points of which seeds are missing stand last, whatever their mean: what was "
                     "ended early or failed is not in it")
    shares = sweeping.shares
    if sweeping.has_changed:
        lines.append("settings changed while runs were trained (changes.json in their folders): "
                     "the points are what they began with")
    elif shares:
        listed = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        lines.append(f"share in the variance of {sweeping.metric}: {listed}")
    else:
        lines.append("too few complete points to say which key mattered")
    if all(one.trial_count == 1 for one in ranked):
        lines.append("one seed each: how much chance there is in this ranking is not known "
                     "(seeds=[1,2,3])")
    return lines
