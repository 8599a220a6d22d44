"""What tests of several packages use: the toy experiment, image files."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT

TOYS = ROOT / "tests" / "toy"


@pytest.fixture(scope="module")
def toy() -> Iterator[ModuleType]:
    """The toy experiment, importable here and in the child processes of a test."""
    with pytest.MonkeyPatch.context() as patch:
        # the root, too: child processes of a test import the code beside it
        patch.setenv("PYTHONPATH", f"{TOYS}{os.pathsep}{ROOT}")
        if str(TOYS) not in sys.path:
            sys.path.insert(0, str(TOYS))
        yield importlib.import_module("toy_experiment")


def photo(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    """A smooth picture with edges: coarse blocks enlarged, and a bright bar."""
    blocks = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC))
    picture[height // 3 : height // 2, width // 4 : width // 2] = generator.integers(0, 256, 3)
    return Image.fromarray(picture)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """64 JPEGs, smaller and larger than the views, in a folder whose name is not plain ASCII."""
    folder = tmp_path_factory.mktemp("photos") / "an image's folder é"
    folder.mkdir()
    generator = np.random.default_rng(3)
    for number in range(64):
        size = [(48, 24), (150, 70), (64, 32), (40, 90)][number % 4]
        photo(generator, *size).save(folder / f"{number:02}.jpg", quality=92)
    return sorted(str(path) for path in folder.iterdir())


@pytest.fixture
def broken(photos: list[str], tmp_path: Path) -> dict[str, str]:
    """Files that cannot be decoded, path -> the reason to be given."""
    jpeg = Path(photos[1]).read_bytes()
    contents = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "no end.jpg": (jpeg[:-2], "truncated"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"<html>not found</html>" * 50, "not an image"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.open(photos[0]).convert("P").save(tmp_path / "moving.gif")
    (tmp_path / "folder.jpg").mkdir()
    others = {
        "moving.gif": "not supported (GIF, mode P); store it as JPEG or PNG",
        "folder.jpg": "a folder",
        "nowhere.jpg": "missing",
    }
    reasons = {name: reason for name, (_, reason) in contents.items()} | others
    return {str(tmp_path / name): reason for name, reason in reasons.items()}
