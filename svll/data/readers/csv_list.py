"""A user's own images as a CSV file: path,identity[,camera][,view][,split].

Identities, cameras and views may be any text. Where they are not all whole numbers, they are
numbered from 0 in sorted order, which the log says. Paths are relative to the file's folder.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.base.paths import is_utf8, normal, shown, typed
from harness.base.units import counted
from harness.images.pixels import IMAGE_ENDINGS
from svll.base.records import PARTS, Dataset, Records, Row
from svll.data.readers import labels
from svll.data.readers.common import examples, is_image, raise_faults, without_junk
from svll.data.readers.labels import JUNK

LABELS = ("identity", "camera", "view")

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One image of a list, as text; None in columns that the list does not have."""

    path: str
    """Absolute."""
    identity: str
    camera: str | None = None
    view: str | None = None
    split: str | None = None


COLUMNS = tuple(field.name for field in fields(Entry))
REQUIRED, OPTIONAL = COLUMNS[:2], COLUMNS[2:]


def load(file: str | Path) -> Dataset:
    """Read a list with a split column.

    Without a camera column all cameras are 0 and the protocol is `all_gallery`, which leaves no
    gallery image out. Raises UserError with all faults of the file.
    """
    file = Path(file)
    entries = read(file)
    if any(entry.split is None for entry in entries):
        raise UserError(f"{file} has no column split ({', '.join(PARTS)}). To draw one: python "
                        f"launch/data.py split --root {typed(file)} --out NEW.csv")
    kept = without_junk(file, entries)
    if not kept:
        raise UserError(f"{file}: all {counted(len(entries), 'image')} are junk (identity {JUNK})")
    parts = _parts(kept)
    _check_parts(file, parts)
    _log_texts(file, kept)
    has_cameras = all(entry.camera is not None for entry in kept)
    if not has_cameras:
        log.info("%s: no column camera, so no gallery image is left out (all_gallery)", file)
    protocol = "cross_camera" if has_cameras else "all_gallery"
    train, validation, query, gallery = (parts[name] for name in PARTS)
    return Dataset("list", protocol, train, query, gallery, validation)


def read(file: Path) -> list[Entry]:
    """Return a list's images in its order; raises UserError with all faults and their lines."""
    rows = _rows(file)
    if not rows:
        raise UserError(f"{file} is empty; its first line must be {','.join(REQUIRED)},...")
    (_, header), *lines = rows
    _check_header(file, header)
    folder = os.path.abspath(file.parent)
    entries, faults = [], []
    first: dict[str, int] = {}
    for number, cells in lines:
        line_faults = list(_faults(header, cells))
        if not line_faults:
            values = dict(zip(header, cells, strict=True))
            written = values["path"]
            values["path"] = path = _absolute(folder, written)
            if labels.is_junk(values["identity"]):
                values["identity"] = str(JUNK)
            if (before := first.setdefault(path, number)) != number:
                line_faults.append(f"{written} is on line {before} already")
            if not is_utf8(written) and not os.path.exists(path):
                line_faults.append(f"{shown(written)} is not UTF-8, and no file has that name; "
                                   "save the list as UTF-8")
            entries.append(Entry(**values))
        faults += [f"{file}, line {number}: {fault}" for fault in line_faults]
    entries = _plain(entries)
    raise_faults(faults or [f"{file}: {fault}" for fault in ambiguities(entries)])
    if not entries:
        raise UserError(f"{file} lists no images")
    return entries


def _plain(entries: list[Entry]) -> list[Entry]:
    """Return entries with digits for numbers, 7 for 7.0, in columns of whole numbers only."""
    for column in LABELS:
        texts = {getattr(entry, column) for entry in entries} - {None}
        plain = {text: labels.whole(text) or text for text in texts}
        if all(_is_number(text) for text in plain.values()) and plain.keys() != set(plain.values()):
            entries = [replace(e, **{column: plain[getattr(e, column)]}) for e in entries]
    return entries


def _is_number(text: str) -> bool:
    return text == str(JUNK) or _NUMBER.fullmatch(text) is not None


def _absolute(folder: str, written: str) -> str:
    """Return the absolute path of a path in a list, which may have backslashes from Windows."""
    path = normal(os.path.join(folder, written))
    if "\\" in written and not os.path.lexists(path):
        path = normal(os.path.join(folder, written.replace("\\", "/")))
    return path


def write(file: Path, entries: Sequence[Entry]) -> None:
    """Write a list for `read`; paths below its folder become relative.

    Names that are not UTF-8 keep their bytes.
    """
    folder = os.path.abspath(file.parent)
    used = [c for c in COLUMNS if any(getattr(entry, c) is not None for entry in entries)]
    rows = [used]
    for entry in entries:
        path = os.path.abspath(entry.path).removeprefix(folder + os.sep).replace(os.sep, "/")
        path = path if path == path.lstrip() else f"./{path}"  # readers strip cells
        rows.append([path, *(getattr(entry, column) for column in used[1:])])
    text = io.StringIO()
    has_returns = any("\r" in cell for row in rows for cell in row)  # which csv would not quote
    csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if has_returns else csv.QUOTE_MINIMAL
    ).writerows(rows)
    write_text(file, text.getvalue(), errors="surrogateescape")


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Return (line number, stripped cells) of the lines that are not blank."""
    if file.is_dir():
        lists = ", ".join(sorted(path.name for path in file.glob("*.csv"))) or "none is in it"
        raise UserError(f"{file} is a folder; name a CSV file ({lists})")
    rows: list[tuple[int, list[str]]] = []
    try:
        # file names need not be UTF-8; a table whose first line is not UTF-8 is no list
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            reader = csv.reader(text, strict=True, skipinitialspace=True)
            rows.extend((reader.line_num, [cell.strip() for cell in cells]) for cells in reader)
        rows = [(number, cells) for number, cells in rows if any(cells)]
        for _, header in rows[:1]:
            "".join(header).encode()
        return rows
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a CSV file of images is needed") from None
    except UnicodeError:
        raise UserError(f"{file} is not UTF-8; save the list as UTF-8") from None
    except csv.Error as error:
        line = rows[-1][0] + 1 if rows else 1
        raise UserError(f"{file}, line {line}: cannot be read as CSV: {error}; close each quote, "
                        "and write a quote inside of quotes twice") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as CSV in UTF-8: {error}") from None


def _check_header(file: Path, header: list[str]) -> None:
    faults = [f"no column {name}" for name in REQUIRED if name not in header]
    faults += [f"unknown column {name!r}" for name in header if name not in COLUMNS]
    faults += [f"column {name} appears twice" for name in COLUMNS if header.count(name) > 1]
    if faults:
        raise UserError(f"{file}, line 1: {'; '.join(faults)}; expected {','.join(REQUIRED)} and "
                        f"any of {', '.join(OPTIONAL)}, separated by commas")


def _faults(header: list[str], cells: list[str]) -> Iterator[str]:
    """Yield the faults of a single line."""
    if len(cells) != len(header):
        yield f"expected {len(header)} cells, found {len(cells)}"
        return
    for name, cell in zip(header, cells, strict=True):
        if not cell:
            yield f"{name} is empty"
        elif "\0" in cell:
            yield f"{name} holds a zero byte"
        elif name == "path" and not _names_image(cell):
            yield f"{cell} is no image ({', '.join(IMAGE_ENDINGS)})"
        elif name == "split" and cell not in PARTS:
            yield f"split is {cell!r}; one of {', '.join(PARTS)}"
        elif name in LABELS and (fault := labels.fault(name, cell)):
            yield fault


def _names_image(path: str) -> bool:
    """Return whether a path is an image's by its name, after slashes or Windows' backslashes."""
    return any(is_image(re.split(cut, path)[-1]) for cut in (r"/", r"[/\\]"))


def _parts(entries: Sequence[Entry]) -> dict[str, Records]:
    """Return the parts, each sorted by path: the order of lines must not change a result."""
    known = {column: numbers(getattr(entry, column) for entry in entries) for column in LABELS}
    rows: dict[str | None, list[Row]] = {part: [] for part in PARTS}
    for entry in entries:
        own = (of_text.get(getattr(entry, column), 0) for column, of_text in known.items())
        rows[entry.split].append(Row(entry.path, *own))
    return {part: Records.from_rows(sorted(rows[part])) for part in PARTS}


def numbers(texts: Iterable[str | None]) -> dict[str, int]:
    """Return a number for each text: its own where all are numbers, else its place when sorted."""
    distinct = sorted({text for text in texts if text is not None})
    if all(_NUMBER.fullmatch(text) for text in distinct):
        return {text: int(text) for text in distinct}
    return {text: place for place, text in enumerate(distinct)}


def ambiguities(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence for each two texts of a column, such as 7 and 007, that are one label."""
    return [
        fault for column in LABELS
        for fault in labels.alike(column, {getattr(e, column) for e in entries} - {None, str(JUNK)})
    ]


def _log_texts(file: Path, entries: Sequence[Entry]) -> None:
    """Log where texts are numbered: their numbers hold for this list alone."""
    for column in LABELS:
        texts_of = ((getattr(entry, column), entry.path) for entry in reversed(entries))
        first = {text: path for text, path in texts_of if text is not None}
        texts = sorted(text for text in first if not _NUMBER.fullmatch(text))
        numbered = f"so all {len(first)} are numbered from 0 in sorted order"
        if texts and 2 * len(texts) <= len(first):
            log.warning("%s: column %s has numbers and %s, such as %r of %s, %s", file, column,
                        counted(len(texts), "text"), texts[0], first[texts[0]], numbered)
        elif texts and column != "identity":
            log.info("%s: column %s has texts (%s), %s", file, column, examples(texts), numbered)


def _check_parts(file: Path, parts: dict[str, Records]) -> None:
    """Refuse half a test set; warn of identities in both training and test."""
    for name, other in (("query", "gallery"), ("gallery", "query")):
        if len(parts[other]) and not len(parts[name]):
            raise UserError(f"{file}: no image has split {name}; queries need a gallery")
    for name in PARTS[1:]:
        both = np.intersect1d(parts["train"].identities, parts[name].identities)
        if len(both):
            log.warning("%s: %d identities are in both train and %s", file, len(both), name)
