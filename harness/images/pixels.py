"""Accepted image files and PIL images, and the pixels they become.

One rule holds for training, tests, `encode`, search, attention maps and pages. An image becomes
8-bit RGB, upright:

- It is turned and mirrored by its EXIF orientation; without that tag it stays as stored.
- Alpha and transparent palette entries are dropped; what is stored under them is seen.
- 16 bits a colour become 8: round(value / 257). Colour profiles are ignored.
- Of several pages or frames the first is used (TIFF, WebP).

DALI reads files by this rule (`harness.images.decoding`), `upright` opened PIL images. Pixels are
equal, except that PIL opens colour images of 16 bits one level off.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from harness.base.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Accepted file extensions, in lower case."""
NO_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What PIL's decoders raise for broken content."""
_SHOWN = 20
"""Files that an error names."""
Fault = tuple[str, str]
"""A file's path, and why it cannot be decoded."""


class Unreadable(UserError):
    """Image files that cannot be decoded."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        lines = [f"  {path}: {reason}" for path, reason in self.faults[:_SHOWN]]
        if left := len(self.faults) - len(lines):
            lines.append(f"  and {left} more")
        count = f"{len(self.faults)} images" if len(self.faults) > 1 else "an image"
        return "\n".join([f"cannot decode {count}; replace or remove:", *lines])


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image as 8-bit RGB by the rule above. Raises UserError for 32 bits a colour,
    and one of NO_IMAGE for broken content."""
    if not _is_supported(image):
        raise UserError(f"an image of mode {image.mode} is not supported; convert it to RGB")
    plain = image.copy()
    # Without XMP, where PIL would look for an orientation too.
    plain.info = {key: plain.info[key] for key in ("exif",) if key in plain.info}
    with suppress(Exception):  # whatever PIL raises for a damaged EXIF: DALI ignores that
        plain = ImageOps.exif_transpose(plain)
    if plain.mode.startswith("I;16"):
        levels = (np.asarray(plain).astype(np.uint32) + 128) // 257
        plain = Image.fromarray(levels.astype(np.uint8))
    return plain.convert("RGB")


def why_unreadable(path: str, *, whole: bool) -> str | None:
    """Return what is wrong with a file; None when PIL reads the header or, if `whole`, all."""
    try:
        if os.path.getsize(path) == 0:
            return "empty"
        with Image.open(path) as image:
            if not _is_supported(image):
                return unsupported(image)
            if whole:
                image.load()  # PIL's verify() does not notice truncation
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except IsADirectoryError:
        return "a folder"
    except UnidentifiedImageError:
        return "not an image"
    except NO_IMAGE as error:
        return "truncated" if "truncated" in str(error).lower() else f"damaged ({error})"
    return None


def unsupported(image: Image.Image) -> str:
    """Return the reason for an opened file of a kind that the decoder does not read."""
    return f"not supported ({image.format}, mode {image.mode}); store it as JPEG or PNG"


def _is_supported(image: Image.Image) -> bool:
    """Return whether DALI decodes this kind; for others it returns white without an error."""
    return image.mode not in ("F", "I") and (image.format, image.mode) != ("TIFF", "LA")
