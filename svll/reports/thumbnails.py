"""Thumbnails for a page, and grey boxes for images that cannot be shown."""

import io
from pathlib import Path, PurePosixPath

from harness.images.pixels import small_copy
from harness.reporting.page import Html, element, image

HEIGHT, MOST_WIDTH = 96, 144  # largest size in pixels; proportions are kept
QUALITY = 80
STYLE = f"""
.thumbnail {{ display: block; height: {HEIGHT}px; max-width: {MOST_WIDTH}px;
  object-fit: contain; }}
.gone {{ display: block; width: 4.5rem; height: {HEIGHT}px; padding: .2rem; overflow: hidden;
  background: var(--line); font-size: .65rem; line-height: 1.2; overflow-wrap: anywhere; }}
"""


class Thumbnails:
    """Thumbnails for one page. `data`: JPEG of each path asked for, None where unreadable."""

    def __init__(self, root: Path | None = None) -> None:
        """root: a folder where images are looked for first, see `find`."""
        self._root = root
        self.data: dict[str, bytes | None] = {}

    @property
    def missing(self) -> list[str]:
        """The paths that are not there or cannot be read."""
        return [path for path, data in self.data.items() if data is None]

    def __call__(self, path: str | None, alt: str, otherwise: str) -> Html:
        """Return an image; else a grey box with its name, or with `otherwise` for no path."""
        if path is None:
            return element("span", otherwise, class_="gone")
        if path not in self.data:
            self.data[path] = thumbnail(find(path, self._root))
        data = self.data[path]
        if data is None:
            return element("span", PurePosixPath(path).name, class_="gone")
        return image(data, alt, class_="thumbnail", title=path)


def find(path: str, root: Path | None) -> Path:
    """Return where an image is: below `root` by the longest end of its path there, else `path`.

    /old/market/query/a.jpg is looked for as ROOT/old/market/query/a.jpg, ROOT/market/query/a.jpg,
    ROOT/query/a.jpg and ROOT/a.jpg.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    places = [root.joinpath(*parts[start:]) for start in range(len(parts))] if root else []
    return next((place for place in places if place.is_file()), Path(path))


def thumbnail(path: Path, size: tuple[int, int] = (MOST_WIDTH, HEIGHT)) -> bytes | None:
    """Return a JPEG of an image, upright, of at most `size` (width, height); None if unreadable."""
    small = small_copy(path, size)
    if small is None:
        return None
    data = io.BytesIO()
    small.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
