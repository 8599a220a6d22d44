"""Self-contained HTML pages: no network, dark and light, any width.

All text is escaped; only functions of this package make `Html`, which is not escaped again. The
pages' policy forbids the browser to load anything, and to execute anything but the scripts that the
page was made with, which it knows by their hashes.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from urllib.parse import quote

POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --paper: #fff; --soft: #f2f4f7; --line: #d5dae1;
  --good: #1a7f37; --bad: #b3261e; --mark: #fff3c4; --accent: #1f6fb5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ec; --paper: #14181d; --soft: #1e242b; --line: #38414c;
    --good: #57c878; --bad: #ff8a80; --mark: #4d4215; --accent: #6fb3ef; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
a { color: inherit; } code, td, th { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
button, input { font: inherit; color: inherit; accent-color: var(--accent); }
button { background: var(--soft); border: 1px solid var(--line); border-radius: .3rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { background: var(--soft); white-space: nowrap; } td.number { text-align: right; }
td.mark { background: var(--mark); }
.note { background: var(--soft); border-left: .25rem solid var(--line); padding: .5rem .8rem; }
.bad { color: var(--bad); } .good { color: var(--good); }
figure { margin: 1rem 0; } figure svg, figure img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; }
figure.plot .area { height: 26rem; }
.curves { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
.curves figure { margin: 0; min-width: 0; } .curves .area { height: 14rem !important; }
.keys button { text-align: left; font-size: .85rem; }
.keys { display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: center; font-size: .9rem;
  margin: .5rem 0; }
.keys button::before { content: ""; display: inline-block; width: 1.2rem; margin: 0 .4rem .2rem 0;
  border-top: .2rem solid var(--key); }
.keys button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.keys label { display: inline-flex; gap: .4rem; align-items: center; }
.runs th button { all: unset; cursor: pointer; } .runs tbody tr { cursor: pointer; }
.runs th button:focus-visible { outline: 2px solid var(--accent); }
.runs th[aria-sort=ascending] button::after { content: " ▲"; }
.runs th[aria-sort=descending] button::after { content: " ▼"; }
.runs tr.chosen td, .keys button.chosen { background: var(--mark); }
.runs td:first-child { min-width: 2.5rem; }
.runs .files { white-space: nowrap; } .runs td:has(+ td .files) { min-width: 12.5rem; }
.about { font-size: .85rem; margin: .3rem 0; display: flex; flex-wrap: wrap; gap: .6rem;
  align-items: center; }
.chosen-runs { position: sticky; bottom: .5rem; margin-top: 1rem; padding: .4rem .8rem;
  background: var(--mark); border: 1px solid var(--line); border-radius: .3rem; }
.chosen-runs[hidden] { display: none; }
@media (scripting: enabled) {  /* the script shows more on demand */
  table.runs:not(.ready) tbody tr:nth-child(n + 51) { display: none; } }
pre { background: var(--soft); padding: .6rem; overflow-x: auto; font-size: .85rem; }
"""


class Html(str):
    """Text that is HTML, all foreign parts escaped."""


RUNS = Html('<table class="runs">')  # begins a table of runs


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
    inside = element("table", _head(columns), element("tbody", *body))
    return element("div", inside, class_="wide")


def runs_table(
    columns: Sequence[object], rows: Sequence[Sequence[object]], runs: Sequence[Sequence[str]]
) -> Html:
    """Return a table whose rows can be sorted, filtered and chosen (`page.js`); runs: the
    signatures of the runs that each row is about."""
    body = [element("tr", *(_cell(value, False) for value in row), data_run=" ".join(names))
            for row, names in zip(rows, runs, strict=True)]
    inside = RUNS + _head(columns) + element("tbody", *body) + "</table>"
    return element("div", Html(inside), class_="wide")


def _head(columns: Sequence[object]) -> Html:
    return element("thead", element("tr", *(element("th", column) for column in columns)))


def _cell(value: object, is_marked: bool) -> Html:
    kinds = ["number"] if isinstance(value, int | float) and not isinstance(value, bool) else []
    kinds += ["mark"] if is_marked else []
    text = f"{value:.4g}" if isinstance(value, float) else value
    return element("td", text, class_=" ".join(kinds) or None)


def image(data: bytes, alt: object, **attributes: object) -> Html:
    """Return a JPEG that is stored in the page itself."""
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
    return element("img", src=source, alt=alt, **attributes)


def page(
    title: object, *parts: object, style: str = "", scripts: Sequence[str] = (),
    unpacked: Sequence[str] = (),
) -> str:
    """Return a whole document; style: additional CSS; scripts: run at its end; unpacked: scripts
    that these may add to it. All three are trusted."""
    allowed = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()
               for one in (*scripts, *unpacked)]
    sources = " ".join(f"'sha256-{one}'" for one in allowed)
    policy = f"{POLICY}; script-src {sources}" if allowed else POLICY
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n"
            f"<body>{join(element('h1', title), *parts)}"
            f"{''.join(f'<script>{one}</script>' for one in scripts)}</body></html>\n")
