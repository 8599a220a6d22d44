"""What an image search found, as a page that people look at."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from harness.base.files import write_text
from harness.base.paths import shown
from harness.reporting.page import Html, element, image, note, page, section, table
from svll.reports.thumbnails import thumbnail
from svll.search.search import Answer, Found, Hit, name_in, write_csv

MOST_QUERIES = 100
"""A page of more is slow to draw and to open; the table has them all."""
THUMBNAIL = (128, 160)
"""Width and height at most, in pixels."""
STYLE = """
.answer { display: flex; gap: 1.2rem; align-items: flex-start; }
.hits { display: flex; flex-wrap: wrap; gap: .5rem; align-items: stretch; }
.answer figure { margin: 0; width: 7.5rem; flex: none; padding: .3rem;
  border: 2px solid var(--line); border-radius: .3rem; text-align: center; line-height: 1.3; }
.answer figure.query { background: var(--soft); }
.answer figure.accepted { border-color: var(--good); }
.answer figure.rejected { border-color: var(--bad); border-style: dashed; }
.answer img { height: 8rem; width: 100%; object-fit: contain; }
"""

Thumbnail = Callable[[Path], bytes | None]


def write_search(found: Found, out: Path) -> list[Path]:
    """Write search.html and search.csv into a folder; returns both. Raises OSError."""
    files = [out / "search.html", out / "search.csv"]
    write_csv(found, files[1])  # first: the page reads images again, which may be gone by now
    write_text(files[0], search_page(found))
    return files


def search_page(found: Found) -> str:
    """Return the page: what was searched, how was decided, each query beside its nearest."""
    small = lru_cache(maxsize=1000)(_thumbnail)  # some images are near to many queries
    answers = found.answers[:MOST_QUERIES]
    parts = [element("p", _about(found)), note(found.verdict)]
    if found.broken:
        parts.append(note(
            f"Images that cannot be read and were left out: {len(found.broken)}; they are named at "
            "the end."
        ))
    if len(answers) < len(found.answers):
        parts.append(note(
            f"The first {len(answers)} of {len(found.answers)} queries are shown; search.csv has "
            "all."
        ))
    parts += [_section(found, answer, small) for answer in answers]
    if found.broken:
        rows = [[shown(one.path), one.reason] for one in found.broken]
        parts.append(section("Images left out", table(["image", "reason"], rows)))
    return page("Image search", *parts, style=STYLE)


def _about(found: Found) -> str:
    return (
        f"{len(found.answers)} query images of {shown(found.query)} against {found.images} gallery "
        f"images of {shown(found.gallery)}, by cosine similarity of features of "
        f"{shown(found.weights)}."
    )


def _section(found: Found, answer: Answer, small: Thumbnail) -> Html:
    """Return one query beside its nearest."""
    name = name_in(answer.query, found.query)
    asked = _card(small(answer.query), answer.query, name, [element("b", "query")], "query")
    hits = [
        _hit(place, hit, name_in(hit.path, found.gallery), small)
        for place, hit in enumerate(answer.hits, start=1)
    ]
    if not hits:
        hits = [element("p", "There is no other image in the gallery.")]
    return section(
        name, element("div", asked, element("div", *hits, class_="hits"), class_="answer")
    )


def _hit(place: int, hit: Hit, name: str, small: Thumbnail) -> Html:
    lines = [
        element("b", place, ": ", f"{hit.similarity:.4f}"), element("br"),
        element("span", hit.word, class_="good" if hit.accepted else "bad"),
    ]
    return _card(small(hit.path), hit.path, name, lines, hit.word or None)


def _card(data: bytes | None, path: Path, name: str, lines: list[Html], kind: str | None) -> Html:
    """Return an image with lines and its name below; the whole path appears under the pointer."""
    caption = element("figcaption", *lines, element("br"), name)
    picture = image(data, name) if data else element("p", "cannot be read any more")
    return element("figure", picture, caption, class_=kind, title=shown(path))


def _thumbnail(path: Path) -> bytes | None:
    return thumbnail(path, THUMBNAIL)
