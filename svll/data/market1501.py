"""Market-1501's folder layout: the identity and camera of an image stand in its name."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from harness.errors import UserError
from svll.data.records import Dataset, Records, Row

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
JUNK = -1

_NAME = re.compile(r"(-?\d+)_c(\d+)")
_USUAL_NAMES = ("Market-1501-v15.09.15", "Market-1501", "market1501")
_PUBLISHED = {"train": 12_936, "query": 3_368, "gallery": 15_913}

log = logging.getLogger(__name__)


def load(root: str | Path) -> Dataset:
    """Read Market-1501 from `root`, or from the folder below it that the download unpacks to.

    Junk images (identity -1) are left out; distractors (0000) stay in the gallery. Other numbers
    of images than the published ones are a warning: some people have subsets. Raises UserError
    when there is no such dataset, or images are named otherwise.
    """
    dataset = read_layout(root, name="market1501")
    for part, published in _PUBLISHED.items():
        found = len(getattr(dataset, part))
        if found != published:
            log.warning("%s: %d %s images; Market-1501 has %d", root, found, part, published)
    return dataset


def read_layout(root: str | Path, *, name: str, views: Mapping[str, int] | None = None) -> Dataset:
    """Read any dataset in Market-1501's layout; `views` gives the side seen, by "folder/name"."""
    folder = find(Path(root))
    parts = {part: _read(folder / below, views or {}) for part, below in FOLDERS.items()}
    return Dataset(name=name, protocol="cross_camera", **parts)


def find(root: Path) -> Path:
    """Return the folder that has the three parts: `root`, or one of the usual names below it."""
    candidates = [root, *(root / name for name in _USUAL_NAMES)]
    for folder in candidates:
        if all((folder / below).is_dir() for below in FOLDERS.values()):
            return folder
    looked = "\n".join(f"  {folder}{_lacks(folder)}" for folder in candidates)
    raise UserError(
        f"no dataset in Market-1501's layout ({', '.join(FOLDERS.values())}) was found. "
        f"Looked in:\n{looked}\nGive the folder that holds the three (data.root=DIR)."
    )


def _lacks(folder: Path) -> str:
    if not folder.is_dir():
        return " (no such folder)"
    missing = [below for below in FOLDERS.values() if not (folder / below).is_dir()]
    return f" (lacks {', '.join(missing)})"


def _read(folder: Path, views: Mapping[str, int]) -> Records:
    """Return the images of one part, sorted by name."""
    # Names with a dot first are what a Mac leaves beside every file.
    paths = sorted(path for path in folder.glob("*.jpg") if not path.name.startswith("."))
    named = [(path, _NAME.match(path.name)) for path in paths]
    strange = [path.name for path, match in named if match is None]
    if strange:
        raise UserError(
            f"{folder}: {len(strange)} images are not named like 0002_c1s1_000451_00.jpg: "
            f"{', '.join(strange[:5])}"
        )
    rows = [
        Row(str(path), int(match[1]), int(match[2]) - 1, views.get(f"{folder.name}/{path.name}", 0))
        for path, match in named
        if match is not None and int(match[1]) != JUNK
    ]
    if not rows:
        raise UserError(f"{folder} has no images (*.jpg)")
    return Records.from_rows(rows)
