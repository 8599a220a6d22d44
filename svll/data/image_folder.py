"""Images without labels, anywhere below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from harness.base.errors import UserError
from svll.data.readers.common import is_image, log_skipped, no_images


def find_images(place: Path) -> list[Path]:
    """Return the images below a folder, sorted, or `place` itself if it is a file.

    Names that begin with a dot are left out, since operating systems make such files. Other files
    are counted in the log. Raises UserError when there are no images.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such folder or image")
    files = sorted(path for folder in _folders(place) for path in folder.iterdir()
                   if path.is_file())
    images = [path for path in files if is_image(path.name)]
    skipped = [path.name for path in files if not is_image(path.name)]
    if not images:
        raise no_images(place, skipped)
    log_skipped(place, skipped)
    return images


def _folders(place: Path) -> Iterator[Path]:
    """Yield a folder and those below it, linked ones too, each once."""
    seen = set()
    for name, below, _ in os.walk(place, followlinks=True):
        real = os.path.realpath(name)
        below[:] = [] if real in seen else [one for one in below if not one.startswith(".")]
        if real not in seen:
            yield Path(name)
        seen.add(real)
