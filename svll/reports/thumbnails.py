"""Small pictures of images for a page, and grey boxes for those that cannot be shown."""

import io
from pathlib import Path, PurePosixPath

from PIL import Image

from harness.base.errors import UserError
from harness.images.pixels import NO_IMAGE, upright
from harness.reporting.page import Html, element, image

HEIGHT, MOST_WIDTH = 96, 144
"""Pixels at most; a side keeps its proportion to the other."""
QUALITY = 80
STYLE = f"""
.thumbnail {{ display: block; height: {HEIGHT}px; max-width: {MOST_WIDTH}px;
  object-fit: contain; }}
.gone {{ display: block; width: 4.5rem; height: {HEIGHT}px; padding: .2rem; overflow: hidden;
  background: var(--line); font-size: .65rem; line-height: 1.2; overflow-wrap: anywhere; }}
"""
"""CSS of a page with thumbnails."""


class Thumbnails:
    """Thumbnails for one page, which knows in the end how many of the images could not be shown."""

    def __init__(self, root: Path | None = None) -> None:
        """`root` is a folder below which images are looked for first, by the ends of their paths.
        """
        self._root = root
        self._data: dict[str, bytes | None] = {}

    @property
    def asked(self) -> int:
        """How many different images were asked for."""
        return len(self._data)

    @property
    def missing(self) -> list[str]:
        """The paths of those that are not there or cannot be read."""
        return [path for path, data in self._data.items() if data is None]

    def __call__(self, path: str | None, alt: str, otherwise: str) -> Html:
        """Return an image, or a grey box with its name, or with `otherwise` where it has no path.
        """
        if path is None:
            return element("span", otherwise, class_="gone")
        if path not in self._data:
            self._data[path] = thumbnail(find(path, self._root))
        data = self._data[path]
        if data is None:
            return element("span", PurePosixPath(path).name, class_="gone")
        return image(data, alt, class_="thumbnail", title=path)


def find(path: str, root: Path | None) -> Path:
    """Return where an image is: below `root` by as much of its path as is there, else as it says.

    /old/market/query/a.jpg is looked for as ROOT/old/market/query/a.jpg, ROOT/market/query/a.jpg,
    ROOT/query/a.jpg and ROOT/a.jpg.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for start in range(len(parts) if root else 0):
        assert root is not None
        if (moved := root.joinpath(*parts[start:])).is_file():
            return moved
    return Path(path)


def thumbnail(path: Path, size: tuple[int, int] = (MOST_WIDTH, HEIGHT)) -> bytes | None:
    """Return a JPEG of an image as a model sees it, of `size` (width, height) at most.

    None where it cannot be read.
    """
    try:
        with Image.open(path) as file:
            file.draft("RGB", (2 * max(size), 2 * max(size)))  # large JPEGs are decoded small
            small = upright(file)
            small.thumbnail(size)
    except (UserError, *NO_IMAGE):
        return None
    data = io.BytesIO()
    small.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
