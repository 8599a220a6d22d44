"""What came out of a sweep: points ranked, what mattered, the best as a recipe; A against B.

    python launch/report.py runs/loss_weights
    python launch/report.py runs/loss_weights --compare 1 4

Writes best.yaml, trials.csv and trials.parquet into the sweep's folder.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.cluster.table import wide
from harness.errors import UserError
from harness.outcomes import (
    Ranked,
    Sweeping,
    importance,
    read_outcomes,
    unbeaten,
    write_best,
    write_tables,
)
from launch.cli import command

ON_THE_FULL_SET = {
    "data.validation": 0.0, "data.fingerprint": None, "model.fingerprint": None, "run": None,
}
"""What the best recipe is without: it is trained on all identities, wherever its files lie."""
TEST = {"test mAP": "mAP", "test Rank-1": "cmc.1"}
SURE = 0.05


@command(__doc__)
def main(
    folder: Annotated[Path, typer.Argument(help="A sweep's folder, runs/<name>.")],
    compare: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Two points by their rank in the table: does A beat B?"),
    ] = None,
) -> int:
    """Report on a sweep; exit status 1 when no trial is complete."""
    sweeping, console = read_outcomes(folder), wide(Console())
    ranked = sweeping.ranked()
    if not ranked:
        states = [one.state for one in sweeping.outcomes]
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        raise UserError(f"{folder}: no trial is complete ({told or 'no trials'})")
    if compare is not None:
        return _compare(sweeping, ranked, compare, console)
    console.print(_table(sweeping, ranked))
    for line in _words(sweeping, ranked):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    files = [write_best(sweeping, without=ON_THE_FULL_SET), *write_tables(sweeping)]
    console.print("files: " + ", ".join(map(str, files)), highlight=False, soft_wrap=True)
    return 0


def _table(sweeping: Sweeping, ranked: list[Ranked]) -> Table:
    title = f"{sweeping.name}: selected on {sweeping.selected_on} ({sweeping.metric}, "
    table = Table(title=f"{title}{sweeping.mode})")
    weighed = list(sweeping.objectives)
    front = ["unbeaten"] if weighed else []
    for name in ("rank", *sweeping.keys, "seeds", sweeping.metric, "+- (95 %)", *weighed, *front,
                 *TEST):
        table.add_column(name, justify="right")
    marks = unbeaten(sweeping, ranked)
    for place, one in enumerate(ranked, start=1):
        half = one.half_width
        tests = [
            [o.numbers[key] for o in one.outcomes if key in o.numbers] for key in TEST.values()
        ]
        table.add_row(
            str(place), *(str(one.point.get(key, "")) for key in sweeping.keys),
            f"{len(one.values)}" if one.is_whole else f"{len(one.values)} of {one.asked}",
            f"{one.mean:.4f}", "" if half is None else f"{half:.4f}",
            *(f"{one.mean_of(key):.4g}" for key in weighed),
            *(("yes" if marks[place - 1] else "",) if weighed else ()),
            *(f"{sum(values) / len(values):.4f}" if values else "" for values in tests),
        )
    return table


def _words(sweeping: Sweeping, ranked: list[Ranked]) -> list[str]:
    """Say how many trials this is of, what mattered, and where the ranking is not sure."""
    states = [one.state for one in sweeping.outcomes]
    lines = [f"{len(states)} trials: " + ", ".join(
        f"{states.count(state)} {state}" for state in dict.fromkeys(states)
    )]
    if not all(one.is_whole for one in ranked):
        lines.append("points of which seeds are missing stand last, whatever their mean: what was "
                     "ended early or failed is not in it")
    shares = importance(sweeping)
    if sweeping.has_changed:
        lines.append("settings changed while runs were trained (changes.json in their folders): "
                     "the points are what they began with")
    elif shares:
        told = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        lines.append(f"share in the variance of {sweeping.metric}: {told}")
    else:
        lines.append("too few complete points to say which key mattered")
    if all(one.asked == 1 for one in ranked):
        lines.append("one seed each: how much chance there is in this ranking is not known "
                     "(seeds=[1,2,3])")
    return lines


def _compare(
    sweeping: Sweeping, ranked: list[Ranked], places: tuple[int, int], console: Console
) -> int:
    """Say whether one point beats another, over seeds and over the test queries."""
    for place in places:
        if not 1 <= place <= len(ranked):
            raise UserError(f"--compare: there is no rank {place}, there are 1 to {len(ranked)}")
    import numpy as np

    from harness.paired import compare
    from svll.comparing import compare_queries  # numba: a second

    a, b = (ranked[place - 1] for place in places)
    for name, point in (("A", a), ("B", b)):
        words = " ".join(f"{key}={value}" for key, value in point.point.items())
        console.print(f"{name}: {words}", highlight=False, markup=False, soft_wrap=True)
    values = [{one.seed: one.value for one in point.outcomes} for point in (a, b)]
    seeds = sorted(values[0].keys() & values[1].keys())
    lines = []
    if seeds:
        found = compare(*(np.array([one[seed] for seed in seeds], float) for one in values))
        lines.append((f"{sweeping.metric} over {found.pairs} seeds", found))
    runs = [[one.run for one in point.outcomes if one.seed in seeds or not seeds]
            for point in (a, b)]
    found = compare_queries(*runs)
    lines.append((f"test AP over {found.pairs} queries", found))
    for what, verdict in lines:
        sure = "A and B differ" if verdict.p < SURE else "no difference is shown"
        console.print(
            f"{what}: A - B = {verdict.mean:+.4f}, better {verdict.wins} times, worse "
            f"{verdict.losses} times, p = {verdict.p:.2g}: {sure}",
            highlight=False, markup=False, soft_wrap=True,
        )
    if seeds and len(seeds) < 6:
        least = 2.0 ** (1 - len(seeds))
        console.print(f"over {len(seeds)} seeds p cannot be below {least:.2g}", highlight=False)
    console.print("the test over queries takes these trained models as given: another seed may "
                  "give another answer", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    main()
