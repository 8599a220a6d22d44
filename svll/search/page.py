"""search.html and search.csv: the results of an image search."""

import csv
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import atomic_write, write_text
from harness.base.paths import shown
from harness.base.units import counted
from harness.reporting.page import Html, element, image, note, page, section, table
from svll.reports.thumbnails import thumbnail
from svll.search.search import Hit, QueryResult, SearchResults

MOST_QUERIES = 100  # most queries on the page, as larger pages are slow; the table has all
THUMBNAIL = (128, 160)  # largest width and height in pixels
COLUMNS = ("query", "rank", "gallery", "similarity", "accepted")
TITLE = "Image search"
HEAD_BYTES = 1000  # where a file of ours has its title or its columns
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


def write_search(results: SearchResults, out: Path) -> list[Path]:
    """Write search.html and search.csv into a folder; returns both. Raises OSError."""
    files = [out / "search.html", out / "search.csv"]
    _write_csv(results, files[1])  # first: the page reads images again, which may be gone by now
    write_text(files[0], search_page(results))
    return files


def check_out(out: Path) -> bool:
    """Return whether a folder holds the results of an earlier search, which a new one replaces.
    Raises UserError for files of these names that are something else."""
    found = False
    for name, start in (("search.html", TITLE), ("search.csv", ",".join(COLUMNS))):
        with suppress(FileNotFoundError), (out / name).open("rb") as file:
            if start.encode() not in file.read(HEAD_BYTES):
                raise UserError(f"{out / name}: exists and is not the result of a search; name "
                                "another folder (--out)")
            found = True
    return found


def _write_csv(results: SearchResults, path: Path) -> None:
    """Write a line for each query and hit; names that are not UTF-8 keep their bytes."""
    with (
        atomic_write(path) as private,
        private.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for query, hits in results.queries:
            for place, hit in enumerate(hits, start=1):
                accepted = "" if hit.accepted is None else str(hit.accepted).lower()
                writer.writerow([query, place, hit.path, hit.similarity, accepted])


def search_page(results: SearchResults) -> str:
    """Return the page: what was searched, the threshold, each query beside its nearest images."""
    # some images are near to many queries
    small = lru_cache(maxsize=1000)(partial(thumbnail, size=THUMBNAIL))
    count, faults = len(results.queries), results.faults
    parts = [
        element("p", f"{counted(count, 'query image')} of {shown(results.query)} against "
                f"{counted(results.images, 'gallery image')} of {shown(results.gallery)}, by "
                f"cosine similarity of features of {shown(results.weights)}."),
        note(results.criterion),
    ]
    if faults:
        skipped = counted(len(faults), "image")
        parts.append(note(f"Skipped {skipped} that cannot be read, listed at the end."))
    if count > MOST_QUERIES:
        parts.append(note(
            f"The first {MOST_QUERIES} of {count} queries are shown; search.csv has all."
        ))
    parts += [_section(results, one, small) for one in results.queries[:MOST_QUERIES]]
    if faults:
        rows = [[shown(path), reason] for path, reason in faults]
        parts.append(section("Skipped images", table(["image", "reason"], rows)))
    return page(TITLE, *parts, style=STYLE)


def _section(results: SearchResults, one: QueryResult, small: Thumbnail) -> Html:
    """Return one query beside its nearest images."""
    name = name_in(one.query, results.query)
    query = _card(one.query, name, [element("b", "query")], "query", small)
    hits = [
        _hit(place, hit, name_in(hit.path, results.gallery), small)
        for place, hit in enumerate(one.hits, start=1)
    ] or [element("p", "There is no other image in the gallery.")]
    cards = element("div", query, element("div", *hits, class_="hits"), class_="answer")
    return section(name, cards)


def _hit(place: int, hit: Hit, name: str, small: Thumbnail) -> Html:
    label = element("span", hit.label, class_="good" if hit.accepted else "bad")
    lines = [element("b", place, ": ", f"{hit.similarity:.4f}"), element("br"), label]
    return _card(hit.path, name, lines, hit.label or None, small)


def _card(path: Path, name: str, lines: list[Html], kind: str | None, small: Thumbnail) -> Html:
    """Return an image with lines and its name below; the tooltip is its whole path."""
    data = small(path)
    picture = image(data, name) if data else element("p", "cannot be read any more")
    caption = element("figcaption", *lines, element("br"), name)
    return element("figure", picture, caption, class_=kind, title=shown(path))


def name_in(path: Path, folder: Path) -> str:
    """Return an image's printable name: its path within the folder that was searched."""
    return shown(Path(path.name) if path == folder else path.relative_to(folder))
