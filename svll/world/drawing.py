"""What persons and vehicles of the synthetic world share: random streams, colours, patterns,
scenes, things that stand in the way, and cameras.

Letters: H, W height and width of a picture in pixels. Pictures are drawn `SUPERSAMPLE` times
larger and reduced, because PIL's polygons have hard edges.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

SUPERSAMPLE = 2
SCENE_WIDTHS = 12  # a camera's scene is this many pictures wide; each shot cuts out a piece

Colour = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, Colour] = {
    "black": (34, 34, 38),
    "white": (226, 224, 218),
    "grey": (128, 130, 134),
    "red": (178, 40, 44),
    "blue": (44, 72, 156),
    "green": (48, 118, 66),
    "yellow": (214, 180, 58),
    "brown": (112, 74, 46),
}
PATTERNS = ("plain", "striped", "pinstriped", "checked", "dotted", "diagonal", "zigzag", "banded")


class Stream(IntEnum):
    """What a sequence of random numbers decides; part of its key, so that streams never meet."""

    IDENTITY = 1
    CAMERA = 2
    SCENE = 3
    SHOT = 4
    OCCLUDER = 5
    EXPOSURE = 6
    PRESENCE = 7
    WORDS = 8
    SIZE = 9


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return the random numbers that belong to a seed, a stream and a key, and to nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, *key))))


def choose(rng: np.random.Generator, options: dict[str, float]) -> str:
    """Draw one of the options, each as often as its weight says."""
    names = list(options)
    edges = np.cumsum(list(options.values()))
    return names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def jittered(colour: Colour, rng: np.random.Generator, amount: float = 9.0) -> Colour:
    """Return a colour near `colour`: two red shirts are rarely the same red."""
    moved = np.clip(np.array(colour) + rng.normal(0.0, amount, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def shaded(colour: Colour, factor: float) -> Colour:
    """Return the colour under more (`factor` > 1) or less light."""
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


@dataclass(frozen=True)
class Figure:
    """A person or vehicle in one picture."""

    view: int
    """Which side is seen; always 0 for persons."""
    paint: Callable[[Image.Image], None]
    """Draws the figure into a picture."""
    describe: Callable[[np.random.Generator], str]
    """Returns a sentence about what can be seen; wording varies with the random numbers."""


@dataclass(frozen=True)
class Fabric:
    """A material: two colours laid out by a pattern, over a fine weave."""

    colour: Colour
    second: Colour
    pattern: str
    period: float
    """Length of one repeat, in units of the figure's height."""
    duty: float
    """Share of the repeat that has the second colour."""
    weave: int
    """0 smooth, 1 ribs across, 2 ribs along, 3 speckled."""


@lru_cache(maxsize=8)
def _axes(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    return rows, columns


def pattern_mask(fabric: Fabric, size: tuple[int, int], origin: Point, unit: float) -> Image.Image:
    """Return where a fabric shows its second colour, an L image of `size` (width, height).

    The pattern hangs from `origin` (x, y), and `unit` pixels are 1, so it moves and grows with
    the figure that wears it.
    """
    rows, columns = _axes(size[1], size[0])
    period = max(fabric.period * unit, 3.0)
    v = (rows - origin[1]) / period
    u = (columns - origin[0]) / period
    duty = fabric.duty
    if fabric.pattern == "striped":
        mask = (v % 1 < duty) & (u == u)
    elif fabric.pattern == "pinstriped":
        mask = (u % 1 < duty) & (v == v)
    elif fabric.pattern == "checked":
        mask = (u % 1 < 0.5) ^ (v % 1 < 0.5)
    elif fabric.pattern == "dotted":
        mask = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.3 * duty
    elif fabric.pattern == "diagonal":
        mask = (u + v) % 1 < duty
    elif fabric.pattern == "zigzag":
        mask = (v + np.abs(u % 1 - 0.5)) % 1 < duty
    else:  # banded: one broad stripe
        mask = (v > 0.8) & (v < 0.8 + 2.5 * duty) & (u == u)
    return Image.fromarray(mask.astype(np.uint8) * 255)


@lru_cache(maxsize=16)
def _weave(kind: int, size: tuple[int, int]) -> Image.Image:
    """Return how strongly the weave darkens each pixel, an L image."""
    rows, columns = _axes(size[1], size[0])
    if kind == 1:
        shade = 60 * (rows % 5 < 2) * np.ones_like(columns)
    elif kind == 2:
        shade = 60 * (columns % 5 < 2) * np.ones_like(rows)
    else:
        shade = generator(0, Stream.SCENE, kind).random((size[1], size[0])) * 110
    return Image.fromarray(shade.astype(np.uint8))


class Canvas:
    """A picture being drawn, with the few strokes that figures are made of."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.pen = ImageDraw.Draw(image)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        """Fill the polygon."""
        self.pen.polygon(points, fill=colour)

    def disc(self, centre: Point, rx: float, ry: float, colour: Colour) -> None:
        """Fill the ellipse with half-axes `rx`, `ry`."""
        _disc(self.pen, centre, rx, ry, colour)

    def limb(self, points: list[Point], width: float, colour: Colour) -> None:
        """Draw a thick line through the points, with round ends and joints."""
        _limb(self.pen, points, width, colour)

    def fabric(
        self, fabric: Fabric, shape: "Shape", pattern: Image.Image | None, shade: float = 1.0
    ) -> None:
        """Fill a shape with a material; `pattern` is its `pattern_mask`, None when plain."""
        box = shape.mask.getbbox()
        if box is None:
            return
        # Only the box: pasting whole pictures took a third of the time.
        mask = shape.mask.crop(box)
        self.image.paste(shaded(fabric.colour, shade), box, mask)
        if pattern is not None:
            seen = ImageChops.darker(mask, pattern.crop(box))
            self.image.paste(shaded(fabric.second, shade), box, seen)
        if fabric.weave:
            weave = _weave(fabric.weave, self.image.size).crop(box)
            self.image.paste((0, 0, 0), box, ImageChops.darker(mask, weave))


class Shape:
    """An outline put together from strokes, to be filled with a material."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.mask = Image.new("L", size)
        self.pen = ImageDraw.Draw(self.mask)

    def polygon(self, points: list[Point]) -> "Shape":
        """Add a polygon."""
        self.pen.polygon(points, fill=255)
        return self

    def limb(self, points: list[Point], width: float) -> "Shape":
        """Add a thick line with round ends and joints."""
        _limb(self.pen, points, width, 255)
        return self


def _disc(pen: ImageDraw.ImageDraw, centre: Point, rx: float, ry: float, fill: Any) -> None:
    x, y = centre
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _limb(pen: ImageDraw.ImageDraw, points: list[Point], width: float, fill: Any) -> None:
    pen.line(points, fill=fill, width=max(1, round(width)))
    for point in points:
        _disc(pen, point, width / 2, width / 2, fill)


@dataclass(frozen=True)
class Camera:
    """What one camera does to everything it sees."""

    colour: NDArray[np.float32]
    """Colour matrix [3, 3]: cast and saturation."""
    exposure: float
    gamma: float
    noise: float
    """Standard deviation of the noise, in grey levels."""
    detail: float
    """Share of the resolution that its lens keeps."""
    blur: int
    """Longest motion blur, in pixels."""
    zoom: float
    heading: float
    """Direction in which most figures face, in radians; 0 is towards the camera."""


@lru_cache(maxsize=64)
def camera_of(seed: int, camera: int) -> Camera:
    """Return a camera of the world; neighbours differ in exposure, sharpness and heading."""
    rng = generator(seed, Stream.CAMERA, camera)
    grey = np.full((3, 3), 1 / 3, dtype=np.float32)
    saturation = rng.uniform(0.7, 1.1)
    mixed = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey
    gains = np.exp(rng.normal(0.0, 0.05, 3))
    return Camera(
        colour=(mixed * (gains / gains.mean())).astype(np.float32),
        exposure=(0.85, 1.06, 0.95, 1.15, 0.9, 1.0)[camera % 6] * rng.uniform(0.95, 1.05),
        gamma=rng.uniform(0.88, 1.15),
        noise=rng.uniform(2.0, 9.0),
        detail=(1.0, 0.6, 0.85, 0.7, 1.0, 0.55)[camera % 6],
        blur=int(rng.integers(1, 4)),
        zoom=rng.uniform(0.88, 1.04),
        heading=(0.0, 3.0, 1.2, 0.5, -1.2, 2.4)[camera % 6] + rng.normal(0.0, 0.15),
    )


def scene(seed: int, camera: int, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return what stands behind a figure: a piece, cut at random, of what the camera overlooks."""
    whole = _panorama(seed, camera, size)
    left = int(rng.integers(0, whole.width - size[0]))
    top = int(rng.integers(0, whole.height - size[1]))
    return whole.crop((left, top, left + size[0], top + size[1]))


@lru_cache(maxsize=24)
def _panorama(seed: int, camera: int, size: tuple[int, int]) -> Image.Image:
    """Return a camera's surroundings: walls with openings, a textured floor, things about."""
    rng = generator(seed, Stream.SCENE, camera)
    width, height = size[0] * SCENE_WIDTHS, size[1] * 5 // 4
    image = Image.new("RGB", (width, height))
    canvas, horizon = Canvas(image), int(height * rng.uniform(0.45, 0.75))
    # Walls change along the way: else the background alone would tell the camera.
    for left in range(0, width, size[0]):
        _wall(canvas, rng, (left, left + size[0]), horizon)
        _floor(canvas, rng, (left, left + size[0]), (horizon, height))
    for _ in range(SCENE_WIDTHS):
        _thing(canvas, rng, horizon, height)
    grain = rng.normal(0.0, rng.uniform(3.0, 8.0), (height // 2, width // 2, 1)).repeat(2, 0)
    noisy = np.asarray(image, dtype=np.float32)[: grain.shape[0], : grain.shape[1] * 2]
    return Image.fromarray(np.clip(noisy + grain.repeat(2, 1), 0, 255).astype(np.uint8))


def _muted(rng: np.random.Generator) -> Colour:
    base = rng.uniform(70, 190)
    red, green, blue = np.clip(base + rng.normal(0.0, 9.0, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _wall(canvas: Canvas, rng: np.random.Generator, span: tuple[int, int], horizon: int) -> None:
    """Draw bricks, slats or a fence with doors and windows, from x = span[0] to span[1]."""
    left, right = span
    canvas.pen.rectangle((left, 0, right, horizon), fill=_muted(rng))
    step, line, kind = int(rng.integers(9, 30)), _muted(rng), int(rng.integers(0, 3))
    for y in range(0, horizon, step if kind == 0 else step * 3):
        canvas.pen.line((left, y, right, y), fill=line, width=2)
    for x in range(left, right, step * 2):
        if kind != 2:
            canvas.pen.line((x, 0, x, horizon), fill=line, width=2)
    for _ in range(2):
        x, y = int(rng.integers(left, right)), int(rng.integers(0, horizon))
        right_end, low_end = x + int(rng.integers(15, 70)), y + int(rng.integers(20, 80))
        box = (x, y, right_end, min(low_end, horizon))
        canvas.pen.rectangle(box, fill=_muted(rng), outline=line)


def _floor(
    canvas: Canvas, rng: np.random.Generator, span: tuple[int, int], rows: tuple[int, int]
) -> None:
    """Draw a paved floor between the rows."""
    (left, right), (horizon, height) = span, rows
    canvas.pen.rectangle((left, horizon, right, height), fill=_muted(rng))
    step, line = int(rng.integers(12, 50)), _muted(rng)
    if rng.random() < 0.6:
        for x in range(left, right, step):
            canvas.pen.line((x, horizon, x + step // 3, height), fill=line)
    for row in range(4):
        y = horizon + (height - horizon) * (row / 4) ** 1.5
        canvas.pen.line((left, y, right, y), fill=line, width=1 + row // 2)


def _thing(canvas: Canvas, rng: np.random.Generator, horizon: int, height: int) -> None:
    """Draw a sign, a case or a plant that stands about."""
    x, foot = int(rng.integers(0, canvas.image.width)), int(rng.integers(horizon, height))
    tall, wide = int(rng.integers(20, max(21, horizon // 2))), int(rng.integers(4, 30))
    colour = shaded(jittered(PALETTE[choose(rng, dict.fromkeys(PALETTE, 1.0))], rng, 20.0), 0.85)
    if rng.random() < 0.5:
        canvas.pen.rectangle((x, foot - tall, x + wide, foot), fill=colour)
        return
    for _ in range(12):
        at = (x + rng.normal(0, wide / 2), foot - rng.random() * tall)
        canvas.disc(at, wide / 4, wide / 4, jittered((70, 96, 62), rng, 14.0))


def stand_in_the_way(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a box, a pole or a bush over the figure, hiding about a quarter of it."""
    width, height = canvas.image.size
    kind = rng.integers(0, 3)
    colour = _muted(rng)
    if kind == 0:
        top, left = height * rng.uniform(0.5, 0.75), width * rng.uniform(-0.3, 0.4)
        box = (left, top, left + width * rng.uniform(0.6, 1.1), height)
        canvas.pen.rectangle(box, fill=colour, outline=shaded(colour, 0.6), width=2)
    elif kind == 1:
        left, thick = width * rng.uniform(0.25, 0.6), width * rng.uniform(0.12, 0.25)
        canvas.pen.rectangle((left, 0, left + thick, height), fill=colour)
        canvas.pen.rectangle((left, 0, left + thick / 4, height), fill=shaded(colour, 1.25))
    else:
        top, centre = rng.uniform(0.5, 0.7), width * rng.uniform(0.2, 0.8)
        for _ in range(45):
            at = (centre + rng.normal(0, width * 0.22), height * rng.uniform(top, 1.0))
            radius = width * rng.uniform(0.04, 0.1)
            canvas.disc(at, radius, radius, jittered((52, 92, 44), rng, 18.0))


def photograph(
    image: Image.Image, camera: Camera, size: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the drawn picture as a camera takes it, uint8 [H, W, 3], `size` being (W, H)."""
    width, height = size
    if camera.detail < 1:
        kept = (max(1, round(width * camera.detail)), max(1, round(height * camera.detail)))
        image = image.resize(kept, Image.Resampling.BOX).resize(size, Image.Resampling.BILINEAR)
    else:
        image = image.resize(size, Image.Resampling.BOX)
    sharp = np.asarray(image, dtype=np.float32) / np.float32(255)
    pixels = _smeared(sharp, int(rng.integers(1, camera.blur + 1)))
    pixels = np.maximum(pixels @ camera.colour, 0.0)
    light = camera.exposure * rng.uniform(0.85, 1.18)
    slope = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * rng.normal(0, 0.1)
    sideways = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * rng.normal(0, 0.12)
    pixels = pixels**camera.gamma * (light * (1 + slope + sideways))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * (camera.noise / 255)
    return (np.clip(pixels + noise, 0, 1) * 255).astype(np.uint8)


def _smeared(pixels: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Return the mean of `length` copies, each moved one pixel further to the side."""
    if length == 1:
        return pixels
    total = pixels.copy()
    for shift in range(1, length):
        total[:, shift:] += pixels[:, :-shift]
        total[:, :shift] += pixels[:, :shift]
    return total / np.float32(length)
