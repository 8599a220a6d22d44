"""Report on sweeps and runs: a page with tables and curves, or a test of whether A beats B.

    python launch/report.py runs/loss_weights
    python launch/report.py runs/loss_weights --compare 1 4
    python launch/report.py runs/synthetic/0a1b2c3d4e5f runs/synthetic/5f4e3d2c1b0a --out both.html
    python launch/report.py runs/synthetic/0a1b2c3d4e5f --figures --ranked

Writes report.html, which needs no other file and no network, and figures/ beside it. For a sweep it
also writes best.yaml, trials.csv and trials.parquet, and prints the ranked points. It works at any
time: for runs that are running, failed or incomplete it shows what is there and what is missing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from harness.base.errors import UserError
from harness.base.files import check_writable
from harness.listing.comparing import verdict_lines
from harness.reporting.page import Html
from harness.reporting.ranking_table import ranking_table
from harness.reporting.terminal import say, wide
from harness.sweeps.sweep_results import BEST, read_outcomes, write_best, write_tables
from launch.cli import command, refuse_without
from svll.config import Config
from svll.reports.report import TEST, Section, write_report

ON_THE_FULL_SET = {
    "data.validation": 0.0, "data.fingerprint": None, "model.fingerprint": None, "run": None,
}
"""Keys of the best recipe that differ: it trains on all identities, wherever its files lie."""


@command(__doc__)
def main(
    folders: Annotated[list[Path], typer.Argument(
        help="Folders of sweeps (runs/<name>) or of runs, shown side by side.")],
    out: Annotated[Path | None, typer.Option(
        help="The page to write. [default: report.html in the first folder]")] = None,
    figures: Annotated[bool, typer.Option(
        "--figures", help="Add t-SNE and attention maps of each folder's best run.")] = False,
    ranked: Annotated[bool, typer.Option(
        "--ranked", help="Add ranked lists (ranked.html in the best run's folder).")] = False,
    query: Annotated[list[str] | None, typer.Option(
        help="With --ranked: a query's row or file; may repeat. [default: the worst]")] = None,
    cameras: Annotated[tuple[int, int] | None, typer.Option(
        help="With --ranked: the query's camera and the gallery's, as the dataset numbers them.",
    )] = None,
    root: Annotated[Path | None, typer.Option(
        help="With --ranked: the dataset's folder, if it has moved.")] = None,
    compare: Annotated[tuple[int, int] | None, typer.Option(
        help="Two ranks of the table, A and B: test whether A beats B.")] = None,
) -> int:
    """Report on sweeps and runs."""
    console = wide(Console())
    refuse_without("--ranked", ranked, {"--query": query, "--cameras": cameras, "--root": root})
    if compare is not None:
        if len(folders) > 1 or out or figures or ranked:
            raise UserError("--compare takes two points of one sweep: give one folder, without "
                            "--out, --figures and --ranked")
        return _compare(folders[0], compare, console)
    out = out or folders[0] / "report.html"
    sweeps = [folder for folder in folders if (folder / "sweep.json").exists()]
    for file in (out, *(folder / BEST for folder in sweeps)):
        check_writable(file)  # before minutes of drawing
    pages: list[Path] = []
    sections = _sections(figures, ranked, query or (), cameras, root, pages)
    files = [write_report(folders, out, sections)]
    for folder in sweeps:
        files += _sweep(folder, console)
    files += [*pages, *(place for place in [out.parent / "figures"] if place.is_dir())]
    say(console, "files: " + ", ".join(map(str, files)))
    return 0


def _sections(
    figures: bool, ranked: bool, query: Sequence[str], cameras: tuple[int, int] | None,
    root: Path | None, pages: list[Path],
) -> list[Section]:
    """Return the sections asked for; that on ranked lists adds its pages to `pages`."""
    if not (figures or ranked):
        return []
    from svll.evaluation.feature_files.ranked_lists import Wanted
    from svll.reports.sections import figures_section, ranked_section  # torch: seconds

    wanted = Wanted(cameras=cameras, queries=query)

    def lists(runs: Mapping[str, Path], folder: Path) -> Html:
        section, written = ranked_section(runs, folder, wanted, root=root)
        pages.extend(written)
        return section

    return [*([figures_section] if figures else []), *([lists] if ranked else [])]


def _sweep(folder: Path, console: Console) -> list[Path]:
    """Print a sweep's ranking and write its tables; returns the files."""
    results = read_outcomes(folder)
    ranking = ranking_table(results, TEST)
    if ranking.rows:
        columns = (Column(name, justify="right") for name in ranking.columns)
        table = Table(*columns, title=ranking.title)
        for row in ranking.rows:
            table.add_row(*row)
        console.print(table)
    say(console, *ranking.remarks)
    best = write_best(results, without=ON_THE_FULL_SET, absent=Config.absent)
    return [*([best] if best else []), *write_tables(results)]


def _compare(folder: Path, places: tuple[int, int], console: Console) -> int:
    """Test whether one point beats another, over seeds and over the test queries."""
    results = read_outcomes(folder)
    ranked = results.ranked()
    if not ranked:
        raise UserError(f"{folder}: no trial is complete, so there is nothing to compare")
    for place in places:
        if not 1 <= place <= len(ranked):
            raise UserError(f"--compare: there is no rank {place}; ranks are 1 to {len(ranked)}")
    from svll.evaluation.feature_files.compare_runs import compare_points  # numba: a second

    a, b = (ranked[place - 1] for place in places)
    for name, point in (("A", a), ("B", b)):
        values = " ".join(f"{key}={value}" for key, value in point.point.items())
        say(console, f"{name}: {values}")
    seeds, verdicts = compare_points(a, b, results.metric)
    say(console, *verdict_lines(seeds, verdicts))
    say(console, "The test over queries is on these trained models only; other seeds may give "
           "another answer.")
    return 0


if __name__ == "__main__":
    main()
