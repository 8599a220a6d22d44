"""Draws vehicles of the synthetic world: boxes with a profile, seen from a raised camera.

Letters: x forward, y to the vehicle's left, z up, in metres. yaw 0 shows the front; the camera
looks down by `tilt`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from PIL import Image

from svll.world.drawing import Camera, Canvas, Colour, Point, shaded
from svll.world.vehicles import Outline, Vehicle, describe, view_from

FLANKS = {"left": 1, "right": -1}
TYRE: Colour = (26, 26, 28)


class VehicleFigure:
    """A vehicle as seen once, in a picture of `size`; most drive along the camera's heading.

    `aside` moves it out of the middle, in picture widths.
    """

    def __init__(
        self, rng: np.random.Generator, vehicle: Vehicle, size: tuple[int, int], camera: Camera,
        aside: float,
    ) -> None:
        (width, height), model = size, vehicle.model
        self.vehicle, self.model, self.half = vehicle, model, model.half_width
        turned = math.pi if rng.random() < 0.3 else 0.0
        self.yaw = camera.heading + turned + rng.normal(0.0, 0.45)
        self.cos, self.sin = math.cos(self.yaw), math.sin(self.yaw)
        self.view = view_from(self.yaw)
        self.nearer = -1 if self.sin > 0 else 1  # the flank towards the camera: +1 is the left
        tilt = rng.uniform(0.12, 0.42)
        self.up, self.down = math.cos(tilt), math.sin(tilt)
        long, wide = (model.front - model.rear) * vehicle.stretch, 2 * model.half_width
        across = long * abs(self.sin) + wide * abs(self.cos)
        along = long * abs(self.cos) + wide * abs(self.sin)
        tall = max(z for _, z in model.profile)
        high = tall * self.up + along * self.down
        # pixels per metre, and the centre in pixels
        self.unit = min(width / across, 0.95 * height / high) * camera.zoom
        self.unit *= rng.uniform(0.92, 1.06)
        self.x = width * (0.5 + aside + rng.normal(0.0, 0.03))
        self.y = height * (0.5 + rng.normal(0.0, 0.03)) + tall * self.up * self.unit / 2

    def describe(self, rng: np.random.Generator) -> str:
        """Return a caption; its wording varies with the random numbers."""
        return describe(rng, self.vehicle, self.yaw)

    def paint(self, image: Image.Image) -> None:
        """Draw the shadow, the wheels behind, the hull and its attachments."""
        self.canvas = Canvas(image)
        front, rear, half = self.model.front * 1.03, self.model.rear * 1.03, self.half * 1.1
        shadow = [(x, y, 0.0) for x, y in _box(front, rear, half, -half)]
        self._fill(shadow, (34, 34, 36))
        self._wheels(-self.nearer)
        faces: list[tuple[float, Callable[[], None]]] = []
        profile = self._stretched(self.model.profile)
        for number, (start, end) in enumerate(pairwise(profile)):
            if self._is_visible(start, end):
                depth = self._depth((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
                faces.append((depth, partial(self._panel, number, start, end)))
        for _, stroke in sorted(faces, key=lambda face: face[0]):
            stroke()
        if abs(self.sin) > 0.05:
            self._flank()
            self._wheels(self.nearer)
        self._ends(profile)
        self._on_the_roof(profile)

    def _at(self, x: float, y: float, z: float) -> Point:
        depth = x * self.cos - y * self.sin
        across = y * self.cos + x * self.sin
        above = z * self.up - depth * self.down
        return self.x + across * self.unit, self.y - above * self.unit

    def _depth(self, x: float, z: float) -> float:
        return x * self.cos * self.up + z * self.down

    def _fill(self, corners: Sequence[tuple[float, float, float]], colour: Colour) -> None:
        self.canvas.polygon([self._at(*corner) for corner in corners], colour)

    def _stretched(self, outline: Outline) -> Outline:
        return tuple((x * self.vehicle.stretch, z) for x, z in outline)

    def _is_visible(self, start: Point, end: Point) -> bool:
        """Tell whether a panel that spans the width faces the camera."""
        ahead, above = end[1] - start[1], start[0] - end[0]
        return ahead * self.cos * self.up + above * self.down > 0

    def _across(self, start: Point, end: Point, colour: Colour, inset: float = 0.0) -> None:
        """Fill a panel that spans the width between two points (x, z) of the profile."""
        half = self.half * (1 - inset)
        (ax, az), (bx, bz) = start, end
        ax, bx = ax + (bx - ax) * inset, bx + (ax - bx) * inset
        az, bz = az + (bz - az) * inset, bz + (az - bz) * inset
        self._fill(((ax, half, az), (ax, -half, az), (bx, -half, bz), (bx, half, bz)), colour)

    def _panel(self, number: int, start: Point, end: Point) -> None:
        vehicle = self.vehicle
        slope = (start[0] - end[0]) / math.dist(start, end)  # 1: level, 0: upright
        colour = vehicle.roof if min(start[1], end[1]) > 1.3 else vehicle.colour
        if vehicle.kind == "truck" and max(start[0], end[0]) < 2.2:
            colour = vehicle.box
        self._across(start, end, shaded(colour, 0.92 + 0.22 * slope))
        if number in self.model.glazed:
            self._across(start, end, vehicle.glass, 0.1)
        if vehicle.kind == "pickup" and number == 5:
            self._across(start, end, shaded(vehicle.box, 0.6), 0.12)

    def _on_flank(self, points: Outline, colour: Colour) -> None:
        y = self.nearer * self.half
        self._fill([(x, y, z) for x, z in self._stretched(points)], colour)

    def _flank(self) -> None:
        vehicle, model = self.vehicle, self.model
        self._on_flank(model.profile, shaded(vehicle.colour, 0.84))
        if vehicle.kind == "truck":
            self._on_flank(_box(2.1, -3.5, 0.8, 2.65), shaded(vehicle.box, 0.84))
        if vehicle.stripe_name:
            low, high = self._belt()
            z = low + (high - low) * vehicle.stripe_z
            band = _box(model.front, model.rear, z, min(z + vehicle.stripe_width, high))
            self._on_flank(band, vehicle.stripe)
        for window in model.windows:
            self._on_flank(window, vehicle.glass)
        low = model.profile[0][1]
        sill = _box(model.front, model.rear, low, low + 0.14)
        self._on_flank(sill, shaded(vehicle.bumper, 0.8))
        for sticker in vehicle.stickers:
            if FLANKS.get(sticker.place) == self.nearer:
                self._sticker(sticker.kind, sticker.colour, sticker.along, sticker.z, sticker.size)
        for flank, along, z in vehicle.dents:
            if FLANKS[flank] == self.nearer:
                self._sticker("disc", shaded(vehicle.colour, 0.5), along, z, 0.12)

    def _belt(self) -> tuple[float, float]:
        """Return the heights between which the flank is sheet metal along its whole length."""
        return self.model.profile[0][1] + 0.1, min(z for _, z in self.model.profile[1:-1])

    def _sticker(self, kind: str, colour: Colour, along: float, z: float, size: float) -> None:
        """Draw a mark on the nearer flank; `along` and `z` are shares of its length and height."""
        front, (low, high) = self.model.front, self._belt()
        mark = _mark(kind, along * front, low + (high - low) * z, size * max(1.0, front / 2.3))
        self._on_flank(mark, colour)

    def _wheels(self, flank: int) -> None:
        radius, y = self.model.wheel, flank * self.half * 1.01
        turn = np.linspace(0, 2 * math.pi, 14, endpoint=False)
        for hub in self.model.wheels:
            hub *= self.vehicle.stretch

            def rim(r: float, t: float, hub: float = hub) -> tuple[float, float, float]:
                return hub + r * math.cos(t), y, radius + r * math.sin(t)

            self._fill([rim(radius, t) for t in turn], TYRE)
            if flank != self.nearer:
                continue
            self._fill([rim(radius * 0.62, t) for t in turn], self.vehicle.rim)
            for spoke in range(self.vehicle.spokes):
                tip = rim(radius * 0.6, 2 * math.pi * spoke / self.vehicle.spokes)
                ends = [self._at(hub, y, radius), self._at(*tip)]
                self.canvas.limb(ends, self.unit * 0.07, TYRE)

    def _ends(self, profile: Outline) -> None:
        """Draw bumper, lamps, plate and stickers on the end towards the camera."""
        if abs(self.cos) < 0.15:
            return
        ahead = self.cos > 0
        (x, low), (_, high) = (profile[0], profile[1]) if ahead else (profile[-1], profile[-2])
        vehicle, half, tall = self.vehicle, self.half, min(high, 1.3) - low
        x *= 1.002

        def draw(outline: Outline, colour: Colour) -> None:
            self._fill([(x, y, z) for y, z in outline], colour)

        draw(_box(half, -half, low, low + 0.3 * tall), shaded(vehicle.bumper, 0.75))
        lamp = (244, 240, 214) if ahead else (186, 30, 30)
        wide, z = vehicle.lights, low + 0.7 * tall
        for side in (-1, 1):
            y = side * (half - wide - 0.04)
            draw(_box(y - wide, y + wide, z - wide * 0.5, z + wide * 0.5), lamp)
        z = low + 0.42 * tall
        draw(_box(-0.32, 0.32, z - 0.1, z + 0.1), vehicle.plate)
        for number, is_dark in enumerate(vehicle.plate_bars):
            if is_dark:
                left = -0.28 + number * 0.095
                draw(_box(left, left + 0.06, z - 0.065, z + 0.065), (24, 24, 30))
        for sticker in vehicle.stickers:
            if sticker.place == ("front" if ahead else "rear"):
                at = (sticker.along * half * 0.7, low + tall * (0.45 + 0.5 * sticker.z))
                draw(_mark(sticker.kind, *at, sticker.size * 0.7), sticker.colour)

    def _on_the_roof(self, profile: Outline) -> None:
        vehicle, top = self.vehicle, max(z for _, z in profile)
        level = [x for x, z in profile if z > top - 0.1]
        front, rear = max(level), min(level)
        middle, half = (front + rear) / 2, self.half * 0.75
        if vehicle.sunroof:
            pane = _box(half * 0.6, -half * 0.6, middle + 0.45, middle - 0.2)
            self._fill([(x, y, top) for y, x in pane], vehicle.glass)
        if vehicle.rack:
            if vehicle.rack_load is not None:
                self._case(middle, 0.4 * (front - rear), half * 0.8, top, 0.32, vehicle.rack_load)
            for y in (-half, half):
                rail = [self._at(front - 0.15, y, top + 0.1), self._at(rear + 0.15, y, top + 0.1)]
                self.canvas.limb(rail, self.unit * 0.08, (52, 52, 56))
        if vehicle.sign:
            self._case(front - 0.35, 0.14, 0.36, top, 0.22, (238, 214, 92))

    def _case(
        self, x: float, long: float, half: float, low: float, tall: float, colour: Colour
    ) -> None:
        """Draw a case of half-length `long` and half-width `half` that stands on `low`."""
        high, ahead, behind = low + tall, x + long, x - long
        end, flank = ahead if self.cos > 0 else behind, self.nearer * half
        face, side = _box(low, high, -half, half), _box(low, high, ahead, behind)
        self._fill([(end, y, z) for z, y in face], shaded(colour, 0.9))
        self._fill([(x, flank, z) for z, x in side], shaded(colour, 0.75))
        self._fill([(x, y, high) for y, x in _box(half, -half, ahead, behind)], colour)


def _box(u: float, other_u: float, v: float, other_v: float) -> Outline:
    """Return a rectangle; PIL's pixels depend on the order of its corners."""
    return (u, v), (u, other_v), (other_u, other_v), (other_u, v)


def _mark(kind: str, u: float, v: float, size: float) -> Outline:
    """Return the outline of a mark around (u, v)."""
    if kind == "triangle":
        return ((u, v + size), (u + size, v - size), (u - size, v - size))
    if kind == "disc":
        turn = np.linspace(0, 2 * math.pi, 10, endpoint=False)
        return tuple((u + size * math.cos(t), v + size * math.sin(t)) for t in turn)
    wide, tall = (2.2 * size, 0.4 * size) if kind == "bar" else (size, size)
    return _box(u - wide, u + wide, v - tall, v + tall)
