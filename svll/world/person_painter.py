"""Draws persons of the synthetic world.

Body coordinates, in units of the body's height: r to the person's left, f forward, z up from the
ground. A person who faces the camera has yaw 0; yaw turns r and f into the picture's x and depth.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from svll.world.drawing import Camera, Canvas, Colour, Point, shaded
from svll.world.persons import Emblem, Garment, Person, describe


def _mixed(a: Point, share_a: float, b: Point, share_b: float) -> Point:
    return a[0] * share_a + b[0] * share_b, a[1] * share_a + b[1] * share_b


class PersonFigure:
    """A person as seen once, in a picture of `size`; most walk along the camera's heading.

    `aside` moves the person out of the middle, in picture widths.
    """

    view = 0

    def __init__(
        self, rng: np.random.Generator, person: Person, size: tuple[int, int], camera: Camera,
        aside: float,
    ) -> None:
        (width, height), body = size, person.body
        self.person, self.body = person, body
        turned = math.pi if rng.random() < 0.3 else 0.0
        # the body's height, its middle and the ground, in pixels
        self.tall = height * body.stature * camera.zoom * rng.uniform(0.94, 1.06)
        self.x = width * (0.5 + rng.normal(0.0, 0.05)) + aside * width
        ground = min(height * 0.5 + self.tall * 0.51, height * 0.99)
        self.ground = ground + height * rng.normal(0.0, 0.018)
        self.yaw = camera.heading + turned + rng.normal(0.0, 0.3)
        self.cos, self.sin = math.cos(self.yaw), math.sin(self.yaw)
        self.stride, self.swing = rng.uniform(-0.15, 0.15), rng.uniform(0.3, 1.1)
        self.lean = rng.normal(0.0, 0.01)
        self.half = math.hypot(body.shoulder * self.cos, body.depth * self.sin)
        self.waist = math.hypot(body.hip * self.cos, body.depth * 0.9 * self.sin)

    def describe(self, rng: np.random.Generator) -> str:
        """Return a caption; its wording varies with the random numbers."""
        return describe(rng, self.person, self.yaw)

    def paint(self, image: Image.Image) -> None:
        """Draw all parts in the order of their depth."""
        self.canvas, person, body = Canvas(image), self.person, self.body
        parts: list[tuple[float, Callable[[], None]]] = [(0.0, self._torso), (0.3, self._head)]
        for side in (-1, 1):
            stride = self.stride * side
            leg = self._depth(side * body.hip / 2, stride) - 0.3
            arm = self._depth(side * body.shoulder, -stride * self.swing)
            parts.append((leg, partial(self._leg, side)))
            parts.append((arm + 0.02 * abs(self.cos), partial(self._arm, side)))
        if person.lower.kind == "skirt":
            hem = (self.waist + 0.045, body.crotch * 0.55)
            skirt = partial(self._clothe, person.lower, ((self.waist, body.crotch + 0.08), hem))
            parts.append((-0.05, skirt))
        if person.hair_length == "long":
            wide = body.head * (1.7 if abs(self.cos) > 0.5 else 1.2)
            points, colour = ((0, -0.005, 0.93), (0, -0.03, 0.79)), shaded(person.hair_colour, 0.9)
            parts.append((self._depth(0, -0.2), partial(self._line, wide, colour, *points)))
        if person.bag:
            parts.append(self._bag())
        for _, stroke in sorted(parts, key=lambda part: part[0]):
            stroke()

    def _at(self, r: float, f: float, z: float) -> Point:
        x = self.x + (r * self.cos + f * self.sin + self.lean * z) * self.tall
        return x, self.ground - z * self.tall

    def _flat(self, x: float, z: float) -> Point:
        """Return the point `x` to the picture's right of the body's axis."""
        return self.x + (x + self.lean * z) * self.tall, self.ground - z * self.tall

    def _depth(self, r: float, f: float) -> float:
        return f * self.cos - r * self.sin

    def _px(self, length: float) -> float:
        return length * self.tall

    def _line(self, width: float, colour: Colour, *points: tuple[float, float, float]) -> None:
        self.canvas.limb([self._at(*point) for point in points], self._px(width), colour)

    def _clothe(self, garment: Garment, outline: Sequence[Point]) -> None:
        """Fill the area between an outline (x, z) and its mirror image with a garment's fabric."""
        left = [self._flat(-x, z) for x, z in outline]
        points = [left[0], *(self._flat(*point) for point in outline), *left[:0:-1]]
        mask = Canvas(Image.new("L", self.canvas.image.size))
        mask.polygon(points, 255)
        self._fill(garment, mask.image, 1.0)

    def _sleeve(self, garment: Garment, points: list[Point], width: float, shade: float) -> None:
        """Fill a limb with a garment's fabric."""
        mask = Canvas(Image.new("L", self.canvas.image.size))
        mask.limb(points, width, 255)
        self._fill(garment, mask.image, shade)

    def _fill(self, garment: Garment, mask: Image.Image, shade: float) -> None:
        """Fill a mask with a garment's fabric; its pattern starts at the shoulders or hips."""
        z = 0.82 if garment is self.person.upper else self.body.crotch + 0.06
        origin = (self.x, self.ground - z * self.tall)
        self.canvas.fabric(garment.fabric, mask, origin, self.tall, shade)

    def _leg(self, side: int) -> None:
        body, lower = self.body, self.person.lower
        stride = self.stride * side
        r = side * body.hip * 0.5
        hip = self._at(r, 0, body.crotch)
        knee = self._at(r, stride * 0.6 + 0.015, body.crotch * 0.52)
        foot = self._at(r, stride, 0.035 + abs(stride) * 0.1 * (stride < 0))
        toe = self._at(r, stride + 0.06, 0.02 + abs(stride) * 0.1 * (stride < 0))
        far = 0.82 if self._depth(r, stride) < -0.02 else 1.0
        skin = shaded(self.person.skin, far)
        self.canvas.limb([hip, knee, foot], self._px(body.leg * 0.72), skin)
        if lower.kind == "trousers":
            self._sleeve(lower, [hip, knee, foot], self._px(body.leg), far)
            if self.person.side_stripe and self._depth(side, 0) > -0.6:
                r = side * (body.hip * 0.5 + body.leg * 0.42)
                middle = (r, stride * 0.6 + 0.015, body.crotch * 0.52)
                line = ((r, 0, body.crotch + 0.02), middle, (r, stride, 0.06))
                self._line(0.016, lower.fabric.second, *line)
        elif lower.kind == "shorts":
            self._sleeve(lower, [hip, knee], self._px(body.leg * 1.12), far)
        shoe = shaded(self.person.shoes, far)
        if self.person.boots:
            self.canvas.limb([_mixed(foot, 0.6, knee, 0.4), foot], self._px(body.leg * 0.95), shoe)
        self.canvas.limb([foot, toe], self._px(body.leg * 0.78), shoe)

    def _torso(self) -> None:
        body, person, waist = self.body, self.person, self.waist
        is_coat = person.upper.kind == "coat"
        bottom = body.crotch - 0.16 if is_coat else body.crotch + 0.035
        if person.lower.kind != "skirt":
            self._clothe(person.lower, ((waist, 0.58), (waist * 0.98, body.crotch - 0.02)))
        neck = self._px(body.head * 1.05)
        self.canvas.limb([self._flat(0, 0.80), self._at(0, 0.012, 0.88)], neck, person.skin)
        hem = waist * (1.25 if is_coat else 1.04)
        shoulder = ((0.035, 0.845), (self.half * 0.9, 0.825), (self.half, 0.79))
        self._clothe(person.upper, (*shoulder, (waist * 1.02, 0.60), (hem, bottom)))
        self._torso_details(bottom)

    def _torso_details(self, bottom: float) -> None:
        person, depth = self.person, self.body.depth
        facing = self.cos > 0.25
        if person.upper.kind in ("jacket", "coat") and facing:
            opening = [self._at(r, depth * 0.9, z) for r, z in ((-0.03, 0.845), (0.03, 0.845))]
            opening += [self._at(r, depth * 0.9, bottom + 0.02) for r in (0.018, -0.018)]
            self.canvas.polygon(opening, person.inner)
        if person.upper.kind == "hoodie":
            hood = self._at(0, -depth * 0.7, 0.835)
            dark = shaded(person.upper.fabric.colour, 0.75)
            self.canvas.disc(hood, self._px(0.045 + 0.02 * (self.cos < 0)), self._px(0.03), dark)
        if facing:
            self._emblem(person.front, depth * 0.95, 1)
        elif self.cos < -0.25:
            self._emblem(person.back, -depth * 0.95, 1.6)
        if person.bag == "backpack" and facing:
            for r in (-0.065, 0.065):
                strap = ((r, depth * 0.8, 0.83), (r * 1.15, depth * 0.8, 0.64))
                self._line(0.022, person.bag_colour, *strap)
        if person.bag == "satchel":
            f, side = depth if facing else -depth, person.bag_side
            strap = ((-side * 0.07, f * 0.8, 0.835), (side * self.body.hip, f * 0.6, 0.56))
            self._line(0.016, shaded(person.bag_colour, 0.8), *strap)

    def _emblem(self, emblem: Emblem, f: float, grow: float) -> None:
        size = emblem.size * grow
        x, y = self._at(emblem.r, f, emblem.z)
        rx, ry = self._px(size * abs(self.cos)), self._px(size)
        if emblem.kind == "disc":
            self.canvas.disc((x, y), rx, ry, emblem.colour)
        elif emblem.kind == "triangle":
            self.canvas.polygon([(x, y - ry), (x + rx, y + ry), (x - rx, y + ry)], emblem.colour)
        elif emblem.kind == "cross":
            thick = self._px(size * 0.5)
            self.canvas.limb([(x - rx, y), (x + rx, y)], thick, emblem.colour)
            self.canvas.limb([(x, y - ry), (x, y + ry)], thick, emblem.colour)
        elif emblem.kind:
            wide, tall = (1.8 * rx, ry / 3) if emblem.kind == "bar" else (rx, ry)
            corners = ((-wide, -tall), (wide, -tall), (wide, tall), (-wide, tall))
            self.canvas.polygon([(x + dx, y + dy) for dx, dy in corners], emblem.colour)

    def _arm(self, side: int) -> None:
        body, upper = self.body, self.person.upper
        swing = -self.stride * side * self.swing
        r = side * (body.shoulder - body.arm * 0.3)
        shoulder = self._at(r, 0, 0.795)
        elbow = self._at(r + side * 0.018, swing * 0.5 - 0.01, 0.64)
        hand = self._at(r + side * 0.01, swing + 0.02, 0.485)
        far = 0.72 if self._depth(r, 0) < -0.03 else 0.88
        skin, width = shaded(self.person.skin, min(1.0, far + 0.1)), self._px(body.arm)
        self.canvas.limb([shoulder, elbow, hand], width * 0.8, skin)
        if upper.kind == "shirt":
            cuff = _mixed(shoulder, 0.25, elbow, 0.75)
            self._sleeve(upper, [shoulder, cuff], width * 1.08, far)
        elif upper.kind != "vest":
            wrist = _mixed(elbow, 0.15, hand, 0.85)
            self._sleeve(upper, [shoulder, elbow, wrist], width, far)

    def _head(self) -> None:
        person, size = self.person, self.body.head
        centre = self._at(0, 0.012, 0.935)
        rx, ry = self._px(size * 0.86), self._px(size * 1.12)
        bald = person.hair_length == ""
        self.canvas.disc(centre, rx, ry, person.skin if bald else person.hair_colour)
        if self.cos > -0.55:
            face = self._at(0, 0.036, 0.922)
            fx = rx * (0.55 + 0.27 * max(self.cos, 0.0))
            self.canvas.disc(face, fx, ry * 0.8, person.skin)
            self._face(face, fx, ry)
        if person.hat:
            self._hat(centre, rx, ry)

    def _face(self, face: Point, fx: float, ry: float) -> None:
        person = self.person
        x, y = face[0] + fx * 0.35 * self.sin, face[1]
        if person.beard:
            self.canvas.disc((x, y + ry * 0.55), fx * 0.75, ry * 0.3, person.hair_colour)
        iris, glass = (0.13, 0.09, (30, 24, 24)), (0.38, 0.2, (20, 20, 24))
        wide, high, dark = glass if person.glasses else iris
        for side in (-1, 1):
            eye = (x + side * fx * 0.42 * max(self.cos, 0.15), y - ry * 0.1)
            self.canvas.disc(eye, fx * wide, ry * high, dark)

    def _hat(self, centre: Point, rx: float, ry: float) -> None:
        colour, kind = self.person.hat_colour, self.person.hat
        x, y = centre
        top = (x - rx * 1.12, y - ry * 1.22, x + rx * 1.12, y + ry * 0.72)
        self.canvas.pen.pieslice(top, 180, 360, fill=colour)
        brim = y - ry * 0.25
        if kind == "cap":
            tip, end = self.sin * rx * 1.9 + self.cos * 0.01, rx * 0.7 * max(self.cos, 0)
            if self.cos > -0.4:
                peak = [(x - end, brim), (x + tip, brim + ry * 0.1), (x + end, brim)]
                self.canvas.limb(peak, ry * 0.24, shaded(colour, 0.7))
        elif kind == "hat":
            self.canvas.disc((x, brim), rx * 1.9, ry * 0.24, shaded(colour, 0.85))
        else:
            band = (x - rx * 1.12, brim - ry * 0.16, x + rx * 1.12, brim + ry * 0.14)
            self.canvas.pen.rectangle(band, fill=shaded(colour, 0.75))
            self.canvas.disc((x, y - ry * 1.28), rx * 0.3, ry * 0.24, shaded(colour, 1.2))

    def _bag(self) -> tuple[float, Callable[[], None]]:
        """Return the bag's depth and the stroke that draws it."""
        side, body = self.person.bag_side, self.body
        if self.person.bag == "backpack":
            return self._depth(0, -body.depth - 0.2), self._backpack
        r = side * (body.hip + 0.045)
        if self.person.bag == "satchel":
            return self._depth(r, 0) + 0.03, lambda: self._pouch(r, 0.0, 0.50, 0.06, 0.05)
        hand = -self.stride * side * self.swing
        r = side * (body.shoulder + 0.01)
        return self._depth(r, hand) + 0.04, lambda: self._pouch(r, hand + 0.02, 0.40, 0.055, 0.065)

    def _backpack(self) -> None:
        body, person, px = self.body, self.person, self._px
        f, grow = -body.depth - 0.035, person.bag_size
        half = math.hypot(0.085 * grow * self.cos, 0.05 * self.sin)
        x, top = self._at(0, f, 0.815)
        bottom = self.ground - (0.815 - 0.24 * grow) * self.tall
        box = (x - px(half), top, x + px(half), bottom)
        self.canvas.pen.rounded_rectangle(box, px(0.025), fill=person.bag_colour)
        if self.cos < 0:
            wide, upper, lower = px(half * 0.7), (top + bottom) / 2, bottom - px(0.015)
            pocket, dark = (x - wide, upper, x + wide, lower), shaded(person.bag_colour, 0.7)
            self.canvas.pen.rounded_rectangle(pocket, px(0.015), fill=dark)

    def _pouch(self, r: float, f: float, z: float, half: float, tall: float) -> None:
        colour, grow = self.person.bag_colour, self.person.bag_size
        x, y = self._at(r, f, z)
        wide = self._px(math.hypot(half * self.sin, 0.03 * self.cos)) * grow
        high, corner = self._px(tall) * grow, self._px(0.012)
        if self.person.bag == "handbag":
            handle = (x - wide * 0.7, y - high * 1.9, x + wide * 0.7, y)
            self.canvas.pen.arc(handle, 180, 360, fill=shaded(colour, 0.6), width=2)
        box = (x - wide, y - high, x + wide, y + high)
        flap = (x - wide, y - high, x + wide, y - high * 0.3)
        self.canvas.pen.rounded_rectangle(box, corner, fill=colour)
        self.canvas.pen.rounded_rectangle(flap, corner, fill=shaded(colour, 0.75))
