"""How vehicles of the synthetic world are drawn: boxes with a profile, seen from a raised camera.

Letters: x forward, y to the vehicle's left, z up, in metres. yaw 0 shows the front; the camera
looks down by `tilt`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from PIL import Image

from svll.world.drawing import Canvas, Colour, Figure, Point, shaded
from svll.world.vehicles import Outline, Vehicle, describe, view_from

FLANKS = {"left": 1, "right": -1}
TYRE: Colour = (26, 26, 28)


@dataclass(frozen=True)
class Pose:
    """How a vehicle stands in one picture: centre in pixels, pixels per metre, directions."""

    x: float
    y: float
    unit: float
    yaw: float
    tilt: float


def place(
    rng: np.random.Generator,
    vehicle: Vehicle,
    size: tuple[int, int],
    heading: float,
    zoom: float,
    aside: float = 0.0,
) -> Figure:
    """Return a vehicle as seen once, in a picture of `size`; most drive along `heading`.

    `aside` moves it out of the middle, in picture widths.
    """
    pose = _pose(rng, vehicle, size, heading, zoom, aside)
    return Figure(
        view=view_from(pose.yaw),
        paint=lambda image: _Painter(image, vehicle, pose).paint(),
        describe=lambda words: describe(words, vehicle, pose.yaw),
    )


def _pose(
    rng: np.random.Generator,
    vehicle: Vehicle,
    size: tuple[int, int],
    heading: float,
    zoom: float,
    aside: float,
) -> Pose:
    width, height = size
    yaw = heading + (math.pi if rng.random() < 0.3 else 0.0) + rng.normal(0.0, 0.45)
    tilt = rng.uniform(0.12, 0.42)
    model = vehicle.model
    long = (model.profile[0][0] - model.profile[-1][0]) * vehicle.stretch
    across = long * abs(math.sin(yaw)) + 2 * model.half_width * abs(math.cos(yaw))
    along = long * abs(math.cos(yaw)) + 2 * model.half_width * abs(math.sin(yaw))
    tall = max(z for _, z in model.profile)
    high = tall * math.cos(tilt) + along * math.sin(tilt)
    unit = min(width / across, 0.95 * height / high) * zoom * rng.uniform(0.92, 1.06)
    return Pose(
        x=width * (0.5 + aside + rng.normal(0.0, 0.03)),
        y=height * (0.5 + rng.normal(0.0, 0.03)) + tall * math.cos(tilt) * unit / 2,
        unit=unit,
        yaw=yaw,
        tilt=tilt,
    )


class _Painter:
    """One vehicle in one pose: knows where each part comes to lie."""

    def __init__(self, image: Image.Image, vehicle: Vehicle, pose: Pose) -> None:
        self.canvas = Canvas(image)
        self.vehicle, self.model, self.pose = vehicle, vehicle.model, pose
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self.up, self.down = math.cos(pose.tilt), math.sin(pose.tilt)
        self.half = vehicle.model.half_width
        self.nearer = -1 if self.sin > 0 else 1  # the flank towards the camera: +1 is the left

    def paint(self) -> None:
        """Draw the shadow, the wheels behind, the hull and what is fixed to it."""
        self._shadow()
        self._wheels(-self.nearer)
        faces: list[tuple[float, Callable[[], None]]] = []
        profile = self._stretched(self.model.profile)
        for number, (start, end) in enumerate(pairwise(profile)):
            middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
            if self._is_seen(start, end):
                depth = self._depth(middle[0], 0.0, middle[1])
                faces.append((depth, partial(self._panel, number, start, end)))
        for _, stroke in sorted(faces, key=lambda face: face[0]):
            stroke()
        if abs(self.sin) > 0.05:
            self._flank(profile)
            self._wheels(self.nearer)
        self._ends(profile)
        self._on_the_roof(profile)

    def _at(self, x: float, y: float, z: float) -> Point:
        depth = x * self.cos - y * self.sin
        across = y * self.cos + x * self.sin
        unit = self.pose.unit
        return self.pose.x + across * unit, self.pose.y - (z * self.up - depth * self.down) * unit

    def _depth(self, x: float, y: float, z: float) -> float:
        return (x * self.cos - y * self.sin) * self.up + z * self.down

    def _stretched(self, outline: Outline) -> Outline:
        return tuple((x * self.vehicle.stretch, z) for x, z in outline)

    def _is_seen(self, start: Point, end: Point) -> bool:
        """Tell whether a panel that spans the width faces the camera."""
        ahead, above = end[1] - start[1], start[0] - end[0]
        return ahead * self.cos * self.up + above * self.down > 0

    def _quad(self, start: Point, end: Point, inset: float = 0.0) -> list[Point]:
        """Return a panel that spans the width between two points (x, z) of the profile."""
        half = self.half * (1 - inset)
        (ax, az), (bx, bz) = start, end
        ax, bx = ax + (bx - ax) * inset, bx + (ax - bx) * inset
        az, bz = az + (bz - az) * inset, bz + (az - bz) * inset
        corners = ((ax, half, az), (ax, -half, az), (bx, -half, bz), (bx, half, bz))
        return [self._at(*corner) for corner in corners]

    def _shadow(self) -> None:
        front, rear = self.model.profile[0][0], self.model.profile[-1][0]
        corners = ((front, 1), (front, -1), (rear, -1), (rear, 1))
        ground = [self._at(x * 1.03, side * self.half * 1.1, 0.0) for x, side in corners]
        self.canvas.polygon(ground, (34, 34, 36))

    def _panel(self, number: int, start: Point, end: Point) -> None:
        vehicle = self.vehicle
        slope = (start[0] - end[0]) / math.dist(start, end)  # 1: level, 0: upright
        colour = vehicle.roof if min(start[1], end[1]) > 1.3 else vehicle.colour
        if vehicle.kind == "truck" and max(start[0], end[0]) < 2.2:
            colour = vehicle.box
        self.canvas.polygon(self._quad(start, end), shaded(colour, 0.92 + 0.22 * slope))
        if number in self.model.glazed:
            self.canvas.polygon(self._quad(start, end, 0.1), vehicle.glass)
        if vehicle.kind == "pickup" and number == 5:
            bed = shaded(vehicle.box, 0.6)
            self.canvas.polygon(self._quad(start, end, 0.12), bed)

    def _on_flank(self, points: Outline) -> list[Point]:
        return [self._at(x, self.nearer * self.half, z) for x, z in self._stretched(points)]

    def _flank(self, profile: Outline) -> None:
        vehicle, y = self.vehicle, self.nearer * self.half
        side = [self._at(x, y, z) for x, z in profile]
        self.canvas.polygon(side, shaded(vehicle.colour, 0.84))
        if vehicle.kind == "truck":
            box = ((2.1, 0.8), (2.1, 2.65), (-3.5, 2.65), (-3.5, 0.8))
            self.canvas.polygon(self._on_flank(box), shaded(vehicle.box, 0.84))
        if vehicle.stripe_name:
            self._stripe()
        for window in self.model.windows:
            self.canvas.polygon(self._on_flank(window), vehicle.glass)
        low, front, rear = profile[0][1], profile[0][0], profile[-1][0]
        sill = [self._at(x, y, z) for x, z in ((front, low), (front, low + 0.14))]
        sill += [self._at(x, y, z) for x, z in ((rear, low + 0.14), (rear, low))]
        self.canvas.polygon(sill, shaded(vehicle.bumper, 0.8))
        for sticker in vehicle.stickers:
            if FLANKS.get(sticker.place) == self.nearer:
                self._sticker(sticker.kind, sticker.colour, sticker.along, sticker.z, sticker.size)
        for place_, along, z in vehicle.dents:
            if FLANKS[place_] == self.nearer:
                self._sticker("disc", shaded(vehicle.colour, 0.5), along, z, 0.12)

    def _stripe(self) -> None:
        low, high = self._belt()
        z = low + (high - low) * self.vehicle.stripe_z
        front, rear = self.model.profile[0][0], self.model.profile[-1][0]
        top = min(z + self.vehicle.stripe_width, high)
        band = ((front, z), (front, top), (rear, top), (rear, z))
        self.canvas.polygon(self._on_flank(band), self.vehicle.stripe)

    def _belt(self) -> tuple[float, float]:
        """Return the heights between which the flank is sheet metal along its whole length."""
        return self.model.profile[0][1] + 0.1, min(z for _, z in self.model.profile[1:-1])

    def _sticker(self, kind: str, colour: Colour, along: float, z: float, size: float) -> None:
        """Draw a mark on the nearer flank; `along` and `z` are shares of its length and height."""
        front = self.model.profile[0][0]
        low, high = self._belt()
        x, z = along * front, low + (high - low) * z
        size *= max(1.0, front / 2.3)
        self.canvas.polygon(self._on_flank(_figure(kind, x, z, size)), colour)

    def _wheels(self, flank: int) -> None:
        radius, y = self.model.wheel, flank * self.half * 1.01
        turn = np.linspace(0, 2 * math.pi, 14, endpoint=False)
        for hub in self.model.wheels:
            hub *= self.vehicle.stretch

            def ring(share: float, hub: float = hub) -> list[Point]:
                r = radius * share
                return [self._at(hub + r * math.cos(t), y, radius + r * math.sin(t)) for t in turn]

            self.canvas.polygon(ring(1.0), TYRE)
            if flank != self.nearer:
                continue
            self.canvas.polygon(ring(0.62), self.vehicle.rim)
            centre = self._at(hub, y, radius)
            for spoke in range(self.vehicle.spokes):
                t = 2 * math.pi * spoke / self.vehicle.spokes
                r = radius * 0.6
                tip = self._at(hub + r * math.cos(t), y, radius + r * math.sin(t))
                self.canvas.limb([centre, tip], self.pose.unit * 0.07, TYRE)

    def _ends(self, profile: Outline) -> None:
        """Draw bumper, lamps, plate and stickers on the end towards the camera."""
        if abs(self.cos) < 0.15:
            return
        ahead = self.cos > 0
        (x, low), (_, high) = (profile[0], profile[1]) if ahead else (profile[-1], profile[-2])
        high = min(high, 1.3)
        x *= 1.002

        def on_end(outline: Outline) -> list[Point]:
            return [self._at(x, y, z) for y, z in outline]

        half, tall = self.half, high - low
        bumper = ((half, low), (half, low + 0.3 * tall), (-half, low + 0.3 * tall), (-half, low))
        self.canvas.polygon(on_end(bumper), shaded(self.vehicle.bumper, 0.75))
        lamp = (244, 240, 214) if ahead else (186, 30, 30)
        wide, z = self.vehicle.lights, low + 0.7 * tall
        for side in (-1, 1):
            centre = side * (half - wide - 0.04)
            box = _figure("square", centre, z, wide)
            self.canvas.polygon(on_end(tuple((y, z + (v - z) * 0.5) for y, v in box)), lamp)
        self._plate(on_end, low + 0.42 * tall)
        for sticker in self.vehicle.stickers:
            if sticker.place == ("front" if ahead else "rear"):
                at = (sticker.along * half * 0.7, low + tall * (0.45 + 0.5 * sticker.z))
                self.canvas.polygon(
                    on_end(_figure(sticker.kind, *at, sticker.size * 0.7)), sticker.colour
                )

    def _plate(self, on_end: Callable[[Outline], list[Point]], z: float) -> None:
        def box(left: float, right: float, tall: float) -> Outline:
            return ((left, z - tall), (left, z + tall), (right, z + tall), (right, z - tall))

        self.canvas.polygon(on_end(box(-0.32, 0.32, 0.1)), self.vehicle.plate)
        for number, shown in enumerate(self.vehicle.plate_bars):
            if shown:
                left = -0.28 + number * 0.095
                self.canvas.polygon(on_end(box(left, left + 0.06, 0.065)), (24, 24, 30))

    def _on_the_roof(self, profile: Outline) -> None:
        vehicle, top = self.vehicle, max(z for _, z in profile)
        level = [x for x, z in profile if z > top - 0.1]
        front, rear = max(level), min(level)
        middle, half = (front + rear) / 2, self.half * 0.75
        if vehicle.sunroof:
            pane = ((0.45, 0.6), (-0.2, 0.6), (-0.2, -0.6), (0.45, -0.6))
            corners = [self._at(middle + x, half * y, top) for x, y in pane]
            self.canvas.polygon(corners, vehicle.glass)
        if vehicle.rack:
            if vehicle.rack_load is not None:
                self._box(middle, 0.4 * (front - rear), half * 0.8, top, 0.32, vehicle.rack_load)
            for y in (-half, half):
                rail = [self._at(front - 0.15, y, top + 0.1), self._at(rear + 0.15, y, top + 0.1)]
                self.canvas.limb(rail, self.pose.unit * 0.08, (52, 52, 56))
        if vehicle.sign:
            self._box(front - 0.35, 0.14, 0.36, top, 0.22, (238, 214, 92))

    def _box(
        self, x: float, long: float, half: float, z: float, tall: float, colour: Colour
    ) -> None:
        """Draw a box of half-length `long` and half-width `half` that stands on `z`."""
        end, flank = (x + long if self.cos > 0 else x - long), self.nearer * half
        low, high = z, z + tall
        corners = ((end, -half, low), (end, half, low), (end, half, high), (end, -half, high))
        self.canvas.polygon([self._at(*corner) for corner in corners], shaded(colour, 0.9))
        corners = (
            (x + long, flank, low),
            (x - long, flank, low),
            (x - long, flank, high),
            (x + long, flank, high),
        )
        self.canvas.polygon([self._at(*corner) for corner in corners], shaded(colour, 0.75))
        corners = (
            (x + long, half, high),
            (x - long, half, high),
            (x - long, -half, high),
            (x + long, -half, high),
        )
        self.canvas.polygon([self._at(*corner) for corner in corners], colour)


def _figure(kind: str, u: float, v: float, size: float) -> Outline:
    """Return the outline of a mark around (u, v)."""
    if kind == "triangle":
        return ((u, v + size), (u + size, v - size), (u - size, v - size))
    if kind == "disc":
        turn = np.linspace(0, 2 * math.pi, 10, endpoint=False)
        return tuple((u + size * math.cos(t), v + size * math.sin(t)) for t in turn)
    wide, tall = (2.2 * size, 0.4 * size) if kind == "bar" else (size, size)
    return ((u - wide, v - tall), (u - wide, v + tall), (u + wide, v + tall), (u + wide, v - tall))
