"""report.html: a self-contained page on runs, sweeps, or several of them side by side.

    <folder>/report.html
    <folder>/figures/*.svg *.png    every figure as files
"""

import html
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.reporting import landscape, page, runs_page
from harness.reporting.curves import (
    MOST_LINES,
    LabelledRun,
    Logged,
    curve_plots,
    draw_curves,
    logged,
    losses,
    metrics_of,
    stages_of,
)
from harness.reporting.drawing import write_figure
from harness.reporting.page import Html
from harness.reporting.plots import document, plot
from harness.reporting.ranking_table import ranking_table, trial_label
from harness.reporting.runs_page import Facts, facts_of
from harness.reporting.study_plots import plots
from harness.runs.run import Run
from harness.sweeps.sweep_results import SweepResults, read_outcomes
from svll.base.run_files import TAKEN, taken_epochs
from svll.reports.sweep_files import next_steps, write_sweep_files

TEST = {"test mAP": "mAP", "test Rank-1": "cmc.1"}
"""Title and result key of further columns of a ranking."""
NUMBERS = {"validation mAP": "validation.mAP", **TEST, "test mINP": "mINP",
           "mAP before training": "initial.mAP"}
METRICS = ("validation.mAP", "validation.cmc.1", "prompts.margin", "prompts.mAP")
"""Metrics that epochs log."""
REPORTED = re.compile('data-folders="(.*?)"')
"""In a page: the folders that it reports on."""
MOST_NAMED = 20  # folders that an error names, and remarks on runs that a page shows
MOST_COMPARED = 12  # runs in a table of differences; more columns cannot be read

Section = Callable[[Mapping[str, Path], Path], Html]


class Subject(NamedTuple):
    """What one folder holds: a sweep, or runs outside of a sweep."""

    name: str
    folder: Path
    sweep: SweepResults | None
    runs: Sequence[LabelledRun]  # a sweep's in the order of its ranking


def read_subject(folder: Path) -> Subject:
    """Return what a folder holds. Raises UserError for one without a sweep or runs."""
    if (folder / "sweep.json").is_file():
        sweep = read_outcomes(folder)
        ranked = [one for point in sweep.ranked() for one in point.outcomes]
        others = [one for one in sweep.outcomes if one.value is None]
        runs = [LabelledRun(trial_label(one), one.run) for one in (*ranked, *others)]
        return Subject(sweep.name, folder, sweep, runs)
    if (folder / "config.yaml").is_file():
        return Subject(folder.name, folder, None, [LabelledRun(folder.name, Run(folder))])
    folders = sorted(file.parent for file in folder.glob("*/config.yaml"))
    if not folders:
        inside = {*(file.parent for file in folder.glob("*/sweep.json")),
                  *(file.parents[1] for file in folder.glob("*/*/config.yaml"))}
        names = ", ".join(map(str, sorted(inside)[:MOST_NAMED]))
        more = f" and {len(inside) - MOST_NAMED} more" if len(inside) > MOST_NAMED else ""
        raise UserError(
            f"{folder}: neither a run's folder nor a sweep's: there is no config.yaml, no "
            "sweep.json, and no folder with a config.yaml in it"
            + (f"; give one of the folders in it: {names}{more}" if inside else "")
        )
    return Subject(folder.name, folder, None, [LabelledRun(one.name, Run(one)) for one in folders])


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Return what folders hold, each under a different name."""
    subjects = [read_subject(folder) for folder in folders]
    names = [one.name for one in subjects]
    if len({*names}) < len(names):
        names = [f"{one.folder.absolute().parent.name}-{one.name}" for one in subjects]
    if len({*names}) < len(names):
        names = [f"{one.name}-{n}" for n, one in enumerate(subjects, start=1)]
    return [one._replace(name=name) for one, name in zip(subjects, names, strict=True)]


def report_sweep(folder: Path) -> list[str]:
    """Write a sweep's report.html, best.yaml and tables; return what to do next. `run.report` of a
    configuration names this function."""
    subject = read_subject(folder)
    sweeps = [subject.sweep] if subject.sweep else []
    page = write_report([folder], folder / "report.html", subjects=[subject])
    for results in sweeps:
        write_sweep_files(results)
    return next_steps(sweeps, page)


def write_report(
    folders: Sequence[Path], out: Path, further: Sequence[Section] = (), *,
    subjects: Sequence[Subject] | None = None,
) -> Path:
    """Write the report on some folders to `out`, its figures to `figures` beside it; returns `out`.

    further: each makes one more section, from the `best_runs` and the folder of the page.
    subjects: what `read_subjects` returned, if that was called before. Raises UserError for a
    folder that holds nothing, for `out` that holds something else (`check_report`), and, after the
    page is written, for sections that cannot be made.
    """
    check_report(out, folders)
    subjects = read_subjects(folders) if subjects is None else subjects
    runs = list(subjects[0].runs) if len(subjects) == 1 else [
        LabelledRun(one.label if one.label == subject.name else f"{subject.name}: {one.label}",
                    one.run)
        for subject in subjects for one in subject.runs
    ]
    figures = out.parent / "figures"
    facts = [facts_of(one) for one in runs]
    parts = [*(_points(one, figures) for one in subjects), _curves(runs, figures),
             *map(_ranking, subjects), _runs(facts, out.parent), _differences(facts)]
    if sweeps := [one.sweep for one in subjects if one.sweep is not None]:
        steps = page.element("pre", "\n".join(next_steps(sweeps, out)))
        parts.append(page.section("Next steps", steps))
    faults: dict[str, None] = {}  # each once: sections may lack the same file
    for make in further:
        try:
            parts.append(make(best_runs(subjects), out.parent))
        except UserError as error:
            faults[str(error)] = None
    title = f"Report on {', '.join(one.name for one in subjects)}"
    written = page.element("p", time.strftime("Written %Y-%m-%d %H:%M."),
                           data_folders=_folders(folders))
    body = page.join(written, *parts, *map(page.note, faults))
    write_text(out, document(title, body))
    if faults:
        raise UserError("\n".join([f"{out}: report written; sections are missing:", *faults]))
    return out


def check_report(out: Path, folders: Sequence[Path]) -> None:
    """Raise UserError if `out` exists and is not a report on these folders. A folder's own
    report.html is always replaced."""
    is_own = len(folders) == 1 and out.resolve() == (folders[0] / "report.html").resolve()
    if is_own or not out.exists():
        return
    found = REPORTED.search(out.read_text(encoding="utf-8", errors="replace"))
    about = html.unescape(found[1]) if found else ""
    if about != _folders(folders):
        what = "is not a report"
        if about:
            what = f"is the report on {', '.join(json.loads(about))}"
        raise UserError(f"{out}: {what}; name another file (--out FILE), or delete this one")


def _folders(folders: Sequence[Path]) -> str:
    return json.dumps(sorted(str(folder.resolve()) for folder in folders))


def best_runs(subjects: Sequence[Subject]) -> dict[str, Path]:
    """Return each subject's best complete run, by title; raises UserError for none at all."""
    best: dict[str, Path] = {}
    for subject in subjects:
        if complete := [one for one in subject.runs if one.run.is_complete()]:
            label, run = complete[0]
            name = subject.name if len(subject.runs) == 1 else f"{subject.name}: {label}"
            best[name] = run.folder
    if not best:
        raise UserError(f"{', '.join(str(one.folder) for one in subjects)}: no run is complete")
    return best


def _points(subject: Subject, figures: Path) -> Html:
    """Return the plots of a sweep, and write figures of its points; nothing for other runs."""
    if subject.sweep is None:
        return Html("")
    sweep = subject.sweep.in_file
    shares, stem = sweep.shares, figures / subject.name
    drawn = {"importance": landscape.importance_bars(shares, sweep.metric) if shares else None,
             "points": landscape.parallel_coordinates(sweep),
             "map": landscape.contour(sweep, landscape.map_keys(sweep, shares))}
    for name, figure in drawn.items():
        write_figure(figure, stem.with_name(f"{stem.name}-{name}"))
    parts = [page.join(page.element("h3", one.heading),
                       plot(one.figure, f"{subject.name}-{one.name}", one.caption, figures.parent))
             for one in plots(sweep)]
    title = f"{subject.name}: {sweep.metric} over the searched keys"
    return page.section(title, *parts) if parts else Html("")


def _ranking(subject: Subject) -> Html:
    """Return a sweep's ranking; nothing for other runs."""
    if subject.sweep is None:
        return Html("")
    title, columns, rows, remarks = ranking_table(subject.sweep, TEST)
    runs = [[one.run.signature for one in point.outcomes] for point in subject.sweep.ranked()]
    return page.section(title, page.runs_table(columns, rows, runs) if rows else None,
                        *(page.element("p", line) for line in remarks))


def _runs(runs: Sequence[Facts], folder: Path) -> Html:
    notes = runs_page.incomplete(runs)
    if len(notes) > MOST_NAMED:
        notes[MOST_NAMED:] = [f"and {len(notes) - MOST_NAMED} more such lines"]
    reusing = sum(runs_page.read_or(partial(taken_epochs, one.run), 0) > 0 for one in runs)
    if reusing:
        notes.append(f"{reusing} of {len(runs)} runs reused stage 1 of another run ({TAKEN} in "
                     "their folders): their minutes leave it out; its images per second and memory "
                     "are the other run's.")
    columns = dict(NUMBERS)
    for one in runs:
        tests = one.result.get("tests")
        for name in tests if isinstance(tests, dict) else ():
            columns |= {f"{name} mAP": f"tests.{name}.mAP", f"{name} Rank-1": f"tests.{name}.cmc.1"}
    return page.section("Runs", runs_page.runs_table(runs, columns, folder), *map(page.note, notes))


def _curves(runs: Sequence[LabelledRun], figures: Path) -> Html:
    drawn: list[Logged] = []
    parts: list[Html] = []
    for one in runs:
        if len(drawn) < MOST_LINES and one.run.metrics_file.is_file():
            try:
                drawn.append(logged(one))
            except UserError as error:
                parts.append(page.note(str(error)))
    if len(drawn) < len(runs):
        parts.append(page.element("p", f"{len(drawn)} of {len(runs)} runs are drawn, the best "
                                       "first; those without a log are left out."))
    parts.append(page.element("div", class_="keys"))
    for stage in stages_of(drawn):
        parts.append(page.element("h3", stage))
        for name, select, caption in (
            ("losses", losses, "Total loss and its terms before weighting, mean over each epoch."),
            ("course", metrics_of(METRICS),
             "Metrics, learning rate, images per second, and peak memory."),
        ):
            files = write_figure(draw_curves(drawn, stage, select), figures / f"{stage}-{name}")
            links = [part for file in files for part in (" ", page.link(f"figures/{file.name}"))]
            parts += [curve_plots(drawn, stage, select, figures.parent),
                      page.element("p", caption, *links, class_="about")]
    if not drawn:
        parts.append(page.note("Nothing has been logged yet."))
    return page.section("Training curves", *parts)


def _differences(runs: Sequence[Facts]) -> Html:
    data = sorted({str(one.result.get("fingerprint", "")) for one in runs} - {""})
    parts: list[Html] = []
    if len(runs) > MOST_COMPARED:
        text = f"The first {MOST_COMPARED} of {len(runs)} runs are compared."
        parts, runs = [page.element("p", text)], runs[:MOST_COMPARED]
    sides = [runs_page.environment_of(one.run) for one in runs]
    if len(runs) > 1:
        configs = [runs_page.config_of(one.run) for one in runs]
        parts.append(runs_page.comparison(runs, configs, "configuration"))
        parts += [runs_page.comparison(runs, sides, "environment")] if any(sides) else []
    first = next((side for side in sides if side), {})
    facts = {"fingerprint of the data": ", ".join(data), **first}
    parts.append(page.table(["of the first run", ""], [[k, str(v)] for k, v in facts.items()]))
    if not first:
        parts.append(page.note("No run has recorded its environment: an older version wrote them."))
    return page.section("Configuration and environment", *parts)
