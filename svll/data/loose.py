"""Images that lie anywhere below a folder, with no labels."""

import os
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def find_images(place: Path) -> list[Path]:
    """Return the images below a folder, sorted, or the one file that `place` is.

    Endings count in any case; what begins with a dot is left out, as systems put such files there.
    Raises UserError when there are none.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such folder or image")
    found = sorted(path for folder in _folders(place) for path in folder.iterdir()
                   if _is_image(path))
    if not found:
        raise UserError(f"{place}: no images there ({', '.join(ENDINGS)})")
    return found


def _folders(place: Path) -> Iterator[Path]:
    """Yield a folder and those below it, linked ones too, each once."""
    seen = set()
    for name, below, _ in os.walk(place, followlinks=True):
        real = os.path.realpath(name)
        below[:] = [] if real in seen else [one for one in below if not one.startswith(".")]
        if real not in seen:
            yield Path(name)
        seen.add(real)


def _is_image(path: Path) -> bool:
    return (
        path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    )
