"""The drawn benchmark, read: Market-1501's layout, and a list of the images' views."""

from dataclasses import replace
from pathlib import Path

from harness.base.errors import UserError
from svll.base.records import Dataset
from svll.data.readers.market1501 import OWN, load

VIEWS = "views.txt"
"""The drawn benchmark's list of the images' views."""


def load_world(root: str | Path) -> Dataset:
    """Read the drawn benchmark, a world written to `root`; raises UserError when there is none."""
    file = Path(root) / VIEWS
    if not file.is_file():
        raise UserError(f"{root} holds no synthetic world: there is no {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    views = {name: int(view) for name, _, view in (line.rpartition(" ") for line in lines)}
    return load(root, replace(OWN, name="synthetic"), views=views)
