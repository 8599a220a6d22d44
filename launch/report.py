"""Report on sweeps and runs: a page with tables and curves, or a test of whether A beats B.

    python launch/report.py runs/loss_weights
    python launch/report.py runs/loss_weights --compare 1 4
    python launch/report.py runs/loss_weights runs/occluded --compare 1 1
    python launch/report.py runs/loss_weights --study loss_weights.journal
    python launch/report.py runs/synthetic/0a1b2c3d4e5f runs/synthetic/5f4e3d2c1b0a --out both.html
    python launch/report.py runs/synthetic/0a1b2c3d4e5f --figures --ranked

Writes report.html, which needs no other file and no network, and figures/ beside it. For a sweep it
also writes best.yaml, trials.csv and trials.parquet, and prints the ranked points, the best of them
and what to do next. It works at any time: for runs that are running, failed or incomplete it shows
what is there and what is missing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from harness.base.errors import UserError, WrongUsage
from harness.base.files import check_writable
from harness.base.paths import typed
from harness.reporting.page import Html
from harness.reporting.ranking_table import ranking_table
from harness.reporting.terminal import say, wide
from harness.sweeps.study import check_study_file, write_study
from harness.sweeps.sweep_results import BEST, Ranked, SweepResults, read_outcomes
from launch.cli import as_called, command, refuse_without
from svll.reports.report import TEST, Section, read_subjects, write_report
from svll.reports.sweep_files import next_steps, write_sweep_files

MOST_ROWS = 50
"""Of the ranking in the terminal."""


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
    study: Annotated[Path | None, typer.Option(
        help="Write the sweep as an Optuna study, too: open it with optuna-dashboard FILE.",
    )] = None,
    compare: Annotated[tuple[int, int] | None, typer.Option(
        help="Two ranks of the table, A and B (of two sweeps: of the first, of the second): test "
             "whether A beats B.")] = None,
) -> int:
    """Report on sweeps and runs."""
    console = wide(Console())
    refuse_without("--ranked", ranked, {"--query": query, "--cameras": cameras, "--root": root})
    if compare is not None:
        if len(folders) > 2 or out or figures or ranked or study:
            raise WrongUsage("--compare takes points of one sweep or of two: give one folder or "
                             "two, without --out, --figures, --ranked and --study")
        return _compare(folders, compare, console)
    out = out or folders[0] / "report.html"
    sweeps = [folder for folder in folders if (folder / "sweep.json").exists()]
    for file in (out, *(folder / BEST for folder in sweeps), *([study] if study else [])):
        check_writable(file)  # before minutes of drawing
    if study is not None:
        if len(folders) > 1 or not sweeps:
            raise WrongUsage("--study takes one sweep: give its folder, the one with sweep.json")
        check_study_file(study, folders[0])
    subjects = read_subjects(folders)
    pages: list[Path] = []
    sections = _sections(figures, ranked, query or (), cameras, root, pages)
    files = [write_report(folders, out, sections, subjects=subjects)]
    results = [one.sweep for one in subjects if one.sweep is not None]
    for one in results:
        _print_ranking(one, console)
        files += write_sweep_files(one)
        files += [write_study(one, study)] if study else []
    files += [*pages, *(place for place in [out.parent / "figures"] if place.is_dir())]
    say(console, "files: " + ", ".join(map(str, files)), *map(as_called, next_steps(results, out)))
    if study is not None:
        say(console, f"open the study: optuna-dashboard {typed(study)}")
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


def _print_ranking(results: SweepResults, console: Console) -> None:
    ranking = ranking_table(results, TEST)
    if ranking.rows:
        columns = (Column(name, justify="right") for name in ranking.columns)
        table = Table(*columns, title=ranking.title)
        for row in ranking.rows[:MOST_ROWS]:
            table.add_row(*row)
        console.print(table)
    if len(ranking.rows) > MOST_ROWS:
        say(console, f"The best {MOST_ROWS} of {len(ranking.rows)} points; all are in the page.")
    say(console, *ranking.remarks)


def _compare(folders: Sequence[Path], places: tuple[int, int], console: Console) -> int:
    """Test whether one point beats another, over seeds and over the test queries. folders: of the
    sweep of both points, or of the first's and of the second's."""
    sweeps = [read_outcomes(folder) for folder in folders]
    first, second = sweeps[0], sweeps[-1]
    if first.metric != second.metric:
        raise UserError(f"{second.folder}: is ranked by {second.metric}, {first.folder} by "
                        f"{first.metric}; launch one of the sweeps again with the other's metric "
                        f"(metric={first.metric})")
    a, b = _ranked(first, places[0]), _ranked(second, places[1])
    from harness.listing.comparing import verdict_lines  # numpy, not for --help
    from svll.evaluation.feature_files.compare_runs import compare_points  # numba: a second

    for name, sweep, point in zip("AB", (first, second), (a, b), strict=True):
        values = " ".join(f"{key}={value}" for key, value in point.point.items())
        say(console, f"{name}: {values}" + (f" ({sweep.folder})" if len(sweeps) > 1 else ""))
    seeds, verdicts = compare_points(a, b, first.metric)
    say(console, *verdict_lines(seeds, verdicts))
    say(console, "The test over queries is on these trained models only; other seeds may give "
           "another answer.")
    return 0


def _ranked(results: SweepResults, place: int) -> Ranked:
    """Return a sweep's point of some rank. Raises UserError if there is none."""
    ranked = results.ranked()
    if not ranked:
        raise UserError(f"{results.folder}: no trial is complete, so there is nothing to compare")
    if not 1 <= place <= len(ranked):
        raise UserError(f"--compare: there is no rank {place}; ranks are 1 to {len(ranked)}")
    return ranked[place - 1]


if __name__ == "__main__":
    main()
