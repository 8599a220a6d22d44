"""What came out of a sweep or of runs: a page with tables and curves; A against B.

    python launch/report.py runs/loss_weights
    python launch/report.py runs/loss_weights --compare 1 4
    python launch/report.py runs/synthetic/0a1b2c3d4e5f runs/synthetic/5f4e3d2c1b0a --out both.html
    python launch/report.py runs/synthetic/0a1b2c3d4e5f --figures --ranked

Writes report.html, which needs no other file and no network, and figures/ beside it; of a sweep
also best.yaml, trials.csv and trials.parquet, and prints its points ranked. Works at any time: of
runs that go on, have failed or lack something it shows what there is and says what is missing.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.base.errors import UserError
from harness.base.files import check_writable
from harness.base.units import counted
from harness.reporting.ranking import ranking_rows, ranking_title, remarks
from harness.reporting.terminal import wide
from harness.sweeps.outcomes import Ranked, Sweeping, read_outcomes
from harness.sweeps.tables import BEST, write_best, write_tables
from launch.cli import command
from svll.config import Config
from svll.reports.report import TEST, best_runs, write_report

if TYPE_CHECKING:
    from harness.reporting.page import Html

ON_THE_FULL_SET = {
    "data.validation": 0.0, "data.fingerprint": None, "model.fingerprint": None, "run": None,
}
"""What the best recipe is without: it is trained on all identities, wherever its files lie."""
SURE = 0.05


@command(__doc__)
def main(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of sweeps (runs/<name>) or of runs, side by side."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The page to be written. [default: report.html in the first folder]"),
    ] = None,
    figures: Annotated[
        bool,
        typer.Option("--figures", help="Also t-SNE and attention maps, of each folder's best run."),
    ] = False,
    ranked: Annotated[
        bool,
        typer.Option("--ranked", help="Also ranked lists (ranked.html in the best run's folder)."),
    ] = False,
    query: Annotated[
        list[str] | None,
        typer.Option(help="With --ranked: a query's row or file; several. [default: the worst]"),
    ] = None,
    cameras: Annotated[
        tuple[int, int] | None,
        typer.Option(help="With --ranked: queries of one camera among another's images, as the "
                     "dataset numbers them."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="With --ranked: where the images are, if they have been moved."),
    ] = None,
    compare: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Two points by their rank in the table: does A beat B?"),
    ] = None,
) -> int:
    """Report on sweeps and runs."""
    console = wide(Console())
    if not ranked and (query or cameras or root):
        raise UserError("--query, --cameras and --root have no effect without --ranked")
    if compare is not None:
        if len(folders) > 1 or out or figures or ranked:
            raise UserError("--compare: takes two points of one sweep; give its folder alone, "
                            "without --out, --figures and --ranked")
        return _compare(folders[0], compare, console)
    out = out or folders[0] / "report.html"
    sweeps = [folder for folder in folders if (folder / "sweep.json").exists()]
    for file in (out, *(folder / BEST for folder in sweeps)):
        check_writable(file)  # before minutes of drawing
    pages: list[Path] = []
    files = [write_report(folders, out, [
        *([partial(_figures, folders, out)] if figures else []),
        *([partial(_ranked, folders, out, query, cameras, root, pages)] if ranked else []),
    ])]
    for folder in sweeps:
        files += _sweep(read_outcomes(folder), console)
    files += [*pages, *(place for place in [out.parent / "figures"] if place.is_dir())]
    console.print("files: " + ", ".join(map(str, files)), highlight=False, soft_wrap=True)
    return 0


def _figures(folders: list[Path], out: Path, folder: Path) -> "Html":
    from svll.reports.sections import figures_section  # torch: seconds

    return figures_section(best_runs(folders), folder, out.parent)


def _ranked(
    folders: list[Path], out: Path, query: list[str] | None, cameras: tuple[int, int] | None,
    root: Path | None, pages: list[Path], folder: Path,
) -> "Html":
    """Return the section on ranked lists; `pages` gets the pages that it links to."""
    from svll.evaluation.feature_files.ranked_lists import Wanted
    from svll.reports.sections import ranked_section

    wanted = Wanted(cameras=cameras, queries=query or ())
    section, written = ranked_section(best_runs(folders), out.parent, wanted, root=root)
    pages += written
    return section


def _sweep(sweeping: Sweeping, console: Console) -> list[Path]:
    """Print a sweep's ranking; returns the files that were written of it."""
    ranked = sweeping.ranked()
    if ranked:
        console.print(_table(sweeping, ranked))
    for line in remarks(sweeping, ranked):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    best = write_best(sweeping, without=ON_THE_FULL_SET, absent=Config.absent)
    return [*([best] if best else []), *write_tables(sweeping)]


def _table(sweeping: Sweeping, ranked: list[Ranked]) -> Table:
    table = Table(title=ranking_title(sweeping))
    columns, rows = ranking_rows(sweeping, ranked, TEST)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _compare(folder: Path, places: tuple[int, int], console: Console) -> int:
    """Say whether one point beats another, over seeds and over the test queries."""
    sweeping = read_outcomes(folder)
    ranked = sweeping.ranked()
    if not ranked:
        raise UserError(f"{folder}: no trial is complete, there is nothing to compare")
    for place in places:
        if not 1 <= place <= len(ranked):
            raise UserError(f"--compare: there is no rank {place}, there are 1 to {len(ranked)}")
    import numpy as np

    from harness.sweeps.paired import compare
    from svll.evaluation.feature_files.compare_runs import compare_queries  # numba: a second

    a, b = (ranked[place - 1] for place in places)
    for name, point in (("A", a), ("B", b)):
        words = " ".join(f"{key}={value}" for key, value in point.point.items())
        console.print(f"{name}: {words}", highlight=False, markup=False, soft_wrap=True)
    values = [{one.seed: one.value for one in point.outcomes} for point in (a, b)]
    seeds = sorted(values[0].keys() & values[1].keys())
    lines = []
    if seeds:
        found = compare(*(np.array([one[seed] for seed in seeds], float) for one in values))
        lines.append((f"{sweeping.metric} over {counted(found.pairs, 'seed')}", found))
    runs = [[one.run for one in point.outcomes if one.seed in seeds or not seeds]
            for point in (a, b)]
    protocol, found = compare_queries(*runs)
    lines.append((f"test AP ({protocol}) over {counted(found.pairs, 'query', 'queries')}", found))
    for what, verdict in lines:
        sure = "A and B differ" if verdict.p < SURE else "no difference is shown"
        console.print(
            f"{what}: A - B = {verdict.mean:+.4f}, better {counted(verdict.wins, 'time')}, worse "
            f"{counted(verdict.losses, 'time')}, p = {verdict.p:.2g}: {sure}",
            highlight=False, markup=False, soft_wrap=True,
        )
    if seeds and len(seeds) < 6:
        least = 2.0 ** (1 - len(seeds))
        console.print(f"over {counted(len(seeds), 'seed')} p cannot be below {least:.2g}",
                      highlight=False)
    console.print("the test over queries takes these trained models as given: another seed may "
                  "give another answer", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    main()
