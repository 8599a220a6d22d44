"""What a report shows of trained models: t-SNE, attention, and where their ranked lists are."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.base.errors import UserError
from harness.reporting import page
from harness.reporting.drawing import as_svg, save
from harness.reporting.page import Html
from svll.evaluation.feature_files.ranked_lists import Wanted
from svll.features.files import features_file
from svll.reports.figures.attention import attention_figure
from svll.reports.figures.figure_with_numbers import Drawn
from svll.reports.figures.tsne import image_figure, text_figure
from svll.reports.ranked_page import ranked_page

KINDS: Sequence[tuple[str, str, Callable[..., Drawn]]] = (
    ("Images after stage 2", "tsne-images", image_figure),
    ("Texts after stage 1", "tsne-texts", text_figure),
    ("Where the class token looks", "attention", attention_figure),
)


def figures_section(runs: Mapping[str, Path], folder: Path, beside: Path) -> Html:
    """Draw the paper's figures of runs (title: folder) side by side, each with its numbers.

    folder: of the figures' files. beside: the page's. What cannot be drawn is said.
    """
    parts: list[Html] = []
    for title, name, draw in KINDS:
        parts.append(page.element("h3", title))
        try:
            drawn = draw(runs)
        except UserError as error:
            parts.append(page.note(str(error)))
            continue
        files = [os.path.relpath(path, beside) for path in save(drawn.figure, folder / name)]
        parts += [page.figure(as_svg(drawn.figure), drawn.caption, files=files), _numbers(drawn)]
    return page.section("What the models have learned", *parts)


def _numbers(drawn: Drawn) -> Html:
    names = list(dict.fromkeys(name for told in drawn.numbers.values() for name in told))
    rows = [[title, *(told.get(name) for name in names)] for title, told in drawn.numbers.items()]
    return page.table(["", *names], rows)


def ranked_section(
    runs: Mapping[str, Path], beside: Path, wanted: Wanted, *, root: Path | None = None
) -> tuple[Html, list[Path]]:
    """Write each run's ranked lists into its folder; returns links to them, and the pages.

    root: where the images are now, if not where they were. Raises UserError for queries that no run
    has; what else cannot be made of a run is said.
    """
    parts: list[Html] = []
    pages: list[Path] = []
    for title, folder in runs.items():
        try:
            file = features_file(folder)
        except UserError as error:
            parts.append(page.note(f"{title}: {error}"))
            continue
        made = ranked_page(file, folder, wanted, root=root, figures=folder / "figures")
        linked = page.link(os.path.relpath(made, beside), f"Ranked lists of {title}")
        parts.append(page.element("p", linked))
        pages.append(made)
    return page.section("Ranked lists", *parts), pages
