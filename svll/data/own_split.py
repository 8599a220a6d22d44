"""A seeded split of a user's own images into train, validation, query and gallery.

No identity is in two of train, validation and test. The result is a list (`image_list`), and a
function of seed and images alone: files are sorted by name before anything is drawn.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import check_writable
from harness.base.rng import generator
from svll.data.readers import csv_list as image_list
from svll.data.readers.common import (
    JUNK,
    examples,
    image_names,
    is_image,
    is_left_by_a_system,
    no_images,
    parse_name,
    raise_faults,
    say_junk,
    say_skipped,
)
from svll.data.readers.csv_list import Entry
from svll.data.readers.market1501 import EXAMPLE

_PARTS, _QUERIES = 31, 32
"""Keys of the generators: which part an identity goes to, which images ask for it."""

LEAST_TRAINED = 6
"""Identities that a default validation part leaves for training."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How images are split."""

    test: float | None = None
    """Share of the identities that query and gallery are made of; None: half, or as many as can be
    found again."""
    validation: float | None = None
    """Share of the other identities that is held back for selection; None: a tenth, 2 at least,
    and none where training would be left with fewer than 6."""
    queries: int | None = None
    """Images per test identity that ask for it, where cameras are unknown; None: 1. Where they are
    known, there is one query per identity and camera."""
    seed: int = 1

    def __post_init__(self) -> None:
        faults = []
        if self.test is not None and not 0 < self.test < 1:
            faults.append(f"test must lie between 0 and 1, found {self.test}")
        if self.validation is not None and not 0 <= self.validation < 1:
            faults.append(f"validation must be at least 0 and less than 1, found {self.validation}")
        if self.queries is not None and self.queries < 1:
            faults.append(f"queries must be at least 1, found {self.queries}")
        if faults:
            raise UserError("\n".join(faults))


def write_split(root: str | Path, out: str | Path, options: Options) -> list[Entry]:
    """Split the images below `root` and write the list `out`; returns what it holds.

    Raises UserError when `out` is there already or cannot be written, and as `collect` and `split`
    do.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} is there already; name another file or delete it")
    check_writable(out)  # before a large folder is walked through
    entries = split(collect(root), options)
    image_list.write(out, entries)
    return entries


# --- what there is ---


def collect(root: str | Path) -> list[Entry]:
    """Return the images of a folder or CSV list without split, sorted by path, without junk.

    A folder holds one folder per identity, with its images at any depth, or else images whose names
    begin with identity and camera. In the former, cameras are known if all names begin so; if only
    most do, the others are a mistake. Raises UserError for anything else, and for a list with a
    split.
    """
    root = Path(root)
    if root.is_file():
        entries = image_list.read(root)
        if entries[0].split is not None:
            raise UserError(f"{root} has a column split already; it is read as it is")
    elif root.is_dir():
        entries = _of_folder(root)
    else:
        raise UserError(f"{root}: no such folder or CSV file")
    kept = [entry for entry in entries if entry.identity != str(JUNK)]
    say_junk(str(root), len(entries) - len(kept))
    if not kept:
        raise no_images(root, [])
    raise_faults([f"{root}: {fault}" for fault in image_list.ambiguities(kept)])
    return sorted(kept, key=lambda entry: entry.path)


def _of_folder(root: Path) -> list[Entry]:
    below = sorted(
        entry.name for entry in os.scandir(root)
        if entry.is_dir() and not is_left_by_a_system(entry.name)
    )  # fmt: skip
    loose = [entry.name for entry in os.scandir(root) if entry.is_file() and is_image(entry.name)]
    if below and loose:
        raise UserError(
            f"{root} holds {len(below)} folders ({examples(below)}) and {len(loose)} images beside "
            f"them ({examples(sorted(loose))}); either have a folder per identity or none at all"
        )
    return _of_folders(root, below) if below else _of_names(root)


def _of_folders(root: Path, identities: Sequence[str]) -> list[Entry]:
    skipped: list[str] = []
    entries = [
        Entry(path, identity)
        for identity in identities for path in _images(root / identity, skipped)
    ]
    say_skipped(root, skipped)
    images = Counter(entry.identity for entry in entries)
    if empty := [identity for identity in identities if not images[identity]]:
        log.warning("%s: %d folders have no images (%s)", root, len(empty), examples(empty))
    labels = [parse_name(os.path.basename(entry.path)) for entry in entries]
    known = [str(label[1]) for label in labels if label is not None]
    strange = [e.path for e, label in zip(entries, labels, strict=True) if label is None]
    if not strange:
        return [replace(entry, camera=camera) for entry, camera in zip(entries, known, strict=True)]
    if len(known) > len(strange):
        raise UserError(
            f"{root}: {len(known)} images are named like {EXAMPLE}, which gives their camera, "
            f"{len(strange)} are not: {examples(strange)}; rename or remove these, or write a CSV "
            "list (path,identity) if cameras are not meant"
        )
    if known:
        log.info("%s: %d of %d names give a camera, which is not used", root, len(known),
                 len(entries))
    return entries


def _images(folder: Path, skipped: list[str]) -> Iterator[str]:
    """Yield the images below a folder, at any depth; other files are added to `skipped`."""
    for place, below, _ in os.walk(folder):
        below[:] = [name for name in below if not is_left_by_a_system(name)]
        names = image_names(Path(place), skipped, ignoring=below)
        yield from (os.path.join(place, name) for name in names)


def _of_names(root: Path) -> list[Entry]:
    skipped: list[str] = []
    named = [(name, parse_name(name)) for name in image_names(root, skipped)]
    say_skipped(root, skipped)
    if strange := [name for name, labels in named if labels is None]:
        raise UserError(
            f"{root}: {len(strange)} images are neither in a folder per identity nor named like "
            f"{EXAMPLE} (identity and camera first): {examples(strange)}"
        )
    return [
        Entry(str(root / name), str(labels[0]), str(labels[1]))
        for name, labels in named if labels is not None
    ]  # fmt: skip


# --- who goes where ---


def split(entries: Sequence[Entry], options: Options) -> list[Entry]:
    """Give each image its part; `entries` in a fixed order.

    Identities that cannot be found again (a single image, or a single camera among several) go to
    training. Raises UserError when a part would be left with fewer than 2 identities, or `queries`
    is given although cameras are known.
    """
    if len({entry.camera for entry in entries}) == 1 and entries[0].camera is not None:
        log.warning("all images are of one camera, so the list is written without cameras")
        entries = [replace(entry, camera=None) for entry in entries]
    has_cameras = entries[0].camera is not None
    if has_cameras and options.queries is not None:
        raise UserError("queries: cameras are known, so each identity has one query per camera")
    images: dict[str, list[Entry]] = {}
    for entry in entries:
        images.setdefault(entry.identity, []).append(entry)
    parts = _assign(images, options, has_cameras)
    draw = generator(options.seed, _QUERIES)
    asking: set[str] = set()
    for identity in sorted(images):
        if parts[identity] == "test":
            order = [images[identity][row] for row in draw.permutation(len(images[identity]))]
            chosen = _per_camera(order) if has_cameras else order[: options.queries or 1]
            # one at least is left to be found
            asking.update(entry.path for entry in chosen[: len(order) - 1])
    return [
        replace(entry, split=_part(parts[entry.identity], entry.path in asking))
        for entry in entries
    ]


def _part(part: str, asks: bool) -> str:
    if part != "test":
        return part
    return "query" if asks else "gallery"


def _assign(images: dict[str, list[Entry]], options: Options, has_cameras: bool) -> dict[str, str]:
    """Return the part of each identity: train, validation or test."""
    identities = sorted(images)
    fit = [identity for identity in identities if _can_be_found(images[identity], has_cameras)]
    test, validation = _counts(len(identities), len(fit), options)
    train = len(identities) - test - validation
    asked = (f"of {len(identities)} identities {train} would be trained on, {validation} held back "
             f"and {test} tested")
    if len(identities) >= 4 and len(fit) < 2:
        two = "two images of different cameras" if has_cameras else "two images"
        raise UserError(f"{len(fit)} of {len(identities)} identities can be found again: {two} "
                        "are needed, of 2 identities")
    if test < 2 or train < 2 or (options.validation and validation < 2):
        raise UserError(f"{asked}; each part needs at least 2{_advice(len(identities), options)}")
    if len(fit) < test + validation:
        raise UserError(
            f"{asked}, and only {len(fit)} can be found again (two images"
            f"{', of different cameras' if has_cameras else ''}); ask for fewer with --test and "
            "--validation"
        )
    if left := len(identities) - len(fit):
        log.info("%d identities that cannot be found again go to training", left)
    order = [fit[row] for row in generator(options.seed, _PARTS).permutation(len(fit))]
    parts = dict.fromkeys(identities, "train")
    parts |= dict.fromkeys(order[:test], "test")
    return parts | dict.fromkeys(order[test : test + validation], "validation")


def _counts(identities: int, fit: int, options: Options) -> tuple[int, int]:
    """Return how many identities are tested and held back; what was not asked for is logged."""
    test = round((0.5 if options.test is None else options.test) * identities)
    if options.test is None:
        test = min(test, fit)
    left = identities - test
    if options.validation is not None:
        return test, round(options.validation * left)
    validation = min(max(2, round(0.1 * left)), fit - test)
    if fit - test < 2:
        log.info("%d identities beside those tested can be found again, and validation needs 2: "
                 "none is held back for validation", max(0, fit - test))
        return test, 0
    if left - validation < LEAST_TRAINED:
        log.info("%d identities are left for training, so none is held back for validation", left)
        return test, 0
    return test, validation


def _advice(identities: int, options: Options) -> str:
    if identities < 4:
        return ", so at least 4 identities are needed"
    asked = (options.test, options.validation)
    return "" if asked == (None, None) else "; leave out --test and --validation, or change them"


def _can_be_found(images: Sequence[Entry], has_cameras: bool) -> bool:
    return len({entry.camera for entry in images} if has_cameras else images) > 1


def _per_camera(images: Sequence[Entry]) -> list[Entry]:
    """Return the first image of each camera, as long as every query keeps a match elsewhere.

    Where a camera gives its only image away, the others may have nothing left to be found.
    """
    left = Counter(entry.camera for entry in images)
    chosen: dict[str | None, Entry] = {}
    for entry in images:
        if entry.camera in chosen:
            continue
        after = left - Counter([entry.camera])
        asking = {*chosen, entry.camera}
        if all(any(other != camera for other in after) for camera in asking):
            left, chosen[entry.camera] = after, entry
    return list(chosen.values())
