"""A run on a folder of a user's own images: its split, and the settings that its size asks for.

The split is written as a list (`svll.data.readers.csv_list`) beside the runs, where the user may
edit it. The run reads that list like any other dataset.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import UserError
from harness.base.machine import allotted_gpus
from harness.base.paths import is_utf8, normal, shown, typed
from harness.base.units import counted
from harness.config.build import build
from harness.config.fields import text_fields
from harness.config.recipes import named_recipe
from harness.config.sources import Setting, parse_overrides
from svll.base.records import PARTS, Dataset, Records
from svll.config import RECIPES, Config
from svll.data import own_split
from svll.data.own_split import CAMERA_FOLDER
from svll.data.readers import csv_list, labels
from svll.data.readers.common import EXAMPLE, examples, image_names
from svll.data.readers.csv_list import LABELS, Entry
from svll.data.side_labels import known_sie
from svll.runs.preflight import quietly

RECIPE = "market1501"
"""The recipe that such a run extends by default."""
SMALL, FEW_IMAGES = "small", 5_000
"""The part that is added where there are fewer training images than that."""
SPLIT = "split.csv"
GIVEN = ("data.name", "data.root", "data.roots", "data.train", "data.test")
"""Keys that say which images a run has."""
LAYOUTS = f"""Two layouts work:
  DIR/anna/ANY_NAME.jpg               a folder per identity; cameras, if known, are in all names
                                      ({EXAMPLE}) or folders (DIR/anna/cam1/ANY_NAME.jpg)
  DIR/{EXAMPLE}   identity and camera begin the name"""
OF_MACHINE = "engine.precision"
"""The key that is picked for this machine, and would be wrong on another."""
_PART_NAMES = {*PARTS, "test", "val", "valid", "bounding_box_train", "bounding_box_test",
               "image_train", "image_query", "image_test"}


class OwnRun(NamedTuple):
    """A run on a user's images."""

    config: Config
    words: list[str]
    """What gives the same run: a recipe's name, then overrides; without OF_MACHINE, if picked."""
    found: list[str]
    """Sentences on the images and the settings that were picked."""
    query: str
    """The path of a query image."""


def own_run(place: Path, extends: str, overrides: Sequence[str]) -> OwnRun:
    """Split the images in a folder, or of a list, unless they are; return the run on them.

    The split of an earlier call is kept. Overrides, and recipes outside of the package, win over
    what is picked. Raises UserError for a folder whose layout is unknown, for too few images, and
    for overrides that name other images.
    """
    given = parse_overrides(overrides, text_fields(Config))
    if others := sorted({setting.key for setting in given} & {*GIVEN}):
        raise UserError(f"--data gives the images; leave out {', '.join(others)}")
    base = [*named_recipe(extends, Config, RECIPES), Setting("data.name", "list", "--data")]
    wanted = build(Config, [*base, *given])
    place = Path(normal(str(place)))
    name = wanted.run.name or _name(place)
    file, story = _list_of(place, Path(wanted.run.runs).absolute() / name / SPLIT)
    with quietly():  # training logs this again
        dataset = csv_list.load(file)
    recipe, about = _recipe(extends, base[:-1], len(dataset.train))
    settings = [*named_recipe(recipe, Config, RECIPES), *(
        Setting(key, value, "--data") for key, value in {
            "data.name": "list", "data.root": str(file), "run.name": name,
            "data.train": [], "data.test": [],
        }.items())]
    users = {setting.key for setting in [*_by_user(settings[:-5]), *given]}
    picked = [
        (word, reason) for word, reason in _picks(build(Config, [*settings, *given]), dataset)
        if word.partition("=")[0] not in users
    ]
    words = [word for word, _ in picked]
    config = build(Config, [*settings, *parse_overrides(words), *given])
    kept = [word for word in words if word.partition("=")[0] != OF_MACHINE]
    kept += [word for word in overrides if word.partition("=")[0].strip() != "run.name"]
    emptied = [f"data.{key}=[]" for key in ("train", "test") if getattr(wanted.data, key)]
    return OwnRun(
        config,
        [recipe, "data.name=list", f"data.root={file}", f"run.name={name}", *emptied, *kept],
        [*story, *(_part(name, getattr(dataset, name)) for name in PARTS),
         "Picked (key=value on the command line overrides):",
         *(f"  {word:22} {reason}" for word, reason in [(recipe, about), *picked])],
        dataset.query.paths[0],
    )


def _name(place: Path) -> str:
    """Return the name of the runs' folder: that of the images'."""
    name = place.stem if place.is_file() else place.name
    return name if name and is_utf8(name) and name != "cache" else "own_images"


# --- the images ---


def _list_of(place: Path, file: Path) -> tuple[Path, list[str]]:
    """Return the list with the split, and sentences on it; write `file` if there is none."""
    if place.is_file() and csv_list.read(place)[0].split is not None:
        return place, [f"{shown(place)}: the split in its column is used"]
    entries = _collected(place, file.parents[1])
    identities = len({entry.identity for entry in entries})
    cameras = {entry.camera for entry in entries} - {None}
    story = [f"{shown(place)}: {counted(len(entries), 'image')} of {identities} identities, "
             f"{counted(len(cameras), 'camera') if cameras else 'cameras unknown'}"]
    if file.exists():
        return file, [*story, _again(place, entries, file)]
    try:
        found = own_split.split(entries, own_split.Options())
    except UserError as error:
        raise UserError(f"{shown(place)}: {error}") from None
    try:  # by each rank, the same
        csv_list.write(file, found)
    except OSError as error:
        raise UserError(f"{shown(file)}: cannot be written: {error.strerror or error}; name "
                        "another folder: run.runs=FOLDER") from None
    return file, [*story, f"Split by identity: {shown(file)} (edit it, or delete it to split "
                  "again; launch/data.py split draws other shares)"]


def _collected(place: Path, runs: Path) -> list[Entry]:
    """Return the images; the folder of runs may be directly in theirs, and is left out."""
    if place.is_dir():
        _refuse_runs_among(place, runs)
        _refuse_other_layouts(place, runs)
    try:
        return own_split.collect(place, runs=runs)
    except UserError as error:
        raise UserError(f"{error}\n{LAYOUTS}" if place.is_dir() else str(error)) from None


def _refuse_runs_among(place: Path, runs: Path) -> None:
    """Refuse a folder of runs that is the images' own, has images, or is inside an identity's."""
    own, images = Path(os.path.realpath(runs)), Path(os.path.realpath(place))
    has_images = own.is_dir() and bool(image_names(own, []))
    if images in own.parents[1:] or own == images or (own.parent == images and has_images):
        raise UserError(f"the folder of runs, {shown(runs)}, is among the images of "
                        f"{shown(place)}; name another one: run.runs=FOLDER")


def _refuse_other_layouts(place: Path, runs: Path) -> None:
    """Refuse a folder whose folders are parts or cameras: they would be taken for identities."""
    folders = own_split.folder_names(place, runs)
    if parts := [name for name in folders if name.lower() in _PART_NAMES]:
        raise UserError(
            f"{shown(place)} holds {examples(parts)}, so it seems to be split already. A dataset "
            "in Market-1501's layout (bounding_box_train, query, bounding_box_test): --recipe "
            f"{RECIPE} data.name=folder {typed(place, 'data.root=')}; any other: give a folder "
            f"of identities, or a CSV list with a column split.\n{LAYOUTS}")
    if len(folders) > 1 and all(re.match("cam", name, re.I) and CAMERA_FOLDER.fullmatch(name)
                                for name in folders):
        raise UserError(f"{shown(place)} holds a folder per camera ({examples(folders)}), so "
                        f"identities are unknown.\n{LAYOUTS}")


def _again(place: Path, entries: Sequence[Entry], file: Path) -> str:
    """Return a sentence on the split of an earlier call; refuse one of other images."""
    listed = {entry.path: entry for entry in csv_list.read(file)}
    found = {os.path.abspath(entry.path): entry for entry in entries}
    if gone := sorted(listed.keys() - found.keys()):
        raise UserError(f"{shown(file)}, an earlier split, lists {counted(len(gone), 'image')} "
                        f"that {shown(place)} does not have, such as {shown(gone[0])}; remove "
                        "these lines, delete the file to split again, or add run.name=NAME for a "
                        "separate split")
    before, now = _labels(listed), _labels({path: found[path] for path in listed})
    if other := sorted(path for path in listed if before[path] != now[path]):
        raise UserError(f"{shown(file)}, an earlier split, has other labels than {shown(place)} "
                        f"for {counted(len(other), 'image')}, such as {shown(other[0])} "
                        f"({_differing(before[other[0]], now[other[0]])}); delete the file to "
                        "split again, add run.name=NAME for a separate split, or use the file's "
                        f"own labels: --data {typed(file)}")
    new = len(found.keys() - listed.keys())
    return f"Split by {shown(file)}, which is there already" + (
        f"; {counted(new, 'image is', 'images are')} not in it and not used (delete it to split "
        "again)" if new else "")


def _labels(entries: Mapping[str, Entry]) -> dict[str, list[str | None]]:
    """Return each image's labels by its path, as a split has them: without the only camera, and
    with the digits of whole numbers."""
    cameras = {entry.camera for entry in entries.values()}
    return {
        path: [
            None if text is None or (column == "camera" and len(cameras) == 1) else
            labels.whole(text) or text.strip()
            for column, text in ((column, getattr(entry, column)) for column in LABELS)
        ] for path, entry in entries.items()
    }


def _differing(before: Sequence[str | None], now: Sequence[str | None]) -> str:
    """Return which labels of an image differ, and how."""
    return ", ".join(f"{column} {old or 'unknown'} there, {new or 'unknown'} now"
                     for column, old, new in zip(LABELS, before, now, strict=True) if old != new)


# --- the settings ---


def _by_user(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings of recipes that are not shipped."""
    return [one for one in settings if not one.where.startswith(f"{RECIPES}{os.sep}")]


def _recipe(extends: str, base: Sequence[Setting], images: int) -> tuple[str, str]:
    """Return the recipe of the run, and why."""
    size = counted(images, "training image")
    if SMALL in extends.split("+"):
        return extends, "as given"
    if _by_user(base):
        return extends, f"your own, so +{SMALL} is not added (--extends {extends}+{SMALL})"
    if images >= FEW_IMAGES:
        return extends, f"{size}: at least {FEW_IMAGES:,}, so +{SMALL} is not added"
    return f"{extends}+{SMALL}", f"{size}, so +{SMALL}; --extends NAME starts from another recipe"


def _picks(config: Config, dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield settings that fit the images, as key=value, and their reasons."""
    if config.data.validation:
        yield "data.validation=0", "the split says what is held out"
    stage, identities = config.stage2, len(set(dataset.train.identities.tolist()))
    if stage.batch // stage.instances > identities:
        yield (f"stage2.batch={stage.instances * identities}",
               f"{stage.instances} images of each of {identities} training identities")
    cameras = len(set(dataset.train.cameras.tolist())) if dataset.protocol != "all_gallery" else 0
    views = len(set(dataset.train.views.tolist()))
    kind = known_sie(config.model.sie, cameras=cameras, views=views)
    if "view" in kind and views < 2:
        kind = "camera" if "camera" in kind else "none"
    if kind != config.model.sie:
        known = "cameras are known, views are not" if cameras else "cameras are unknown"
        yield f"model.sie={kind}", known
    if config.engine.precision == "bf16" and not allotted_gpus():
        from harness.training import ranks  # late: torch takes seconds

        if not ranks.has_fast_bf16():
            yield (f"{OF_MACHINE}=fp32", "on this machine, which only emulates bf16; not in the "
                   "commands below")


def _part(name: str, records: Records) -> str:
    """Return a line on a part of the split."""
    if not len(records):
        return f"  {name:10}   none: no epoch is selected, the last one is tested"
    identities = counted(len(set(records.identities.tolist())), "identity", "identities")
    return f"  {name:10} {len(records):6} images of {identities}"
