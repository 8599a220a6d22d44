"""Self-contained HTML pages: no network, no scripts, dark and light, any width.

All text is escaped; only the functions here make `Html`, which is not escaped again. The pages'
policy forbids the browser to load or execute anything.
"""

import base64
import html
from collections.abc import Sequence
from urllib.parse import quote

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fff; --soft: #f2f4f7; --line: #d5dae1;
  --good: #1a7f37; --bad: #b3261e; --mark: #fff3c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ec; --paper: #14181d; --soft: #1e242b; --line: #38414c;
    --good: #57c878; --bad: #ff8a80; --mark: #4d4215; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
a { color: inherit; } code, td, th { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { background: var(--soft); white-space: nowrap; } td.number { text-align: right; }
td.mark { background: var(--mark); }
.note { background: var(--soft); border-left: .25rem solid var(--line); padding: .5rem .8rem; }
.bad { color: var(--bad); } .good { color: var(--good); }
figure { margin: 1rem 0; } figure svg, figure img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; font-size: .85rem; }
"""


class Html(str):
    """Text that is HTML, all foreign parts escaped."""


def escape(value: object) -> Html:
    """Return a value as HTML: `Html` unchanged, None as "", anything else escaped."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(str(value)))


def join(*parts: object) -> Html:
    """Return the parts, each escaped, one after the other."""
    return Html("".join(map(escape, parts)))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Return an element, its text escaped; `class_` is class, None leaves an attribute out."""
    text = "".join(f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
                   for name, value in attributes.items() if value is not None)
    if tag in ("img", "br", "hr", "meta"):
        return Html(f"<{tag}{text}>")
    return Html(f"<{tag}{text}>{join(*children)}</{tag}>")


def section(title: object, *parts: object, id_: str | None = None) -> Html:
    """Return parts under a heading."""
    return element("section", element("h2", title), *parts, id_=id_)


def note(*parts: object) -> Html:
    """Return a highlighted remark, such as on missing files."""
    return element("p", *parts, class_="note")


def link(target: object, text: object = None) -> Html:
    """Return a link to a file, by its path from the page, or to a section (#name)."""
    path = str(target)
    if not path.startswith("#"):
        path = quote(path, errors="surrogateescape")  # a colon too, so it cannot be a scheme
    return element("a", target if text is None else text, href=path)


def table(
    columns: Sequence[object], rows: Sequence[Sequence[object]], *,
    marked: Sequence[Sequence[bool]] | None = None,
) -> Html:
    """Return a table that can scroll sideways; marked: cells [rows, columns] to highlight."""
    marked = marked or [[False] * len(row) for row in rows]
    body = [element("tr", *map(_cell, row, marks)) for row, marks in zip(rows, marked, strict=True)]
    head = element("thead", element("tr", *(element("th", column) for column in columns)))
    return element("div", element("table", head, element("tbody", *body)), class_="wide")


def _cell(value: object, is_marked: bool) -> Html:
    kinds = ["number"] if isinstance(value, int | float) and not isinstance(value, bool) else []
    kinds += ["mark"] if is_marked else []
    text = f"{value:.4g}" if isinstance(value, float) else value
    return element("td", text, class_=" ".join(kinds) or None)


def image(data: bytes, alt: object, **attributes: object) -> Html:
    """Return a JPEG that is stored in the page itself."""
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
    return element("img", src=source, alt=alt, **attributes)


def page(title: object, *parts: object, style: str = "") -> str:
    """Return a whole document; style: additional CSS, trusted."""
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
            f"<body>{join(element('h1', title), *parts)}</body></html>\n")
