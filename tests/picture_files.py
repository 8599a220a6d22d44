"""One picture as files of every kind that is accepted, and how each kind changes it."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112
STORED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is stored so that its EXIF orientation turns it upright again."""


def picture(seed: int = 0, size: tuple[int, int] = (37, 61)) -> Image.Image:
    """A smooth picture in colours, of an odd width and height."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L")


def deep(image: Image.Image) -> Image.Image:
    """16 bits grey, most of its levels no multiple of 257."""
    levels = np.asarray(grey(image)).astype(np.uint16)
    return Image.fromarray(levels * 257 + np.where(levels < 255, levels // 2, 0).astype(np.uint16))


def seen_through(image: Image.Image) -> Image.Image:
    """With alpha from nothing to all."""
    alpha = np.arange(image.width * image.height).reshape(image.height, image.width) % 256
    image = image.copy()
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def reduced(image: Image.Image) -> Image.Image:
    return image.quantize(64)


def as_is(image: Image.Image) -> Image.Image:
    return image


KINDS: dict[str, tuple[Callable[[Image.Image], Image.Image], dict]] = {
    "colour.png": (as_is, {}), "grey.png": (grey, {}), "grey16.png": (deep, {}),
    "bits.png": (lambda image: image.convert("1"), {}), "palette.png": (reduced, {}),
    "palette_alpha.png": (reduced, {"transparency": 3}),
    "alpha.png": (seen_through, {}), "grey_alpha.png": (lambda p: seen_through(grey(p)), {}),
    "colour.bmp": (as_is, {}), "palette.bmp": (reduced, {}), "grey.BMP": (grey, {}),
    "colour.tif": (as_is, {}), "grey16.tiff": (deep, {}), "alpha.tif": (seen_through, {}),
    "packed.tif": (as_is, {"compression": "tiff_lzw"}),
    "pages.tif": (as_is, {"save_all": True}),
    "colour.webp": (as_is, {"lossless": True}),
    "alpha.webp": (seen_through, {"lossless": True, "exact": True}),
    "moving.webp": (as_is, {"lossless": True, "save_all": True}),
    "lossy.webp": (as_is, {"quality": 80}), "colour.jpg": (as_is, {"quality": 90}),
    "progressive.jpeg": (as_is, {"quality": 90, "progressive": True}),
    "grey.jpg": (grey, {"quality": 90}),
    "print.jpg": (lambda p: p.convert("CMYK"), {"quality": 95}),
}
"""File name: what is made of the picture, and how it is saved."""


def write(folder: Path, image: Image.Image) -> dict[str, Path]:
    """Write `image` as every kind; returns the files by name."""
    for name, (change, options) in KINDS.items():
        second = [image.rotate(180)] if "save_all" in options else []
        change(image).save(folder / name, **options, append_images=second)
    (folder / "colour16.png").write_bytes(png16(np.asarray(image)))
    return {name: folder / name for name in [*KINDS, "colour16.png"]}


def expected(name: str, image: Image.Image) -> NDArray[np.uint8]:
    """The pixels [h, w, 3] that a lossless file of `write` stands for, by what it was made of."""
    if name == "colour16.png":
        return np.asarray(image)
    made = KINDS[name][0](image)
    if "16" in name:
        levels = np.rint(np.asarray(made) / 257).astype(np.uint8)
        return np.repeat(levels[:, :, None], 3, axis=2)
    return np.asarray(made.convert("RGB"))


def png16(levels: NDArray[np.uint8]) -> bytes:
    """A PNG of 16 bits a colour, which PIL does not write, with `levels` [h, w, 3] in 8 bits."""
    height, width, _ = levels.shape
    rows = [b"\0" + row.tobytes() for row in levels.astype(">u2") * 257]
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(b"".join(rows)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )


def tag_of(orientation: int) -> Image.Exif:
    tag = Image.Exif()
    tag[ORIENTATION] = orientation
    return tag


def turned(path: Path, image: Image.Image, orientation: int) -> Path:
    """Save `image` as a camera held so would: turned, with the tag that turns it upright."""
    how = STORED[orientation]
    (image if how is None else image.transpose(how)).save(path, exif=tag_of(orientation))
    return path
