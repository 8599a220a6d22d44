"""A seeded split of a user's own images into train, validation, query and gallery.

No identity is in two of train, validation and test. The result is a list (`csv_list`) that depends
on the seed and the images only: files are sorted by name before anything is drawn.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import check_writable
from harness.base.rng import generator
from harness.base.units import counted
from svll.data.readers import common, csv_list, labels
from svll.data.readers.common import EXAMPLE, examples, is_hidden, raise_faults
from svll.data.readers.csv_list import Entry
from svll.data.readers.labels import JUNK

_PARTS, _QUERIES = 31, 32
"""Keys of the generators: an identity's part, a test identity's queries."""

CAMERA_FOLDER = re.compile(r"c(?:am(?:era)?)?[ _-]?(\d{1,9})", re.ASCII | re.IGNORECASE)
"""Names of folders that are cameras: c1, cam1, Camera 01."""
LEAST_TRAINED = 6
"""Minimum of training identities for a default validation part."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The sizes of the parts, and the seed."""

    test: float | None = None
    """Share of the identities for query and gallery; None: half, or as many as can be matched."""
    validation: float | None = None
    """Share of the other identities to hold out for selection; None: a tenth, at least 2, but none
    where fewer than 6 would be left for training."""
    queries: int | None = None
    """Queries per test identity where cameras are unknown; None: 1. Where they are known, there is
    one query per identity and camera."""
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
    """Split the images below `root` and write the list `out`; returns its entries.

    Raises UserError when `out` exists or cannot be written, and as `collect` and `split` do.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; name another file or delete it")
    check_writable(out)  # before a large folder is walked
    entries = split(collect(root), options)
    csv_list.write(out, entries)
    return entries


# --- the images ---


def collect(root: str | Path, *, runs: Path | None = None) -> list[Entry]:
    """Return the images of a folder or CSV list without split, sorted by path, without junk.

    A folder holds one folder per identity, with its images at any depth, or else images whose names
    begin with identity and camera. In the former, cameras are known if all images are named so, or
    lie in a folder per camera (anna/cam1/x.jpg); if only most are, the others are a mistake. runs:
    a folder that may lie in `root` and is left out. Raises UserError for anything else, and for a
    list with a split.
    """
    root = Path(root)
    if root.is_file():
        entries = csv_list.read(root)
        if entries[0].split is not None:
            raise UserError(f"{root} has a column split already; it is read as it is")
    elif root.is_dir():
        entries = _of_folder(root, runs)
    else:
        raise UserError(f"{root}: no such folder or CSV file")
    kept = common.without_junk(root, entries)
    if not kept:
        raise common.no_images(root, [])
    raise_faults([f"{root}: {fault}" for fault in csv_list.ambiguities(kept)])
    return sorted(kept, key=lambda entry: entry.path)


def folder_names(root: Path, runs: Path | None = None) -> list[str]:
    """Return the names of the folders in `root`, sorted, without hidden ones and `runs`."""
    return sorted(name for name in os.listdir(root)
                  if not is_hidden(name) and (root / name).is_dir()
                  and (runs is None or os.path.realpath(root / name) != os.path.realpath(runs)))


def _of_folder(root: Path, runs: Path | None) -> list[Entry]:
    folders = folder_names(root, runs)
    skipped: list[str] = []
    images = common.image_names(root, skipped, ignoring=folders)
    if folders and images:
        raise UserError(f"{root} holds {len(folders)} folders ({examples(folders)}) and "
                        f"{len(images)} images beside them ({examples(images)}); either have a "
                        "folder per identity or none at all")
    return _of_folders(root, folders, skipped) if folders else _of_names(root)


def _of_folders(root: Path, names: Sequence[str], skipped: list[str]) -> list[Entry]:
    """Return the images of the folders `names`, one per identity; skipped: other names at `root`,
    for the log."""
    identities = {name: str(JUNK) if labels.is_junk(name) else name for name in names}
    raise_faults([f"{root / name}: {fault}" for name, identity in identities.items()
                  if (fault := labels.fault("identity", identity))])
    _refuse_linked_twice(root, names)
    entries = [
        Entry(path, identity)
        for name, identity in identities.items() for path in _images(root / name, skipped)
    ]
    common.log_skipped(root, skipped)
    if empty := sorted(set(identities.values()) - {entry.identity for entry in entries}):
        log.warning("%s: %d folders have no images (%s)", root, len(empty), examples(empty))
    cameras = [_camera(root, entry.path) for entry in entries]
    strange = [e.path for e, camera in zip(entries, cameras, strict=True) if camera is None]
    if not strange:
        return [replace(e, camera=camera) for e, camera in zip(entries, cameras, strict=True)]
    known = len(entries) - len(strange)
    if known > len(strange):
        raise UserError(
            f"{root}: {known} images are named like {EXAMPLE} or lie in a folder like cam1, which "
            f"gives their camera, {len(strange)} are not: {examples(strange)}; rename or remove "
            "these, or write a CSV list (path,identity) if cameras are not meant"
        )
    if known:
        log.info("%s: %d of %d images have a camera in their name or folder, which is not used",
                 root, known, len(entries))
    return entries


def _camera(root: Path, path: str) -> str | None:
    """Return the camera in an image's name, or the number in that of its folder, unless that is
    the identity's."""
    folder, name = os.path.split(path)
    if label := common.parse_name(name):
        return str(label[1])
    if Path(folder).parent == root:
        return None
    match = CAMERA_FOLDER.fullmatch(os.path.basename(folder))
    return str(int(match[1])) if match else None


def _refuse_linked_twice(root: Path, names: Sequence[str]) -> None:
    """Refuse two identities that are one folder, by a link."""
    first: dict[str, str] = {}
    for name in names:
        before = first.setdefault(os.path.realpath(root / name), name)
        if before != name:
            raise UserError(f"{root}: {before} and {name} are the same folder; remove one of them")


def _images(folder: Path, skipped: list[str]) -> Iterator[str]:
    """Yield the images below a folder, at any depth; other files and linked or hidden folders are
    added to `skipped`."""
    for place, below, _ in os.walk(folder, onerror=common.unreadable):
        below[:] = [name for name in below
                    if not is_hidden(name) and not os.path.islink(os.path.join(place, name))]
        names = common.image_names(Path(place), skipped, ignoring=below)
        yield from (os.path.join(place, name) for name in names)


def _of_names(root: Path) -> list[Entry]:
    skipped: list[str] = []
    rows, strange = common.parse_names(root, skipped)
    common.log_skipped(root, skipped)
    if strange:
        raise UserError(f"{root}: {len(strange)} images are neither in a folder per identity nor "
                        f"named like {EXAMPLE} (identity and camera first): {examples(strange)}")
    if zeros := sum(row.identity == 0 for row in rows):
        log.warning("%s: %s of identity 0, which Market-1501 gives to many people (distractors); "
                    "here it is one identity", root, counted(zeros, "image"))
    return [Entry(row.path, str(row.identity), str(row.camera)) for row in rows]


# --- the parts ---


def split(entries: Sequence[Entry], options: Options) -> list[Entry]:
    """Assign each image to a part; the order of `entries` matters.

    Identities that cannot be matched (a single image, or a single camera among several) go to
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
    rng = generator(options.seed, _QUERIES)
    queries: set[str] = set()
    for identity in sorted(images):
        if parts[identity] == "gallery":
            order = [images[identity][row] for row in rng.permutation(len(images[identity]))]
            chosen = _per_camera(order) if has_cameras else order[: options.queries or 1]
            # at least one is left for the gallery
            queries.update(entry.path for entry in chosen[: len(order) - 1])
    return [
        replace(entry, split="query" if entry.path in queries else parts[entry.identity])
        for entry in entries
    ]


def _assign(images: dict[str, list[Entry]], options: Options, has_cameras: bool) -> dict[str, str]:
    """Return the part of each identity: train, validation or (queries included) gallery."""
    identities = sorted(images)
    fit = [
        identity for identity in identities
        if len({entry.camera if has_cameras else entry.path for entry in images[identity]}) > 1
    ]
    test, validation = _counts(len(identities), len(fit), options)
    train = len(identities) - test - validation
    wanted = (f"of {len(identities)} identities {train} would be trained on, {validation} held out "
              f"and {test} tested")
    if len(identities) >= 4 and len(fit) < 2:
        two = "two images of different cameras" if has_cameras else "two images"
        raise UserError(f"{len(fit)} of {len(identities)} identities can be matched: {two} "
                        "are needed, of 2 identities")
    if test < 2 or train < 2 or (options.validation and validation < 2):
        advice = "; leave out --test and --validation, or change them"
        if options.test is None and options.validation is None:
            advice = ""
        if len(identities) < 4:
            advice = ", so at least 4 identities are needed"
        raise UserError(f"{wanted}; each part needs at least 2{advice}")
    if len(fit) < test + validation:
        raise UserError(f"{wanted}, and only {len(fit)} can be matched (two "
                        f"images{', of different cameras' if has_cameras else ''}); ask for fewer "
                        "with --test and --validation")
    if left := len(identities) - len(fit):
        log.info("%d identities that cannot be matched go to training", left)
    order = [fit[row] for row in generator(options.seed, _PARTS).permutation(len(fit))]
    return dict.fromkeys(identities, "train") | dict.fromkeys(order[:test], "gallery") | (
        dict.fromkeys(order[test : test + validation], "validation")
    )


def _counts(identities: int, fit: int, options: Options) -> tuple[int, int]:
    """Return how many identities are tested and held out; logs why a default is none."""
    test = min(round(0.5 * identities), fit)
    if options.test is not None:
        test = round(options.test * identities)
    left = identities - test
    if options.validation is not None:
        return test, round(options.validation * left)
    validation = min(max(2, round(0.1 * left)), fit - test)
    if validation < 2:
        reason = f"besides the tested ones {max(0, fit - test)} can be matched, 2 are needed"
    elif left - validation < LEAST_TRAINED:
        reason = f"{left} are left for training"
    else:
        return test, validation
    log.info("no identities are held out for validation: %s", reason)
    return test, 0


def _per_camera(images: Sequence[Entry]) -> list[Entry]:
    """Return the first image of each camera, as long as every query keeps a match elsewhere.

    If a camera's only image becomes a query, the other cameras may lose their last match.
    """
    left = Counter(entry.camera for entry in images)
    chosen: dict[str | None, Entry] = {}
    for entry in images:
        after = left - Counter([entry.camera])
        cameras = {*chosen, entry.camera}
        if entry.camera not in chosen and all(after.keys() - {camera} for camera in cameras):
            left, chosen[entry.camera] = after, entry
    return list(chosen.values())
