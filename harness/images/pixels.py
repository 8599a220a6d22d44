"""Accepted image files and PIL images, and the pixels they become.

One rule holds for training, tests, `encode`, search, attention maps and pages. An image becomes
8-bit RGB, upright:

- It is turned and mirrored by its EXIF orientation; without that tag, and as a moving WebP, it
  stays as stored. An orientation that decoders read differently (a damaged EXIF block, two of
  them, a moving PNG) is refused.
- Alpha and transparent palette entries are dropped; what is stored under them is seen.
- 16 bits a colour become 8: round(value / 257). Colour profiles are ignored.
- Of several pages or frames the first is used (TIFF, WebP).

DALI reads files by this rule (`harness.images.decoding`), `upright` opened PIL images. Pixels are
equal, except that PIL opens colour images of 16 bits and of four colours (CMYK) a level or two off.
"""

import errno
import os
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from harness.base.errors import UserError
from harness.images.orientation import ORIENTATION, turn_of

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Accepted file extensions, in lower case."""
NO_IMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError,
            AttributeError, struct.error, Image.DecompressionBombError)
"""What PIL's decoders raise for broken content, some by mistake."""
_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What a machine lacks when it opens no file: open files, memory."""
_LENIENT = ("BMP", "TIFF")
"""Formats of which DALI reads files that are cut short, as black or grey pixels."""
_UNCLEAR_EXIF = "an EXIF orientation that decoders read differently; store it without"
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
    plain = _loaded(image)
    turn, is_clear = turn_of(image)  # a PNG's EXIF block may come after the pixels
    if not is_clear:
        raise UserError(f"an image has {_UNCLEAR_EXIF}")
    plain = plain if turn is None else plain.transpose(turn)
    plain.info = {}
    if plain.mode.startswith("I;16"):
        levels = (np.asarray(plain).astype(np.uint32) + 128) // 257
        plain = Image.fromarray(levels.astype(np.uint8))
    return plain.convert("RGB")


def small_copy(path: str | os.PathLike[str], size: tuple[int, int]) -> Image.Image | None:
    """Return a file's image, upright, of at most `size` (width, height); None if unreadable."""
    try:
        with Image.open(path) as file:
            file.draft("RGB", (2 * max(size), 2 * max(size)))  # decodes large JPEGs at low size
            small = upright(file)
            small.thumbnail(size)
            return small
    except (UserError, *NO_IMAGE):
        return None


def _loaded(image: Image.Image) -> Image.Image:
    """Return a copy of an opened image."""
    if not isinstance(image, ImageFile.ImageFile):
        return image.copy()
    name = image.filename
    try:
        image.filename = ""  # else PIL 13 maps the file, with width for height if it is turned
        return image.copy()
    finally:
        image.filename = name


def why_unreadable(path: str, *, whole: bool) -> str | None:
    """Return what is wrong with a file; None when PIL reads the header or, if `whole`, all. Raises
    OSError for what the machine lacks, which is no fault of the file."""
    try:
        if os.path.getsize(path) == 0:
            return "empty"
        with Image.open(path) as image:
            if not _is_supported(image):
                return unsupported(image)
            if not turn_of(image)[1]:
                return _UNCLEAR_EXIF
            if whole or image.format in _LENIENT:
                image.load()  # PIL's verify() does not notice truncation
            if not _CHECKS.get(image.format or "", lambda _: True)(path):
                return unsupported(image)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except IsADirectoryError:
        return "a folder"
    except UnidentifiedImageError:
        return "not an image"
    except NO_IMAGE as error:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise
        return "truncated" if "truncated" in str(error).lower() else f"damaged ({error})"
    return None


def unsupported(image: Image.Image) -> str:
    """Return the reason for an opened file of a kind that the decoder does not read."""
    return f"not supported ({image.format}, mode {image.mode}); store it as JPEG or PNG"


def _is_supported(image: Image.Image) -> bool:
    """Return whether DALI decodes this kind; others come out white or dark without an error."""
    if image.format == "TIFF" and image.mode == "RGBA":  # if turned, colours are times alpha
        return getattr(image, "tag_v2", {}).get(ORIENTATION, 1) == 1
    if image.format == "JPEG" and image.mode == "CMYK":  # else decoders differ in what is ink
        return "adobe" in image.info
    return image.mode not in ("F", "I") and (image.format, image.mode) != ("TIFF", "LA")


def _is_readable_webp(path: str) -> bool:
    """Return whether DALI's parser stays within a WebP: it trusts the sizes of chunks, and looks
    for EXIF in the wrong place after a chunk of odd size, which a further byte pads."""
    with open(path, "rb") as file:
        header = file.read(16)
        if header[12:] != b"VP8X":
            return True  # it reads no further
        place, end = 12, 8 + int.from_bytes(header[4:8], "little")
        has_odd, frames = False, 0
        while place + 8 <= end:
            file.seek(place)
            kind, size = file.read(4), int.from_bytes(file.read(4), "little")
            frames += kind == b"ANMF"
            if kind == b"EXIF" and (has_odd or frames == 1):  # PIL calls one frame no animation
                return False
            has_odd |= size % 2 == 1
            place += 8 + size + size % 2
        return place == end == os.path.getsize(path)


def _is_readable_bmp(path: str) -> bool:
    """Return whether a BMP's palette has the room that its header gives it, as DALI trusts the one
    and PIL the other, and whether its last row is padded, without which DALI reads other pixels."""
    with open(path, "rb") as file:
        header = file.read(50)
    start, size, width, height, packed, colours = (
        int.from_bytes(header[at : at + 4], "little", signed=at in (18, 22))
        for at in (10, 14, 18, 22, 30, 46))
    bits = int.from_bytes(header[28:30], "little")
    row = (width * bits + 31) // 32 * 4
    has_all = packed != 0 or os.path.getsize(path) >= start + row * abs(height)
    has_room = bits > 8 or 14 + size + 4 * (colours or 1 << bits) <= start
    return size < 40 or (has_all and has_room)


def _is_readable_tiff(path: str) -> bool:
    """Return whether a TIFF has strips for all its rows; where they lack, decoders differ."""
    with Image.open(path) as image:
        tags = getattr(image, "tag_v2", {})
        height, strips = int(tags[257]), tags.get(273)
        rows = max(1, min(int(tags.get(278, height)), height))
        return not strips or len(strips) % -(-height // rows) == 0


_CHECKS = {"WEBP": _is_readable_webp, "BMP": _is_readable_bmp, "TIFF": _is_readable_tiff}
"""By format: what PIL's headers do not tell."""
