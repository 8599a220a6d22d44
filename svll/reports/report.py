"""report.html: runs, sweeps, or several of them side by side, on one page that needs nothing else.

    <folder>/report.html
    <folder>/figures/*.svg *.png    every figure as files
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.reporting import page
from harness.reporting.curves import (
    MOST_LINES,
    Shown,
    course_curves,
    loss_curves,
    stages_of,
)
from harness.reporting.drawing import as_svg, save
from harness.reporting.landscape import contour, importance_bars, map_keys, parallel_coordinates
from harness.reporting.page import Html
from harness.reporting.ranking import ranking_rows, ranking_title, remarks, told
from harness.reporting.runs_page import (
    comparison,
    config_of,
    environment_of,
    lacking,
    runs_table,
)
from harness.runs.run import Run
from harness.sweeps.outcomes import Outcome, SweepResults, read_outcomes
from svll.base.run_files import TAKEN, taken_epochs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST = {"test mAP": "mAP", "test Rank-1": "cmc.1"}
"""Further numbers of a result that a table of points has, by title."""
NUMBERS = {"validation mAP": "validation.mAP", **TEST, "test mINP": "mINP",
           "mAP before training": "initial.mAP"}
COURSE = ("validation.mAP", "validation.cmc.1", "prompts.margin", "prompts.mAP")
"""What epochs tell of how good the model is."""
MOST_NAMED = 20
"""Folders that an error names."""
MOST_COMPARED = 12
"""Columns of a table of differences; more cannot be read."""


@dataclass(frozen=True)
class Subject:
    """What one folder holds: a sweep, or runs that belong to none."""

    name: str
    folder: Path
    sweeping: SweepResults | None
    shown: Sequence[Shown]
    """Its runs, of a sweep those of the best points first."""


def read_subject(folder: Path) -> Subject:
    """Return what a folder holds. Raises UserError for one without a sweep or runs."""
    if (folder / "sweep.json").is_file():
        sweeping = read_outcomes(folder)
        ranked = [one for point in sweeping.ranked() for one in point.outcomes]
        others = [one for one in sweeping.outcomes if one not in ranked]
        runs = [Shown(_label(one), one.run) for one in (*ranked, *others)]
        return Subject(sweeping.name, folder, sweeping, runs)
    if (folder / "config.yaml").is_file():
        return Subject(folder.name, folder, None, [Shown(folder.name, Run(folder))])
    files = sorted(folder.glob("*/config.yaml"))
    if not files:
        raise UserError(
            f"{folder}: neither a run's folder nor a sweep's: there is no config.yaml, no "
            f"sweep.json, and no folder with a config.yaml in it{_inside(folder)}"
        )
    return Subject(
        folder.name, folder, None, [Shown(file.parent.name, Run(file.parent)) for file in files]
    )


def _inside(folder: Path) -> str:
    """Name the folders below that can be reported on."""
    sweeps = {file.parent for file in folder.glob("*/sweep.json")}
    names = sorted(map(str, sweeps | {file.parents[1] for file in folder.glob("*/*/config.yaml")}))
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"; in it are {', '.join(names[:MOST_NAMED])}{more}: name those"


def _label(one: Outcome) -> str:
    ends = Counter(key.rpartition(".")[2] for key in one.point)
    names = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in one.point}
    words = [f"{names[key]}={told(value)}" for key, value in one.point.items()]
    return " ".join([*words, f"seed={one.seed}"])


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Return what folders hold, under names of which none is there twice."""
    found = [read_subject(folder) for folder in folders]
    for name_of in (
        lambda one: one.name, lambda one: f"{one.folder.absolute().parent.name}-{one.name}",
    ):
        named = [replace(one, name=name_of(one)) for one in found]
        if len({one.name for one in named}) == len(named):
            return named
    return [replace(one, name=f"{one.name}-{n}") for n, one in enumerate(found, start=1)]


def report_sweep(folder: Path) -> Path:
    """Write a sweep's report.html and return it; what `run.report` of a configuration names."""
    return write_report([folder], folder / "report.html")


def write_report(
    folders: Sequence[Path], out: Path, further: Sequence[Callable[[Path], Html]] = ()
) -> Path:
    """Write the report on some folders to `out`, its figures to `figures` beside it.

    further: each makes one more section, and is told the folder of the figures. Returns `out`.
    Raises UserError for a folder that holds nothing, and as those do, when the page is written
    without their sections.
    """
    subjects = read_subjects(folders)
    shown = _together(subjects)
    drawn = Drawn(out.parent / "figures", out.parent)
    parts = [*(part for one in subjects for part in _results(one, drawn))]
    parts += [_runs(shown, out.parent), _curves(shown, drawn), _differences(shown)]
    faults: dict[str, None] = {}  # each once: sections may lack the same
    for make in further:
        try:
            parts.append(make(drawn.folder))
        except UserError as error:
            faults[str(error)] = None
    names = ", ".join(one.name for one in subjects)
    made = page.element("p", time.strftime("Written %Y-%m-%d %H:%M."))
    parts += [page.note(fault) for fault in faults]
    write_text(out, page.page(f"Report on {names}", made, *parts))
    if faults:
        told = f"{out} was written without what was asked for besides"
        raise UserError("\n".join([*faults, told]))
    return out


def best_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Return of each folder its best complete run, by the name that the report gives it.

    Raises UserError when none has one.
    """
    found: dict[str, Path] = {}
    for subject in read_subjects(folders):
        complete = [one for one in subject.shown if one.run.is_complete()]
        for one in complete[:1]:
            name = subject.name if len(subject.shown) == 1 else f"{subject.name}: {one.label}"
            found[name] = one.run.folder
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: no run is complete")
    return found


def _together(subjects: Sequence[Subject]) -> list[Shown]:
    """Return all runs, under names that tell several folders apart."""
    if len(subjects) == 1:
        return list(subjects[0].shown)
    return [
        Shown(one.label if one.label == subject.name else f"{subject.name}: {one.label}", one.run)
        for subject in subjects for one in subject.shown
    ]


@dataclass
class Drawn:
    """Keeps figures as files, and puts them into the page."""

    folder: Path
    beside: Path
    """Where the page is."""

    def show(self, figure: "Figure | None", name: str, caption: str) -> Html:
        """Return a figure for the page, nothing for None."""
        if figure is None:
            return Html("")
        files = [str(path.relative_to(self.beside)) for path in save(figure, self.folder / name)]
        return page.figure(as_svg(figure), caption, files=files)


# --- sections ---


def _results(subject: Subject, drawn: Drawn) -> list[Html]:
    """Return a sweep's ranking and what mattered in it; nothing of runs that are in none."""
    sweeping = subject.sweeping
    if sweeping is None:
        return []
    ranked = sweeping.ranked()
    title = ranking_title(sweeping)
    if not ranked:
        return [page.section(title, page.note("No trial is complete."))]
    columns, rows = ranking_rows(sweeping, ranked, TEST)
    said = page.join(*(page.element("p", line) for line in remarks(sweeping, ranked)))
    maps = _landscape(sweeping, subject.name, drawn)
    return [page.section(title, page.table(columns, rows), said, maps)]


def _landscape(sweeping: SweepResults, name: str, drawn: Drawn) -> Html:
    shares, metric = sweeping.shares, sweeping.metric
    keys = map_keys(sweeping, shares)
    return page.join(
        drawn.show(importance_bars(shares, metric) if shares else None, f"{name}-importance",
                   "What mattered: each key's share in the variance over the points."),
        drawn.show(parallel_coordinates(sweeping), f"{name}-points",
                   f"Every complete point, coloured by {metric} (mean over its seeds)."),
        drawn.show(contour(sweeping, keys), f"{name}-map",
                   f"{metric} over {' and '.join(keys)}: measured at the dots, linear between them"
                   f"{'; other keys differ too' if len(sweeping.keys) > 2 else ''}."),
    )


def _runs(shown: Sequence[Shown], beside: Path) -> Html:
    notes = [page.note(line) for line in lacking(shown)]
    takers = sum(taken_epochs(one.run) > 0 for one in shown)
    if takers:
        notes.append(page.note(
            f"{takers} of {len(shown)} runs took stage 1 over from a run whose stage 1 is the same "
            f"({TAKEN} in their folders): minutes are without it, and its images per second and "
            "memory are that run's."
        ))
    return page.section("Runs", runs_table(shown, NUMBERS | _tests(shown), beside), *notes)


def _tests(shown: Sequence[Shown]) -> dict[str, str]:
    """Return the numbers of each of several test sets, by title."""
    sets: dict[str, None] = {}
    for one in shown:
        with suppress(UserError, ValueError):
            sets |= dict.fromkeys((one.run.result() or {}).get("tests", {}))
    return {
        title: key for name in sets for title, key in
        ((f"{name} mAP", f"tests.{name}.mAP"), (f"{name} Rank-1", f"tests.{name}.cmc.1"))
    }


def _curves(shown: Sequence[Shown], drawn: Drawn) -> Html:
    some: list[Shown] = []
    parts: list[Html] = []
    for one in shown:
        if len(some) < MOST_LINES and one.run.metrics_file.is_file():
            try:
                one.run.metrics()
            except UserError as error:
                parts.append(page.note(str(error)))
            else:
                some.append(one)
    if len(some) < len(shown):
        parts.append(page.element("p", f"{len(some)} of {len(shown)} runs are drawn, the best "
                                       "first; those without a log are left out."))
    for stage in stages_of(some):
        parts += [
            page.element("h3", stage),
            drawn.show(loss_curves(some, stage), f"{stage}-losses",
                       "The trained loss and its terms before their weights, means of epochs."),
            drawn.show(course_curves(some, stage, COURSE), f"{stage}-course",
                       "Metrics, learning rate, images per second, and memory at its peak."),
        ]
    if not some:
        parts.append(page.note("Nothing has been logged yet."))
    return page.section("Training", *parts)


def _differences(shown: Sequence[Shown]) -> Html:
    some = shown[:MOST_COMPARED]
    parts: list[Html] = []
    if len(some) < len(shown):
        parts.append(page.element("p", f"The first {len(some)} of {len(shown)} runs are compared."))
    if len(some) > 1:
        parts.append(comparison(some, [config_of(one.run) for one in some], "configuration"))
    sides = [environment_of(one.run) for one in some]
    first = next((side for side in sides if side), {})
    if len(some) > 1 and any(sides):
        parts.append(comparison(some, sides, "environment"))
    data = sorted({_fingerprint(one.run) for one in shown} - {""})
    facts = [("fingerprint of the data", ", ".join(data)), *first.items()]
    parts.append(page.table(["of the first run", ""], [[key, str(value)] for key, value in facts]))
    if not first:
        parts.append(page.note("No run tells what it was computed with: an older version made it."))
    return page.section("Configuration and environment", *parts)


def _fingerprint(run: Run) -> str:
    with suppress(UserError, ValueError):
        return str((run.result() or {}).get("fingerprint", ""))
    return ""
