"""What the readers of benchmarks share: describing one, finding it, and reading names and lists.

No image is left out in silence: whatever a reader does not take is counted in the log, or an error.
"""

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.base.errors import UserError
from harness.images.pixels import IMAGE_ENDINGS
from svll.base.records import Dataset, Records, Row

JUNK = -1
"""The identity of detections that show nobody; they are no part of any benchmark."""
SHOWN = 5
"""How many names an error or a log line gives as examples."""
LISTED = 20
"""How many faults of a list are shown."""

_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx"}
_NAME = re.compile(r"(-1|\d{1,18})_c(\d{1,9})(?!\d)", re.ASCII)

log = logging.getLogger(__name__)


class Counts(NamedTuple):
    """How much a part of a dataset holds; None where no number is published."""

    identities: int
    images: int | None


@dataclass(frozen=True)
class Published:
    """The numbers that a benchmark's papers give."""

    train: Counts
    query: Counts
    gallery: Counts
    cameras: int


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark is called, where it lies and what it should hold."""

    name: str
    title: str
    folders: tuple[str, ...]
    """What its folder is usually called."""
    source: str
    """A sentence: where to get it."""
    published: Published | None = None
    note: str = ""
    """Said where numbers differ."""


class Listed(NamedTuple):
    """A line of a list: an image, its identity, and where that is written."""

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

    `layouts` are the sets of names of which one should have been there.
    """
    lines = [f"  {folder}{_lacks(folder, layouts)}" for folder in candidates(root, benchmark)]
    wanted = "; or ".join(", ".join(needs) for needs in layouts)
    return UserError(
        f"no {benchmark.title} was found. Looked in:\n"
        + "\n".join(lines)
        + f"\nGive the folder that holds {wanted} (data.root=DIR, or --root DIR).\n"
        + benchmark.source
    )


def _lacks(folder: Path, layouts: Sequence[Sequence[str]]) -> str:
    if not folder.is_dir():
        return " (a file)" if folder.exists() else " (no such folder)"
    missing = [", ".join(lacking(folder, needs)) for needs in layouts]
    return f" (lacks {'; or '.join(missing)})"


# --- folders ---


def is_image(name: str) -> bool:
    """Tell whether a file's name is one of an image, whatever its case."""
    return name.lower().endswith(IMAGE_ENDINGS) and not is_left_by_a_system(name)


def is_left_by_a_system(name: str) -> bool:
    """Tell whether a desktop put a file there by itself; a Mac's begin with a dot."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def image_names(folder: Path, skipped: list[str], *, ignoring: Collection[str] = ()) -> list[str]:
    """Return the names of the images right in a folder, sorted.

    The names of other files are added to `skipped`, for `say_skipped`, and so are those of folders,
    with a slash at the end, unless they are in `ignoring`.
    """
    names = sorted(set(os.listdir(folder)) - set(ignoring))
    skipped += [
        f"{name}/" if (folder / name).is_dir() else name for name in names if not is_image(name)
    ]
    return [name for name in names if is_image(name)]


def say_skipped(where: object, skipped: Iterable[str]) -> None:
    """Log, once for all folders of a dataset, which files and folders were not taken."""
    if text := skipped_text(skipped):
        log.warning("%s: %s", where, text)


def skipped_text(names: Iterable[str]) -> str:
    """Return a sentence on files by their endings and on folders; empty where there are none.

    Files that a desktop put there are not worth a word.
    """
    names = [name for name in names if not is_left_by_a_system(name.rstrip("/"))]
    folders = [name for name in names if name.endswith("/")]
    endings = Counter(
        os.path.splitext(name)[1].lower() or "no ending" for name in names if name[-1:] != "/"
    )
    parts = []
    if files := endings.total():
        kinds = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
        parts.append(f"{files} file{'s' * (files > 1)} (unsupported: {kinds})")
    if folders:
        parts.append(f"{len(folders)} folder{'s' * (len(folders) > 1)} ({examples(folders)})")
    return f"Skipped {' and '.join(parts)}" if parts else ""


def no_images(folder: Path, skipped: Iterable[str]) -> UserError:
    """Return the error for a folder without images, which says what is there."""
    found = f". {text}" if (text := skipped_text(skipped)) else ""
    return UserError(f"{folder}: no images there ({', '.join(IMAGE_ENDINGS)}){found}")


def examples(names: Sequence[str]) -> str:
    """Return the first few names as a text."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def read_named(
    folders: Mapping[str, Path], *, views: Mapping[str, int] | None = None, example: str
) -> tuple[dict[str, Records], int]:
    """Read parts, one folder each, whose images' names begin with identity and camera.

    `views` gives the side seen, by "folder/name"; `example` is a well-formed name. Returns the
    parts and the number that names give to camera 0 of the records: 1, or 0 where a name has it.
    Raises UserError when a part has no images, or a name cannot be read.
    """
    views = views or {}
    skipped: list[str] = []
    read = {part: _read_names(folder, example, skipped) for part, folder in folders.items()}
    say_skipped(os.path.commonpath(folders.values()), skipped)
    first = min((camera for rows in read.values() for *_, camera in rows), default=1)
    shift = min(first, 1)
    parts = {
        part: Records.from_rows(
            Row(f"{folders[part]}{os.sep}{name}", identity, camera - shift,
                views.get(f"{folders[part].name}/{name}", 0))
            for name, identity, camera in rows
        )
        for part, rows in read.items()
    }  # fmt: skip
    return parts, shift


def _read_names(
    folder: Path, example: str, skipped: list[str]
) -> list[tuple[str, int, int]]:
    """Return (name, identity, camera) of the images in a folder, sorted by name, without junk."""
    named = [(name, parse_name(name)) for name in image_names(folder, skipped)]
    strange = [name for name, labels in named if labels is None]
    if strange:
        raise UserError(
            f"{folder}: {len(strange)} images are not named like {example}: {examples(strange)}"
        )
    rows = [(name, *labels) for name, labels in named if labels is not None]
    kept = [row for row in rows if row[1] != JUNK]
    say_junk(str(folder), len(rows) - len(kept))
    if not kept:
        raise no_images(folder, skipped)
    return kept


def parse_name(name: str) -> tuple[int, int] | None:
    """Return the identity and camera that a name like 0002_c1s1_000451_00.jpg begins with."""
    match = _NAME.match(name)
    return (int(match[1]), int(match[2])) if match else None


def say_junk(where: str, count: int) -> None:
    """Log how many images were dropped because they show nobody."""
    if count:
        log.info("%s: dropped %d junk images (identity %d)", where, count, JUNK)


# --- lists ---


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return (number, text) of the lines of a list that are not blank, whatever ends them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}") from None
    # not splitlines(), which also splits at characters that may stand in a name
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_lists(*paths: Path) -> list[Listed]:
    """Return the lines "name identity" of one or several lists that make up a part, without junk.

    Raises UserError naming all malformed lines, and those that name an image for a second time.
    """
    found: dict[str, Listed] = {}
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
            elif name in found:
                faults.append(f"{where}: {name} is named by {found[name].where} already")
            else:
                found[name] = Listed(name, int(fields[1]), where)
    raise_faults(faults)
    kept = [line for line in found.values() if line.identity != JUNK]
    say_junk(", ".join(map(str, paths)), len(found) - len(kept))
    if not kept:
        raise UserError(f"{', '.join(map(str, paths))}: no image is listed")
    return kept


def raise_faults(faults: Sequence[str], *, what: str = "lines") -> None:
    """Raise UserError with all faults, or the first ones of very many, if there are any."""
    if len(faults) > LISTED:
        left = len(faults) - LISTED
        faults = [*faults[:LISTED], f"and {left} more {what} at fault"]
    if faults:
        raise UserError("\n".join(faults))


# --- numbers ---


def counts(records: Records) -> tuple[int, int]:
    """Return the numbers of identities and of images."""
    return len(np.unique(records.identities)), len(records)


def cameras(parts: Iterable[Records]) -> int:
    """Return the number of cameras that took any of the images."""
    return len(np.unique(np.concatenate([part.cameras for part in parts])))


def warn_of_counts(dataset: Dataset, benchmark: Benchmark, root: str | Path) -> None:
    """Log a warning for each number that differs from the published one: people have subsets."""
    for line in count_differences(dataset, benchmark):
        log.warning("%s: %s", root, line)


def count_differences(dataset: Dataset, benchmark: Benchmark) -> list[str]:
    """Return a sentence, with both numbers, for each that differs from the published one."""
    if (published := benchmark.published) is None:
        return []
    parts = dataset.parts()
    if dataset.query is dataset.gallery:
        parts = {"train": dataset.train, "query": dataset.query}
    lines = []
    for name, part in parts.items():
        expected: Counts = getattr(published, name)
        for what, found, right in zip(expected._fields, counts(part), expected, strict=True):
            if right is not None and found != right:
                lines.append(f"{found} {name} {what}; {benchmark.title} has {right}")
    if (found := cameras(parts.values())) != published.cameras:
        lines.append(f"{found} cameras; {benchmark.title} has {published.cameras}")
    return [*lines, benchmark.note] if lines and benchmark.note else lines
