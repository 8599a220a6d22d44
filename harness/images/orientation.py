"""The EXIF orientation of an image, as DALI reads it.

DALI reads it twice. Where an entry of the block ends outside of it, the size of the picture is that
of the stored one and its pixels are turned all the same, so that they come out as noise.
"""

import struct
from collections.abc import Iterator

from PIL import Image

ORIENTATION = 0x0112
_MARK = 42
"""After the letters of the byte order."""
_TEXTS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x8298)
_FRACTIONS = {0x011A: 1, 0x011B: 1, 0x013E: 2, 0x013F: 6, 0x0211: 3, 0x0214: 6}
"""Tags of fractions of 8 bytes, and how many."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> tuple[Image.Transpose | None, bool]:
    """Return what turns an opened image upright, None for nothing, and whether decoders agree on
    it: its EXIF blocks turn alike and are whole. PIL turns TIFFs itself; DALI turns no moving WebP,
    and crashes on a moving PNG that is turned."""
    is_moving = bool(getattr(image, "is_animated", False))
    if image.format == "TIFF" or (image.format == "WEBP" and is_moving):
        return None, True
    segments = [content for name, content in getattr(image, "applist", ()) if name == "APP1"]
    blocks = [content[6:] for content in segments if content[:8] in (b"Exif\0\0II", b"Exif\0\0MM")]
    if not blocks:
        blocks = [image.info.get("exif", b"").removeprefix(b"Exif\0\0")]
    turns, whole = zip(*map(_turn, blocks), strict=True)
    is_still = turns[0] is None or image.format != "PNG" or not is_moving
    return turns[0], all(whole) and len({*turns}) == 1 and is_still


def _turn(block: bytes) -> tuple[Image.Transpose | None, bool]:
    """Return what an EXIF block turns, and whether it is whole or turns nothing."""
    order = "<" if block[:2] == b"II" else ">"  # DALI looks for no other letters
    orientation, found, is_whole = 1, False, True
    try:
        for tag, value, end in _entries(block, order):
            if tag == ORIENTATION and not found:
                orientation, found = value, True
            is_whole &= end <= len(block)
    except struct.error:
        is_whole = False
    turn = _TURNS.get(orientation)
    return turn, is_whole or turn is None


def _entries(block: bytes, order: str) -> Iterator[tuple[int, int, int]]:
    """Yield tag, first number and end of each entry; struct.error where the block is cut short."""
    if block[2:4] != struct.pack(f"{order}H", _MARK):
        return
    [start] = struct.unpack_from(f"{order}I", block, 4)
    [count] = struct.unpack_from(f"{order}H", block, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, size, offset = struct.unpack_from(f"{order}HHII", block, place)
        [value] = struct.unpack_from(f"{order}H", block, place + 8)
        end = offset + size if tag in _TEXTS and size > 4 else 0
        yield tag, value, offset + 8 * _FRACTIONS[tag] if tag in _FRACTIONS else end
