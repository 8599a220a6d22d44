"""What drawn persons and vehicles share: random streams, colours, patterns, scenes, occluders and
cameras.

Letters: H, W height and width of a picture in pixels. Pictures are drawn `SUPERSAMPLE` times
larger and reduced, because PIL's polygons have hard edges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Protocol

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
EVEN_COLOURS = dict.fromkeys(PALETTE, 1.0)

Stream = IntEnum("Stream", "IDENTITY CAMERA SCENE SHOT OCCLUDER EXPOSURE PRESENCE WORDS SIZE")
"""What a sequence of random numbers decides; part of its key, so that streams never meet."""


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return random numbers that depend on the seed, the stream and the key only."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, *key))))


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """Draw one of the options in proportion to its weight."""
    edges = np.cumsum(list(weights.values()))
    return list(weights)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def jittered(
    colour: tuple[float, float, float], rng: np.random.Generator, amount: float = 9.0
) -> Colour:
    """Return a colour near `colour`: two red shirts are rarely the same red."""
    red, green, blue = np.clip(np.array(colour) + rng.normal(0.0, amount, 3), 0, 255).tolist()
    return int(red), int(green), int(blue)


def any_colour(rng: np.random.Generator, weights: dict[str, float] = EVEN_COLOURS) -> Colour:
    """Draw a colour of the palette, slightly varied."""
    return jittered(PALETTE[choose(rng, weights)], rng)


def shaded(colour: Colour, factor: float) -> Colour:
    """Return the colour under more (`factor` > 1) or less light."""
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


class Figure(Protocol):
    """A person or vehicle in one picture."""

    view: int
    """The visible side; always 0 for persons."""

    def paint(self, image: Image.Image) -> None: ...
    def describe(self, rng: np.random.Generator) -> str: ...


@dataclass(frozen=True)
class Fabric:
    """A material: two colours laid out by a pattern, over a fine weave."""

    colour: Colour
    second: Colour
    pattern: str
    period: float  # length of one repeat, in units of the figure's height
    duty: float  # share of the repeat that has the second colour
    weave: int  # 0 smooth, 1 ribs across, 2 ribs along, 3 speckled


# where the second colour is, by repeats to the right (u) and down (v), and its share (duty)
_MASKS: dict[str, Callable[[Any, Any, float], Any]] = {
    "striped": lambda u, v, duty: v % 1 < duty,
    "pinstriped": lambda u, v, duty: u % 1 < duty,
    "checked": lambda u, v, duty: (u % 1 < 0.5) ^ (v % 1 < 0.5),
    "dotted": lambda u, v, duty: (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.3 * duty,
    "diagonal": lambda u, v, duty: (u + v) % 1 < duty,
    "zigzag": lambda u, v, duty: (v + np.abs(u % 1 - 0.5)) % 1 < duty,
    "banded": lambda u, v, duty: (v > 0.8) & (v < 0.8 + 2.5 * duty),  # one broad stripe
}
PATTERNS = ("plain", *_MASKS)


@lru_cache(maxsize=4)
def _pattern(fabric: Fabric, size: tuple[int, int], origin: Point, unit: float) -> Image.Image:
    """Return where a fabric shows its second colour, an L image; cached for a garment's parts."""
    rows, columns = (axis.astype(np.float32) for axis in np.ogrid[: size[1], : size[0]])
    period = max(fabric.period * unit, 3.0)
    u, v = (columns - origin[0]) / period, (rows - origin[1]) / period
    return _l_image(255 * _MASKS[fabric.pattern](u, v, fabric.duty), size)


def _l_image(values: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.broadcast_to(values.astype(np.uint8), size[::-1]))


@lru_cache(maxsize=16)
def _weave(kind: int, size: tuple[int, int]) -> Image.Image:
    """Return how strongly the weave darkens each pixel, an L image."""
    if kind == 3:
        return _l_image(generator(0, Stream.SCENE, kind).random(size[::-1]) * 110, size)
    axis = np.ogrid[: size[1], : size[0]][kind - 1]
    return _l_image(60 * (axis % 5 < 2), size)


class Canvas:
    """A picture or mask being drawn, with the few strokes that figures are made of.

    A `fill` is a colour, or a grey level in a mask.
    """

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.pen = ImageDraw.Draw(image)

    def polygon(self, points: Sequence[Point], fill: Colour | int) -> None:
        """Fill the polygon."""
        self.pen.polygon(points, fill=fill)

    def disc(self, centre: Point, rx: float, ry: float, fill: Colour | int) -> None:
        """Fill the ellipse with half-axes `rx`, `ry`."""
        x, y = centre
        self.pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)

    def limb(self, points: Sequence[Point], width: float, fill: Colour | int) -> None:
        """Draw a thick line through the points, with round ends and joints."""
        self.pen.line(points, fill=fill, width=max(1, round(width)))
        for point in points:
            self.disc(point, width / 2, width / 2, fill)

    def fabric(
        self, fabric: Fabric, mask: Image.Image, origin: Point, unit: float, shade: float
    ) -> None:
        """Fill a mask with a material.

        The pattern starts at `origin` (x, y) with units of `unit` pixels, so it moves and grows
        with the figure that wears it.
        """
        box = mask.getbbox()
        if box is None:
            return
        # Only the box: pasting whole pictures took a third of the time.
        mask = mask.crop(box)
        self.image.paste(shaded(fabric.colour, shade), box, mask)
        if fabric.pattern != "plain":
            pattern = _pattern(fabric, self.image.size, origin, unit)
            visible = ImageChops.darker(mask, pattern.crop(box))
            self.image.paste(shaded(fabric.second, shade), box, visible)
        if fabric.weave:
            weave = _weave(fabric.weave, self.image.size).crop(box)
            self.image.paste((0, 0, 0), box, ImageChops.darker(mask, weave))


class Camera:
    """How one camera changes every picture; neighbours differ in exposure, sharpness, heading."""

    def __init__(self, seed: int, camera: int) -> None:
        rng, kind = generator(seed, Stream.CAMERA, camera), camera % 6
        grey = np.full((3, 3), 1 / 3, dtype=np.float32)
        saturation = rng.uniform(0.7, 1.1)
        mixed = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey
        gains = np.exp(rng.normal(0.0, 0.05, 3))
        self.colour = (mixed * (gains / gains.mean())).astype(np.float32)  # [3, 3]
        self.exposure = (0.85, 1.06, 0.95, 1.15, 0.9, 1.0)[kind] * rng.uniform(0.95, 1.05)
        self.gamma = rng.uniform(0.88, 1.15)
        self.noise = rng.uniform(2.0, 9.0)  # standard deviation in grey levels
        self.detail = (1.0, 0.6, 0.85, 0.7, 1.0, 0.55)[kind]  # share of the resolution kept
        self.blur = int(rng.integers(1, 4))  # longest motion blur, in pixels
        self.zoom = rng.uniform(0.88, 1.04)
        # where most figures face, in radians; 0 is towards the camera
        self.heading = (0.0, 3.0, 1.2, 0.5, -1.2, 2.4)[kind] + rng.normal(0.0, 0.15)


camera_of = lru_cache(maxsize=64)(Camera)


def scene(seed: int, camera: int, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a figure's background: a random crop of the camera's surroundings."""
    whole = _panorama(seed, camera, size)
    left = int(rng.integers(0, whole.width - size[0]))
    top = int(rng.integers(0, whole.height - size[1]))
    return whole.crop((left, top, left + size[0], top + size[1]))


@lru_cache(maxsize=24)
def _panorama(seed: int, camera: int, size: tuple[int, int]) -> Image.Image:
    """Return a camera's surroundings: walls with openings, a textured floor, objects."""
    rng = generator(seed, Stream.SCENE, camera)
    width, height = size[0] * SCENE_WIDTHS, size[1] * 5 // 4
    image = Image.new("RGB", (width, height))
    canvas, horizon = Canvas(image), int(height * rng.uniform(0.45, 0.75))
    # Walls change along the way; otherwise the background alone would reveal the camera.
    for left in range(0, width, size[0]):
        _wall(canvas, rng, left, left + size[0], horizon)
        _floor(canvas, rng, left, left + size[0], horizon)
    for _ in range(SCENE_WIDTHS):
        _object(canvas, rng, horizon)
    grain = rng.normal(0.0, rng.uniform(3.0, 8.0), (height // 2, width // 2, 1)).repeat(2, 0)
    noisy = np.asarray(image, dtype=np.float32)[: grain.shape[0], : grain.shape[1] * 2]
    return Image.fromarray(np.clip(noisy + grain.repeat(2, 1), 0, 255).astype(np.uint8))


def _muted(rng: np.random.Generator) -> Colour:
    base = rng.uniform(70, 190)
    return jittered((base, base, base), rng)


def _wall(canvas: Canvas, rng: np.random.Generator, left: int, right: int, horizon: int) -> None:
    """Draw bricks, slats or a fence with doors and windows."""
    canvas.pen.rectangle((left, 0, right, horizon), fill=_muted(rng))
    step, line, kind = int(rng.integers(9, 30)), _muted(rng), int(rng.integers(0, 3))
    for y in range(0, horizon, step if kind == 0 else step * 3):
        canvas.pen.line((left, y, right, y), fill=line, width=2)
    if kind != 2:
        for x in range(left, right, step * 2):
            canvas.pen.line((x, 0, x, horizon), fill=line, width=2)
    for _ in range(2):
        x, y = int(rng.integers(left, right)), int(rng.integers(0, horizon))
        right_end, low_end = x + int(rng.integers(15, 70)), y + int(rng.integers(20, 80))
        box = (x, y, right_end, min(low_end, horizon))
        canvas.pen.rectangle(box, fill=_muted(rng), outline=line)


def _floor(canvas: Canvas, rng: np.random.Generator, left: int, right: int, horizon: int) -> None:
    """Draw a paved floor below the horizon."""
    height = canvas.image.height
    canvas.pen.rectangle((left, horizon, right, height), fill=_muted(rng))
    step, line = int(rng.integers(12, 50)), _muted(rng)
    if rng.random() < 0.6:
        for x in range(left, right, step):
            canvas.pen.line((x, horizon, x + step // 3, height), fill=line)
    for row in range(4):
        y = horizon + (height - horizon) * (row / 4) ** 1.5
        canvas.pen.line((left, y, right, y), fill=line, width=1 + row // 2)


def _object(canvas: Canvas, rng: np.random.Generator, horizon: int) -> None:
    """Draw a sign, a case or a plant."""
    width, height = canvas.image.size
    x, foot = int(rng.integers(0, width)), int(rng.integers(horizon, height))
    tall, wide = int(rng.integers(20, max(21, horizon // 2))), int(rng.integers(4, 30))
    colour = shaded(jittered(PALETTE[choose(rng, EVEN_COLOURS)], rng, 20.0), 0.85)
    if rng.random() < 0.5:
        canvas.pen.rectangle((x, foot - tall, x + wide, foot), fill=colour)
        return
    for _ in range(12):
        at = (x + rng.normal(0, wide / 2), foot - rng.random() * tall)
        canvas.disc(at, wide / 4, wide / 4, jittered((70, 96, 62), rng, 14.0))


def occlude(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw a box, a pole or a bush over the figure, hiding about a quarter of it."""
    width, height = canvas.image.size
    kind, colour = rng.integers(0, 3), _muted(rng)
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
    kept = (max(1, round(width * camera.detail)), max(1, round(height * camera.detail)))
    image = image.resize(kept, Image.Resampling.BOX).resize(size, Image.Resampling.BILINEAR)
    sharp = np.asarray(image, dtype=np.float32) / np.float32(255)
    pixels = _motion_blurred(sharp, int(rng.integers(1, camera.blur + 1)))
    pixels = np.maximum(pixels @ camera.colour, 0.0)
    light = camera.exposure * rng.uniform(0.85, 1.18)
    slope = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * rng.normal(0, 0.1)
    sideways = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * rng.normal(0, 0.12)
    pixels = pixels**camera.gamma * (light * (1 + slope + sideways))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * (camera.noise / 255)
    return (np.clip(pixels + noise, 0, 1) * 255).astype(np.uint8)


def _motion_blurred(pixels: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Return the mean of `length` copies, each moved one pixel further to the side."""
    if length == 1:
        return pixels
    total = pixels.copy()
    for shift in range(1, length):
        total[:, shift:] += pixels[:, :-shift]
        total[:, :shift] += pixels[:, :shift]
    return total / np.float32(length)
