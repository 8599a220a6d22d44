"""Matplotlib figures: their look, as SVG in a page, and as files beside it."""

import io
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base.errors import UserError
from harness.base.files import atomic_write, write_text
from harness.reporting import page

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

INK = "#1f2933"
"""Colour of text and axes; in a page, the page's text colour replaces it (dark mode)."""
LINES = ("#3b82c4", "#e07b39", "#3f9d6b", "#c2509b", "#8c6bc8", "#b08d2a", "#4aa3a2", "#d1495b")
"""Colours of curves, in order; visible on white and on black."""
DPI = 160
LOOK: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "svll", "font.size": 9.0, "font.family": "sans-serif",
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": "#8a94a0", "grid.alpha": 0.3,
    "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False,
    "legend.labelcolor": INK, "savefig.facecolor": "none",
}


def new_figure(width: float = 7.0, height: float = 3.0) -> "Figure":
    """Return an empty figure, sized in inches; draw in it under `look()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def look() -> AbstractContextManager[None]:
    """Return a context in which axes, lines and legends get our look."""
    import matplotlib
    from cycler import cycler

    return matplotlib.rc_context({**LOOK, "axes.prop_cycle": cycler(color=LINES)})


def as_svg(figure: "Figure") -> str:
    """Return a figure as an SVG document, on white."""
    text = io.StringIO()
    with look():
        figure.savefig(
            text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None}
        )
    figure.set_layout_engine("none")  # keeps the places: finding them is most of the time
    return text.getvalue()


def in_page(svg: str) -> str:
    """Return an SVG document as an element that the page shines through, with text and axes in the
    page's text colour."""
    behind = svg.replace("fill: #ffffff", "fill: none", 1)
    return behind[behind.index("<svg") :].replace(INK, "currentColor")


def save(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Write a figure as stem.svg and stem.png, on white; returns the files."""
    svg, png = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png"))
    write_text(svg, as_svg(figure))
    with look(), atomic_write(png) as private:
        figure.savefig(private, format="png", dpi=DPI, facecolor="white")
    return svg, png


def write_figure(figure: "Figure | None", stem: Path) -> Sequence[Path]:
    """Save a figure, return its files (none for None). Raises UserError."""
    try:
        return () if figure is None else save(figure, stem)
    except OSError as error:
        raise UserError(f"{stem.parent}: cannot be written: {error.strerror or error}") from None


def embed(figure: "Figure | None", stem: Path, folder: Path, caption: object) -> page.Html:
    """Save a figure, return it for a page in `folder` ("" for None). Raises UserError."""
    files = write_figure(figure, stem)
    if not files:
        return page.Html("")
    svg = files[0].read_text(encoding="utf-8")
    links = [part for file in files for part in (" ", page.link(os.path.relpath(file, folder)))]
    text = page.element("figcaption", caption, *links)
    return page.element("figure", page.Html(in_page(svg)), text)  # its text is escaped already
