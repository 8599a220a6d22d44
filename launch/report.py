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
from harness.outcomes import Ranked, Sweeping, read_outcomes, write_best, write_tables
from harness.reporting.ranking import ranking_rows, ranking_title, remarks
from launch.cli import command
from svll.reporting import TEST, write_report

ON_THE_FULL_SET = {
    "data.validation": 0.0, "data.fingerprint": None, "model.fingerprint": None, "run": None,
}
"""What the best recipe is without: it is trained on all identities, wherever its files lie."""
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
    for line in remarks(sweeping, ranked):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    files = [write_best(sweeping, without=ON_THE_FULL_SET), *write_tables(sweeping)]
    console.print("files: " + ", ".join(map(str, files)), highlight=False, soft_wrap=True)
    return 0


def _table(sweeping: Sweeping, ranked: list[Ranked]) -> Table:
    table = Table(title=ranking_title(sweeping))
    columns, rows = ranking_rows(sweeping, ranked, TEST)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


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
