"""Images that lie anywhere below a folder, with no labels."""

import os
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import UserError
from svll.data.readers.common import is_image, no_images, say_skipped


def find_images(place: Path) -> list[Path]:
    """Return the images below a folder, sorted, or the one file that `place` is.

    Endings count in any case; what begins with a dot is left out, as systems put such files there.
    Other files are counted in the log. Raises UserError when there are no images.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such folder or image")
    files = sorted(path for folder in _folders(place) for path in folder.iterdir()
                   if path.is_file())
    skipped = [path.name for path in files if not is_image(path.name)]
    if len(skipped) == len(files):
        raise no_images(place, skipped)
    say_skipped(place, skipped)
    return [path for path in files if is_image(path.name)]


def _folders(place: Path) -> Iterator[Path]:
    """Yield a folder and those below it, linked ones too, each once."""
    seen = set()
    for name, below, _ in os.walk(place, followlinks=True):
        real = os.path.realpath(name)
        below[:] = [] if real in seen else [one for one in below if not one.startswith(".")]
        if real not in seen:
            yield Path(name)
        seen.add(real)
