"""A user's own images as a CSV file: path,identity[,camera][,view][,split].

Identities, cameras and views may be any text; sorted distinct texts become numbers from 0, unless
all are numbers already. Paths are relative to the file's folder.
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
from harness.base.paths import is_utf8, normal, shown
from harness.images.pixels import IMAGE_ENDINGS
from svll.base.records import PARTS, Dataset, Records, Row
from svll.data.readers.common import JUNK, is_image, raise_faults, say_junk

REQUIRED = ("path", "identity")
OPTIONAL = ("camera", "view", "split")
COLUMNS = REQUIRED + OPTIONAL

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_WHOLE = re.compile(r"(-?\d{1,18})(?:\.0+)?", re.ASCII)
"""A whole number, also as tables write it that know only numbers with a point."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One image of a list, as it is written there; None in columns that the list does not have."""

    path: str
    """As it is opened: the list's folder stands before a relative one."""
    identity: str
    camera: str | None = None
    view: str | None = None
    split: str | None = None


def load(file: str | Path) -> Dataset:
    """Read a list with a split column.

    Without a camera column all cameras are 0 and the protocol is `all_gallery`, which leaves no
    gallery image out. Raises UserError with all faults of the file.
    """
    file = Path(file)
    entries = read(file)
    if any(entry.split is None for entry in entries):
        raise UserError(
            f"{file} has no column split ({', '.join(PARTS)}). To draw one: "
            f"python launch/data.py split --root {file} --out NEW.csv"
        )
    kept = [entry for entry in entries if entry.identity != str(JUNK)]
    say_junk(str(file), len(entries) - len(kept))
    parts = _parts(kept)
    _check_parts(file, parts)
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
        raise UserError(f"{file} is empty; its first line must be {','.join(COLUMNS[:2])},...")
    (_, header), *lines = rows
    header = [name.strip() for name in header]
    _check_header(file, header)
    folder = os.path.abspath(file.parent)
    entries, faults = [], []
    seen: dict[str, int] = {}
    for number, cells in lines:
        cells = [cell.strip() for cell in cells]
        wrong = list(_faults(header, cells))
        if not wrong:
            values = dict(zip(header, cells, strict=True))
            written = values["path"]
            values["path"] = path = _place(folder, written)
            if _is_junk("identity", values["identity"]):
                values["identity"] = str(JUNK)
            if (before := seen.setdefault(path, number)) != number:
                wrong.append(f"{written} is on line {before} already")
            if not is_utf8(written) and not os.path.exists(path):
                wrong.append(f"{shown(written)} is not UTF-8, and no file has that name; save "
                             "the list as UTF-8")
            entries.append(Entry(**values))
        faults += [f"{file}, line {number}: {fault}" for fault in wrong]
    entries = _without_points(entries)
    raise_faults(faults or [f"{file}: {fault}" for fault in ambiguities(entries)])
    if not entries:
        raise UserError(f"{file} lists no images")
    return entries


def _without_points(entries: list[Entry]) -> list[Entry]:
    """Return entries whose columns of whole numbers have them without a point: 7 for 7.0."""
    for column in ("identity", "camera", "view"):
        texts = {getattr(entry, column) for entry in entries}
        plain = {text: match[1] for text in texts if text and (match := _WHOLE.fullmatch(text))}
        if len(plain) == len(texts) and plain.keys() != set(plain.values()):
            entries = [replace(e, **{column: plain[getattr(e, column)]}) for e in entries]
    return entries


def _place(folder: str, written: str) -> str:
    """Return the file that a path in a list means; Windows writes its folders with backslashes."""
    path = normal(os.path.join(folder, written))
    if "\\" in written and not os.path.exists(path):
        path = normal(os.path.join(folder, written.replace("\\", "/")))
    return path


def write(file: Path, entries: Sequence[Entry]) -> None:
    """Write a list that `read` gives back; images below its folder are named from there.

    Names that are not UTF-8 keep their bytes.
    """
    folder = os.path.abspath(file.parent)
    used = [c for c in COLUMNS if any(getattr(entry, c) is not None for entry in entries)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(used)
    for entry in entries:
        path = os.path.abspath(entry.path)
        if path.startswith(folder + os.sep):
            path = path[len(folder) + 1 :]
        named = {"path": path.replace(os.sep, "/")}
        writer.writerow([named.get(column, getattr(entry, column)) for column in used])
    write_text(file, text.getvalue(), errors="surrogateescape")


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of the lines that are not blank."""
    if file.is_dir():
        lists = ", ".join(sorted(path.name for path in file.glob("*.csv"))) or "none is in it"
        raise UserError(f"{file} is a folder; name a CSV file ({lists})")
    try:
        # names of files need not be UTF-8; a table whose first line is not UTF-8 is no list
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            reader = csv.reader(text, strict=True)
            rows = [
                (reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)
            ]
        for _, header in rows[:1]:
            "".join(header).encode()
        return rows
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a CSV file of images is needed") from None
    except UnicodeError:
        raise UserError(f"{file} is not UTF-8; save the list as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as CSV in UTF-8: {error}") from None


def _check_header(file: Path, header: list[str]) -> None:
    faults = [f"no column {name}" for name in REQUIRED if name not in header]
    faults += [f"unknown column {name!r}" for name in header if name not in COLUMNS]
    faults += [
        f"column {name} appears twice" for name in COLUMNS if header.count(name) > 1
    ]
    if faults:
        raise UserError(
            f"{file}, line 1: {'; '.join(faults)}; expected {','.join(REQUIRED)} and any of "
            f"{', '.join(OPTIONAL)}, separated by commas"
        )


def _faults(header: list[str], cells: list[str]) -> Iterator[str]:
    """Yield what is wrong with a line by itself."""
    if len(cells) != len(header):
        yield f"expected {len(header)} cells, found {len(cells)}"
        return
    for name, cell in zip(header, cells, strict=True):
        if not cell:
            yield f"{name} is empty"
        elif name == "path" and not is_image(cell.replace("\\", "/").rpartition("/")[2]):
            yield f"{cell} is no image ({', '.join(IMAGE_ENDINGS)})"
        elif name == "split" and cell not in PARTS:
            yield f"split is {cell!r}; one of {', '.join(PARTS)}"
        elif cell.startswith("-") and _WHOLE.fullmatch(cell) and not _is_junk(name, cell):
            yield f"{name} is {cell}; numbers may not be negative"


def _is_junk(name: str, cell: str) -> bool:
    return name == "identity" and (match := _WHOLE.fullmatch(cell)) is not None and (
        int(match[1]) == JUNK
    )


def _parts(entries: Sequence[Entry]) -> dict[str, Records]:
    """Return the parts, each sorted by path: the order of lines must not change a result."""
    identities = numbers(entry.identity for entry in entries)
    cameras = numbers(entry.camera for entry in entries if entry.camera is not None)
    views = numbers(entry.view for entry in entries if entry.view is not None)
    rows: dict[str, list[Row]] = {part: [] for part in PARTS}
    for entry in entries:
        assert entry.split is not None
        rows[entry.split].append(
            Row(
                entry.path, identities[entry.identity],
                0 if entry.camera is None else cameras[entry.camera],
                0 if entry.view is None else views[entry.view],
            )
        )  # fmt: skip
    return {part: Records.from_rows(sorted(found)) for part, found in rows.items()}


def numbers(texts: Iterable[str]) -> dict[str, int]:
    """Return a number for each text: its own where all are numbers, else its place when sorted."""
    distinct = sorted(set(texts))
    if all(_NUMBER.fullmatch(text) for text in distinct):
        return {text: int(text) for text in distinct}
    return {text: place for place, text in enumerate(distinct)}


def ambiguities(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence for each column in which two texts, such as 7 and 007, are one number."""
    found = []
    for column in ("identity", "camera", "view"):
        texts = {text for entry in entries if (text := getattr(entry, column)) is not None}
        texts -= {str(JUNK)}
        first: dict[int, str] = {}
        if all(_NUMBER.fullmatch(text) for text in texts):
            for text in sorted(texts):
                if (before := first.setdefault(int(text), text)) != text:
                    found.append(
                        f"column {column} has both {before} and {text}, which are one number; "
                        "write them alike, or any of them with a letter if they differ"
                    )
    return found


def _check_parts(file: Path, parts: dict[str, Records]) -> None:
    """Refuse half a test set; warn of identities that are trained on and tested with."""
    if not len(parts["query"]) == len(parts["gallery"]) == 0:
        for name in ("query", "gallery"):
            if not len(parts[name]):
                raise UserError(f"{file}: no image has split {name}; queries need a gallery")
    train = np.unique(parts["train"].identities)
    for name in PARTS[1:]:
        both = np.intersect1d(train, parts[name].identities)
        if len(both):
            log.warning("%s: %d identities are in both train and %s", file, len(both), name)


assert tuple(field.name for field in fields(Entry)) == COLUMNS
