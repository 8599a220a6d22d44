"""The drawn world as records: Market-1501's files, and a view for each image."""

from pathlib import Path

import pytest

from harness.base.errors import UserError
from svll.data.readers.drawn_world import VIEWS, load_world
from svll.world.world import World, write_world


def test_each_image_has_the_view_that_is_listed_for_it(tmp_path: Path) -> None:
    root = write_world(World(2, 2, kind="vehicle", shots=1), tmp_path / "cars")
    lines = (root / VIEWS).read_text().splitlines()
    listed = {str(root / name): int(view) for name, view in map(str.split, lines)}
    dataset = load_world(root)
    for records in (dataset.train, dataset.query, dataset.gallery):
        assert len(records)
        assert records.views.tolist() == [listed[path] for path in records.paths]


def test_a_folder_without_a_list_of_views_is_no_drawn_world(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no synthetic world: there is no .*views\.txt"):
        load_world(tmp_path)


def test_a_damaged_list_of_views_is_an_error(tmp_path: Path) -> None:
    root = write_world(World(2, 2, kind="vehicle", shots=1), tmp_path / "cars")
    lines = (root / VIEWS).read_text().splitlines()
    for kept, fault in ((lines[:-1], f"lacks 1 image, such as {lines[-1].split()[0]}; delete"),
                        ([*lines[:-1], "query/a.jpg x"], r"line \d+: expected an image and its")):
        (root / VIEWS).write_text("\n".join(kept))
        with pytest.raises(UserError, match=fault):
            load_world(root)
