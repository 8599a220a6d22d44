"""The drawn benchmark, read: Market-1501's layout, and a list of the images' views."""

from pathlib import Path

from harness.base.errors import UserError
from svll.base.records import Dataset
from svll.data.readers.market1501 import read_layout

VIEWS = "views.txt"


def load_world(root: str | Path) -> Dataset:
    """Read a world that was written to `root`; raises UserError when there is none."""
    listed = Path(root) / VIEWS
    if not listed.is_file():
        raise UserError(f"{root} holds no synthetic world: there is no {listed}")
    lines = listed.read_text(encoding="utf-8").splitlines()
    views = {name: int(view) for name, _, view in (line.rpartition(" ") for line in lines)}
    return read_layout(root, name="synthetic", views=views)
