"""The drawn benchmark, read: Market-1501's layout, and a list of the images' views."""

import re
from dataclasses import replace
from pathlib import Path

from harness.base.errors import UserError
from harness.base.units import counted
from svll.base.records import Dataset
from svll.data.readers.common import read_lines
from svll.data.readers.market1501 import OWN, load

VIEWS = "views.txt"
"""The drawn benchmark's list of the images' views."""


def load_world(root: str | Path) -> Dataset:
    """Read the drawn benchmark, a world written to `root`; raises UserError when there is none, and
    for a damaged list of views."""
    file = Path(root) / VIEWS
    if not file.is_file():
        raise UserError(f"{root} holds no synthetic world: there is no {file}")
    views = {}
    for number, line in read_lines(file):
        name, _, view = line.rpartition(" ")
        if not re.fullmatch(r"\d{1,9}", view, re.ASCII):
            raise UserError(f"{file}, line {number}: expected an image and its view, found "
                            f"{line[:80]!r}; delete {root} to draw the world again")
        views[name] = int(view)
    dataset = load(root, replace(OWN, name="synthetic"), views=views)
    names = ("/".join(Path(path).parts[-2:]) for path in dataset.files())
    if unlisted := [name for name in names if name not in views]:
        raise UserError(f"{file} lacks {counted(len(unlisted), 'image')}, such as {unlisted[0]}; "
                        f"delete {root} to draw the world again")
    return dataset
