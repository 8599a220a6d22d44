"""Figures: the same SVG each time, in the page's colour, and as files on white."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from harness.base.errors import UserError
from harness.reporting.drawing import INK, as_svg, embed, in_page, look, new_figure, save


def without_ids(svg: str) -> str:
    """An SVG less the names of what cuts its axes out: hashes of places that rounding changes."""
    return re.sub(r"\bp[0-9a-f]{10}\b", "p", svg)


def drawn() -> Figure:
    figure = new_figure(4.0, 2.0)
    with look():
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="<loss> & more")
        axes.legend()
    return figure


def test_a_figure_in_a_page_has_its_colour_and_escapes_its_text() -> None:
    svg = in_page(as_svg(drawn()))
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert INK not in svg
    assert "#ffffff" not in svg
    assert "<loss> & more" in "".join(ElementTree.fromstring(svg).itertext())


def test_the_same_figure_is_the_same_svg() -> None:
    assert without_ids(as_svg(drawn())) == without_ids(as_svg(drawn()))


def test_a_figure_is_embedded_with_links_to_its_files_and_its_caption_as_text(
    tmp_path: Path
) -> None:
    html = embed(drawn(), tmp_path / "a" / "<i>", tmp_path / "b", "1 < 2")
    assert "1 &lt; 2" in html
    assert re.findall('<a href="(.*?)"', html) == ["../a/%3Ci%3E.svg", "../a/%3Ci%3E.png"]
    assert embed(None, tmp_path / "none", tmp_path, "") == ""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written: "):
        embed(drawn(), tmp_path / "file" / "x", tmp_path, "")


def test_a_figure_is_laid_out_once_and_drawn_once_for_the_page_and_its_svg_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawings, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **options: (
        drawings.append(options["format"]), savefig(self, *given, **options)
    ))
    laid_out, execute = [], ConstrainedLayoutEngine.execute
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute",
                        lambda self, figure: laid_out.append(figure) or execute(self, figure))
    figure = drawn()
    html = embed(figure, tmp_path / "a", tmp_path, "")
    assert laid_out == [figure]
    assert drawings == ["svg", "png"]
    places = re.findall(r'd="M [\d.]+ [\d.]+', (tmp_path / "a.svg").read_text())
    assert places == re.findall(r'd="M [\d.]+ [\d.]+', html)


def test_files_are_written_on_white(tmp_path: Path) -> None:
    svg, png = save(drawn(), tmp_path / "deep" / "curve")
    assert (svg.name, png.name) == ("curve.svg", "curve.png")
    assert svg.read_text().count("<svg") == 1
    pixels = np.asarray(Image.open(png).convert("RGB"))
    assert pixels.shape[:2] == (320, 640)
    assert (pixels[0, 0] == 255).all()
    assert (pixels < 128).all(axis=2).any()
