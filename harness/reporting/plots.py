"""Plotly figures in a page: the page holds their data, its own copy of plotly.js draws them.

`page.js` gives plots and tables their behaviour. A point's `customdata` (a signature, or a list of
them) or a trace's `meta` (a signature) says which run it shows: a click on it chooses that run.
"""

import base64
import gzip
import html
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from harness.reporting import page
from harness.reporting.drawing import LINES

if TYPE_CHECKING:  # plotly is not imported by commands that draw nothing
    from plotly.graph_objects import Figure

PLOT = page.Html('<figure class="plot"')  # begins each plot; text of others is escaped
FILES = ("svg", "png")


def plot(figure: "Figure", name: str, caption: object, folder: Path) -> page.Html:
    """Return a figure for a page in `folder`, with links to figures/NAME.svg and .png there, if
    they exist. A template is replaced by the page's colours."""
    from plotly.utils import PlotlyJSONEncoder

    described = figure.to_plotly_json()
    layout = {**described["layout"], "template": {"layout": {"colorway": LINES}}}
    text = PlotlyJSONEncoder().encode({"data": described["data"], "layout": layout})
    # no "<", so that nothing in it ends the element or begins another
    data = page.Html('<script type="application/json">' + text.replace("<", r"\u003c")
                     + "</script>")
    links = [part for kind in FILES if (folder / "figures" / f"{name}.{kind}").is_file()
             for part in (" ", page.link(f"figures/{name}.{kind}"))]
    area = page.element("div", page.element("div", class_="area"), class_="wide")
    about = page.element("figcaption", caption, *links) if caption or links else ""
    return page.Html(f"{PLOT}>{area}{data}{about}</figure>")


def plain(text: object) -> str:
    """Return text for a plot's names and labels, where plotly reads some HTML."""
    return html.escape(str(text), quote=False)


def document(title: object, body: page.Html) -> str:
    """Return a whole page, with plotly.js if the body has a plot, and with page.js if it has a plot
    or a table of runs."""
    has_plot = PLOT in body
    if not has_plot and page.RUNS not in body:
        return page.page(title, body)
    own = (files("harness.reporting") / "page.js").read_text("utf-8")
    if not has_plot:
        return page.page(title, body, scripts=[own])
    plotly, packed = _plotly()
    return page.page(title, body, packed, scripts=[own], unpacked=[plotly])


@cache
def _plotly() -> tuple[str, page.Html]:
    """Return plotly.js, and an element that holds it compressed: 2 MB instead of 5."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode("ascii")
    return script, page.element("script", page.Html(packed), type="text/plain", id="plotly")
