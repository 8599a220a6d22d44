"""Images that lie anywhere below a folder, with no labels."""

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
    found = sorted(path for path in place.rglob("*") if _is_image(path, place))
    if not found:
        raise UserError(f"{place}: no images there ({', '.join(ENDINGS)})")
    return found


def _is_image(path: Path, place: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
    return path.suffix.lower() in ENDINGS and not hidden and path.is_file()
