"""A report's sections on trained models: t-SNE, attention, and links to their ranked lists."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.base.errors import UserError
from harness.reporting import page
from harness.reporting.drawing import embed
from harness.reporting.page import Html
from svll.evaluation.feature_files.ranked_lists import Wanted
from svll.features.files import features_file
from svll.reports.figures.attention import attention_figure
from svll.reports.figures.side_by_side import RunsFigure
from svll.reports.figures.tsne import image_figure, text_figure
from svll.reports.ranked_page import ranked_page

KINDS: Sequence[tuple[str, str, Callable[..., RunsFigure]]] = (
    ("Images after stage 2", "tsne-images", image_figure),
    ("Texts after stage 1", "tsne-texts", text_figure),
    ("Attention of the class token", "attention", attention_figure),
)


def figures_section(runs: Mapping[str, Path], folder: Path) -> Html:
    """Draw the paper's figures of runs (title: folder); notes say why one is missing."""
    parts: list[Html] = []
    for title, name, draw in KINDS:
        parts.append(page.element("h3", title))
        try:
            result = draw(runs)
        except UserError as error:
            parts.append(page.note(str(error)))
            continue
        names = list(dict.fromkeys(name for one in result.numbers.values() for name in one))
        rows = [[run, *map(one.get, names)] for run, one in result.numbers.items()]
        parts += [
            embed(result.figure, folder / "figures" / name, folder, result.caption),
            page.table(["", *names], rows),
        ]
    return page.section("What the models have learned", *parts)


def ranked_section(
    runs: Mapping[str, Path], folder: Path, wanted: Wanted, *, root: Path | None = None
) -> tuple[Html, list[Path]]:
    """Write each run's ranked lists into its folder; returns links from `folder`, and the pages.

    root: as for `ranked_page`. A run without features gets a note; raises UserError for queries
    that no run has.
    """
    parts: list[Html] = []
    pages: list[Path] = []
    for title, run in runs.items():
        try:
            file = features_file(run)
        except UserError as error:
            parts.append(page.note(f"{title}: {error}"))
            continue
        written = ranked_page(file, run, wanted, root=root, figures=run / "figures")
        link = page.link(os.path.relpath(written, folder), f"Ranked lists of {title}")
        parts.append(page.element("p", link))
        pages.append(written)
    return page.section("Ranked lists", *parts), pages
