"""Shared by the readers of benchmarks: their description, finding them, reading names and lists.

Every image that a reader leaves out is counted in the log, or is an error.
"""

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np

from harness.base.errors import UserError
from harness.base.units import counted
from harness.images.pixels import IMAGE_ENDINGS
from svll.base.records import Dataset, Records, Row
from svll.data.readers.labels import JUNK

EXAMPLE = "0002_c1s1_000451_00.jpg"
"""A well-formed image name in Market-1501's layout."""
SHOWN = 5
"""How many names an error or a log line gives as examples."""
LISTED = 20
"""How many faults of a list an error shows."""

_LEFT_BY_SYSTEMS = {
    ".ds_store", "thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin",
    "lost+found", "system volume information",
}
"""In lower case; `@eaDir` of a Synology disk has small copies of all images."""
_NAME = re.compile(r"(-1|\d{1,18})_c(\d{1,9})(?!\d)", re.ASCII)

log = logging.getLogger(__name__)
_Item = TypeVar("_Item", bound=Any)


class Counts(NamedTuple):
    """The size of a part of a dataset; None where no number is published."""

    identities: int
    images: int | None


@dataclass(frozen=True)
class Published:
    """The numbers in a benchmark's papers."""

    train: Counts
    query: Counts
    gallery: Counts
    cameras: int


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's name, location and size."""

    name: str
    title: str
    folders: tuple[str, ...]
    """Usual names of its folder."""
    source: str
    """A sentence: where to get it."""
    published: Published | None = None
    note: str = ""
    """Logged where numbers differ from the published ones."""
    example: str = EXAMPLE
    """A well-formed image name, where names contain the labels."""


class Listed(NamedTuple):
    """A line of a list: an image, its identity, and the line's place."""

    name: str
    identity: int
    where: str


# --- finding ---


def candidates(root: Path, benchmark: Benchmark) -> list[Path]:
    """Return the folders in which a benchmark may lie: the root and the usual names below it."""
    return [root, *(root / name for name in benchmark.folders)]


def find(root: str | Path, benchmark: Benchmark, needs: Sequence[str]) -> Path:
    """Return the first folder that holds all `needs` (folders or files); UserError if none does."""
    for folder in candidates(Path(root), benchmark):
        if not lacking(folder, needs):
            if folder != Path(root):
                log.info("%s: read from %s", benchmark.title, folder)
            return folder
    raise not_found(Path(root), benchmark, [needs])


def lacking(folder: Path, needs: Sequence[str]) -> list[str]:
    """Return which of `needs` a folder does not hold."""
    return [name for name in needs if not (folder / name).exists()]


def not_found(root: Path, benchmark: Benchmark, layouts: Sequence[Sequence[str]]) -> UserError:
    """Return the error that says where a benchmark was looked for and where to get it.

    `layouts` are sets of names, one of which is required.
    """
    lines = [f"  {folder}{_lacks(folder, layouts)}" for folder in candidates(root, benchmark)]
    wanted = "; or ".join(", ".join(needs) for needs in layouts)
    return UserError("\n".join([
        f"no {benchmark.title} was found. Looked in:", *lines,
        f"Give the folder that holds {wanted} (data.root=DIR, or --root DIR).", benchmark.source,
    ]))


def _lacks(folder: Path, layouts: Sequence[Sequence[str]]) -> str:
    if not folder.is_dir():
        return " (a file)" if folder.exists() else " (no such folder)"
    missing = [", ".join(lacking(folder, needs)) for needs in layouts]
    return f" (lacks {'; or '.join(missing)})"


# --- folders ---


def is_image(name: str) -> bool:
    """Tell whether a file name is an image's; case does not matter."""
    return name.lower().endswith(IMAGE_ENDINGS) and not is_hidden(name)


def is_left_by_a_system(name: str) -> bool:
    """Tell whether an operating system made a file, or a folder, which has a slash at its end."""
    return name.lower().removesuffix("/") in _LEFT_BY_SYSTEMS or (
        name.startswith("._") and not name.endswith("/")
    )


def is_hidden(name: str) -> bool:
    """Tell whether a name begins with a dot, or an operating system made it."""
    return name.startswith(".") or is_left_by_a_system(name)


def image_names(folder: Path, skipped: list[str], *, ignoring: Collection[str] = ()) -> list[str]:
    """Return the names of the images directly in a folder, sorted.

    Adds the names of other files, and of folders with a slash at the end, to `skipped` for
    `log_skipped`; names in `ignoring` are left out. Raises UserError for a file.
    """
    try:
        with os.scandir(folder) as entries:
            found = {e.name: _is_folder(e) for e in entries if e.name not in ignoring}
    except NotADirectoryError as error:
        unreadable(error)
    images = sorted(name for name, is_folder in found.items() if is_image(name) and not is_folder)
    others = sorted(found.keys() - set(images))
    skipped += [f"{name}/" if found[name] else name for name in others]
    return images


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()


def unreadable(error: OSError) -> NoReturn:
    """Raise the error of a folder that cannot be listed; `os.walk` would pass it over."""
    if isinstance(error, NotADirectoryError):
        raise UserError(f"{error.filename} is a file; a folder of images is needed") from None
    raise error


def log_beside(folder: Path, used: Collection[str]) -> None:
    """Log what lies in a dataset's folder beside the parts that are `used`."""
    others: list[str] = []
    images = image_names(folder, others, ignoring=used)
    if images:
        log.warning("%s: %s beside the folders of images, not read (%s)", folder,
                    counted(len(images), "image"), examples(images))
    if others := [name for name in others if not is_left_by_a_system(name)]:
        log.info("%s: not read: %s", folder, examples(others))


def log_skipped(where: object, skipped: Iterable[str]) -> None:
    """Log, once for all folders of a dataset, which files and folders were skipped."""
    if text := _skipped_text(skipped):
        log.warning("%s: %s", where, text)


def _skipped_text(names: Iterable[str]) -> str:
    """Return a sentence on files, by their endings, and folders; empty where there are none."""
    names = [name for name in names if not is_left_by_a_system(name)]
    folders = [name for name in names if name.endswith("/")]
    files = [name for name in names if not name.startswith(".") and not name.endswith("/")]
    hidden = [name for name in names if name[0] == "." and name.lower().endswith(IMAGE_ENDINGS)]
    endings = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in files)
    kinds = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
    parts = [
        f"{counted(len(found), what)} ({text})" for found, what, text in (
            (files, "file", f"unsupported: {kinds}"), (hidden, "hidden image", examples(hidden)),
            (folders, "folder", examples(folders)),
        ) if found
    ]
    together = " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)
    return f"Skipped {together}" if parts else ""


def no_images(folder: Path, skipped: Iterable[str]) -> UserError:
    """Return the error for a folder without images, which says what is there instead."""
    others = f". {text}" if (text := _skipped_text(skipped)) else ""
    return UserError(f"{folder}: no images there ({', '.join(IMAGE_ENDINGS)}){others}")


def examples(names: Sequence[str]) -> str:
    """Return the first few names as a text."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def find_images(place: Path) -> list[Path]:
    """Return the images below a folder, sorted, or `place` itself if it is a file.

    Other files, hidden images and hidden folders are counted in the log. Raises UserError when
    there are no images.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such folder or image")
    skipped: list[str] = []
    images = sorted(folder / name for folder, below in folders(place)
                    for name in image_names(folder, skipped, ignoring=below))
    if not images:
        raise no_images(place, skipped)
    log_skipped(place, skipped)
    return images


def folders(place: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, linked ones too, each once, and the names of the folders
    in it, without hidden ones."""
    seen = set()
    for name, below, _ in os.walk(place, followlinks=True, onerror=unreadable):
        real = os.path.realpath(name)
        shown = [one for one in below if not is_hidden(one)]
        below[:] = [] if real in seen else shown
        if real not in seen:
            yield Path(name), shown
        seen.add(real)


def parse_names(folder: Path, skipped: list[str]) -> tuple[list[Row], list[str]]:
    """Return the images of a folder that `parse_name` can parse, and the names of the others."""
    labels = {name: parse_name(name) for name in image_names(folder, skipped)}
    rows = [Row(f"{folder}{os.sep}{name}", *label) for name, label in labels.items() if label]
    return rows, [name for name, label in labels.items() if not label]


def parse_name(name: str) -> tuple[int, int] | None:
    """Return the identity and camera at the start of a name like 0002_c1s1_000451_00.jpg."""
    match = _NAME.match(name)
    return (int(match[1]), int(match[2])) if match else None


def without_junk(where: object, items: Iterable[_Item]) -> list[_Item]:
    """Return the items whose identity is not JUNK; logs how many were dropped."""
    items = list(items)
    kept = [item for item in items if str(item.identity) != str(JUNK)]
    if dropped := len(items) - len(kept):
        log.info("%s: dropped %d junk images (identity %d)", where, dropped, JUNK)
    return kept


# --- lists ---


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return (number, text) of a list's lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}") from None
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {number}: a zero byte; the file is damaged")
    # not splitlines(), which also splits at characters that may occur in a name
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_lists(*paths: Path) -> list[Listed]:
    """Return the lines "name identity" of the lists that make up a part, without junk.

    Raises UserError naming all malformed lines, and those that repeat an image.
    """
    lines: dict[str, Listed] = {}
    faults: list[str] = []
    for path in paths:
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            fields = line.replace("\\", "/").rsplit(maxsplit=1)
            name = posixpath.normpath(fields[0])
            if len(fields) != 2 or not re.fullmatch(r"-1|\d{1,18}", fields[1], re.ASCII):
                faults.append(f'{where}: expected "name identity", found {line[:80]!r}')
            elif name.startswith(("/", "../")):
                faults.append(f"{where}: {fields[0]} lies outside of the dataset's folder")
            elif name in lines:
                faults.append(f"{where}: {name} is named by {lines[name].where} already")
            else:
                lines[name] = Listed(name, int(fields[1]), where)
    raise_faults(faults)
    lists = ", ".join(map(str, paths))
    kept = without_junk(lists, lines.values())
    if not kept:
        raise UserError(f"{lists}: no image is listed")
    return kept


def raise_faults(faults: Sequence[str]) -> None:
    """Raise UserError with all faults, or the first ones of very many, if there are any."""
    if left := len(faults[LISTED:]):
        faults = [*faults[:LISTED], f"and {left} more lines at fault"]
    if faults:
        raise UserError("\n".join(faults))


# --- numbers ---


def counts(records: Records) -> tuple[int, int]:
    """Return the numbers of identities and of images."""
    return len(np.unique(records.identities)), len(records)


def cameras(parts: Iterable[Records]) -> int:
    """Return the number of cameras of all parts together."""
    return len(np.unique(np.concatenate([part.cameras for part in parts])))


def warn_of_counts(dataset: Dataset, benchmark: Benchmark, root: str | Path) -> None:
    """Log a warning for each number that differs from the published one: people have subsets."""
    if (published := benchmark.published) is None:
        return
    parts = dataset.parts()
    if dataset.query is dataset.gallery:
        del parts["gallery"]
    lines = []
    for name, part in parts.items():
        expected: Counts = getattr(published, name)
        for what, number, right in zip(expected._fields, counts(part), expected, strict=True):
            if right is not None and number != right:
                lines.append(f"{number} {name} {what}; {benchmark.title} has {right}")
    if (number := cameras(parts.values())) != published.cameras:
        lines.append(f"{number} cameras; {benchmark.title} has {published.cameras}")
    if lines and benchmark.note:
        lines.append(benchmark.note)
    for line in lines:
        log.warning("%s: %s", root, line)
