"""How persons of the synthetic world are drawn.

Body coordinates, in units of the body's height: r to the person's left, f forward, z up from the
ground. A person who faces the camera has yaw 0; yaw turns r and f into the picture's x and depth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from svll.world.drawing import Canvas, Fabric, Figure, Point, Shape, pattern_mask, shaded
from svll.world.persons import Emblem, Garment, Person, describe


@dataclass(frozen=True)
class Pose:
    """How a person stands in one picture; x, y and height in pixels."""

    x: float
    ground: float
    height: float
    yaw: float
    stride: float
    swing: float
    lean: float


def place(
    rng: np.random.Generator,
    person: Person,
    size: tuple[int, int],
    heading: float,
    zoom: float,
    aside: float = 0.0,
) -> Figure:
    """Return a person as seen once, in a picture of `size`; most walk along `heading`.

    `aside` moves the person out of the middle, in picture widths.
    """
    pose = _pose(rng, person, size, heading, zoom)
    pose = replace(pose, x=pose.x + aside * size[0])
    return Figure(
        view=0,
        paint=lambda image: _Painter(image, person, pose).paint(),
        describe=lambda words: describe(words, person, pose.yaw),
    )


def _pose(
    rng: np.random.Generator, person: Person, size: tuple[int, int], heading: float, zoom: float
) -> Pose:
    width, height = size
    turned = math.pi if rng.random() < 0.3 else 0.0
    tall = height * person.body.stature * zoom * rng.uniform(0.94, 1.06)
    return Pose(
        x=width * (0.5 + rng.normal(0.0, 0.05)),
        ground=min(height * 0.5 + tall * 0.51, height * 0.99) + height * rng.normal(0.0, 0.018),
        height=tall,
        yaw=heading + turned + rng.normal(0.0, 0.3),
        stride=rng.uniform(-0.15, 0.15),
        swing=rng.uniform(0.3, 1.1),
        lean=rng.normal(0.0, 0.01),
    )


class _Painter:
    """One person in one pose: knows where each part comes to lie."""

    def __init__(self, image: Image.Image, person: Person, pose: Pose) -> None:
        self.canvas = Canvas(image)
        self.person, self.body, self.pose = person, person.body, pose
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)
        self.patterns = {
            garment.kind: self._pattern(garment.fabric, z)
            for garment, z in ((person.upper, 0.82), (person.lower, person.body.crotch + 0.06))
        }
        self.half = math.hypot(self.body.shoulder * self.cos, self.body.depth * self.sin)
        self.waist = math.hypot(self.body.hip * self.cos, self.body.depth * 0.9 * self.sin)

    def paint(self) -> None:
        """Draw all parts in the order of their depth."""
        parts: list[tuple[float, Callable[[], None]]] = [(0.0, self._torso), (0.3, self._head)]
        for side in (-1, 1):
            stride = self.pose.stride * side
            leg = self._depth(side * self.body.hip / 2, stride) - 0.3
            arm = self._depth(side * self.body.shoulder, -stride * self.pose.swing)
            parts.append((leg, partial(self._leg, side)))
            parts.append((arm + 0.02 * abs(self.cos), partial(self._arm, side)))
        if self.person.lower.kind == "skirt":
            parts.append((-0.05, self._skirt))
        if self.person.hair_length == "long":
            parts.append((self._depth(0, -0.2), self._long_hair))
        if self.person.bag:
            parts.append(self._bag())
        for _, stroke in sorted(parts, key=lambda part: part[0]):
            stroke()

    def _at(self, r: float, f: float, z: float) -> Point:
        x = self.pose.x + (r * self.cos + f * self.sin + self.pose.lean * z) * self.pose.height
        return x, self.pose.ground - z * self.pose.height

    def _flat(self, x: float, z: float) -> Point:
        """Return the point `x` to the picture's right of the body's axis."""
        return self.pose.x + (x + self.pose.lean * z) * self.pose.height, (
            self.pose.ground - z * self.pose.height
        )

    def _depth(self, r: float, f: float) -> float:
        return f * self.cos - r * self.sin

    def _px(self, length: float) -> float:
        return length * self.pose.height

    def _pattern(self, fabric: Fabric, z: float) -> Image.Image | None:
        if fabric.pattern == "plain":
            return None
        origin = (self.pose.x, self.pose.ground - z * self.pose.height)
        return pattern_mask(fabric, self.canvas.image.size, origin, self.pose.height)

    def _fill(self, garment: Garment, shape: Shape, shade: float = 1.0) -> None:
        self.canvas.fabric(garment.fabric, shape, self.patterns[garment.kind], shade)

    def _shape(self) -> Shape:
        return Shape(self.canvas.image.size)

    def _leg(self, side: int) -> None:
        body, lower = self.body, self.person.lower
        stride = self.pose.stride * side
        r, hip = side * body.hip * 0.5, self._at(side * body.hip * 0.5, 0, body.crotch)
        knee = self._at(r, stride * 0.6 + 0.015, body.crotch * 0.52)
        foot = self._at(r, stride, 0.035 + abs(stride) * 0.1 * (stride < 0))
        toe = self._at(r, stride + 0.06, 0.02 + abs(stride) * 0.1 * (stride < 0))
        far = 0.82 if self._depth(r, stride) < -0.02 else 1.0
        self.canvas.limb(
            [hip, knee, foot], self._px(body.leg * 0.72), shaded(self.person.skin, far)
        )
        if lower.kind == "trousers":
            cloth = self._shape().limb([hip, knee, foot], self._px(body.leg))
            self._fill(lower, cloth, far)
            if self.person.side_stripe and self._depth(side, 0) > -0.6:
                self._side_stripe(side, stride)
        elif lower.kind == "shorts":
            cloth = self._shape().limb([hip, knee], self._px(body.leg * 1.12))
            self._fill(lower, cloth, far)
        shoe = shaded(self.person.shoes, far)
        if self.person.boots:
            shin = (foot[0] * 0.6 + knee[0] * 0.4, foot[1] * 0.6 + knee[1] * 0.4)
            self.canvas.limb([shin, foot], self._px(body.leg * 0.95), shoe)
        self.canvas.limb([foot, toe], self._px(body.leg * 0.78), shoe)

    def _side_stripe(self, side: int, stride: float) -> None:
        r = side * (self.body.hip * 0.5 + self.body.leg * 0.42)
        line = [
            self._at(r, 0, self.body.crotch + 0.02),
            self._at(r, stride * 0.6 + 0.015, self.body.crotch * 0.52),
            self._at(r, stride, 0.06),
        ]
        self.canvas.limb(line, self._px(0.016), self.person.lower.fabric.second)

    def _skirt(self) -> None:
        body, wide = self.body, self.waist + 0.045
        hem = body.crotch * 0.55
        outline = [
            self._flat(-self.waist, body.crotch + 0.08),
            self._flat(self.waist, body.crotch + 0.08),
            self._flat(wide, hem),
            self._flat(-wide, hem),
        ]
        self._fill(self.person.lower, self._shape().polygon(outline))

    def _torso(self) -> None:
        body, person = self.body, self.person
        bottom = body.crotch - 0.16 if person.upper.kind == "coat" else body.crotch + 0.035
        if person.lower.kind != "skirt":
            seat = [self._flat(s * self.waist, z) for s, z in ((-1, 0.58), (1, 0.58))]
            seat += [self._flat(s * self.waist * 0.98, body.crotch - 0.02) for s in (1, -1)]
            self._fill(person.lower, self._shape().polygon(seat))
        neck = self._px(body.head * 1.05)
        self.canvas.limb([self._flat(0, 0.80), self._at(0, 0.012, 0.88)], neck, person.skin)
        hem = self.waist * (1.25 if person.upper.kind == "coat" else 1.04)
        cloth = self._shape().polygon(
            [
                self._flat(-0.035, 0.845),
                self._flat(0.035, 0.845),
                self._flat(self.half * 0.9, 0.825),
                self._flat(self.half, 0.79),
                self._flat(self.waist * 1.02, 0.60),
                self._flat(hem, bottom),
                self._flat(-hem, bottom),
                self._flat(-self.waist * 1.02, 0.60),
                self._flat(-self.half, 0.79),
                self._flat(-self.half * 0.9, 0.825),
            ]
        )
        self._fill(person.upper, cloth)
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
                strap = [self._at(r, depth * 0.8, 0.83), self._at(r * 1.15, depth * 0.8, 0.64)]
                self.canvas.limb(strap, self._px(0.022), person.bag_colour)
        if person.bag == "satchel":
            over = 1.0 if facing else -1.0
            strap = [
                self._at(-person.bag_side * 0.07, over * depth * 0.8, 0.835),
                self._at(person.bag_side * self.body.hip, over * depth * 0.6, 0.56),
            ]
            self.canvas.limb(strap, self._px(0.016), shaded(person.bag_colour, 0.8))

    def _emblem(self, emblem: Emblem, f: float, grow: float) -> None:
        size = emblem.size * grow
        x, y = self._at(emblem.r, f, emblem.z)
        rx, ry = self._px(size * abs(self.cos)), self._px(size)
        box = [(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)]
        if emblem.kind == "disc":
            self.canvas.disc((x, y), rx, ry, emblem.colour)
        elif emblem.kind == "square":
            self.canvas.polygon(box, emblem.colour)
        elif emblem.kind == "triangle":
            self.canvas.polygon([(x, y - ry), box[2], box[3]], emblem.colour)
        elif emblem.kind == "cross":
            thick = self._px(size * 0.5)
            self.canvas.limb([(x - rx, y), (x + rx, y)], thick, emblem.colour)
            self.canvas.limb([(x, y - ry), (x, y + ry)], thick, emblem.colour)
        elif emblem.kind == "bar":
            wide = [(x - 1.8 * rx, y - ry / 3), (x + 1.8 * rx, y - ry / 3)]
            wide += [(x + 1.8 * rx, y + ry / 3), (x - 1.8 * rx, y + ry / 3)]
            self.canvas.polygon(wide, emblem.colour)

    def _arm(self, side: int) -> None:
        body, upper = self.body, self.person.upper
        swing = -self.pose.stride * side * self.pose.swing
        r = side * (body.shoulder - body.arm * 0.3)
        shoulder = self._at(r, 0, 0.795)
        elbow = self._at(r + side * 0.018, swing * 0.5 - 0.01, 0.64)
        hand = self._at(r + side * 0.01, swing + 0.02, 0.485)
        far = 0.72 if self._depth(r, 0) < -0.03 else 0.88
        skin, width = shaded(self.person.skin, min(1.0, far + 0.1)), self._px(body.arm)
        self.canvas.limb([shoulder, elbow, hand], width * 0.8, skin)
        if upper.kind == "shirt":
            cuff = (shoulder[0] * 0.25 + elbow[0] * 0.75, shoulder[1] * 0.25 + elbow[1] * 0.75)
            self._fill(upper, self._shape().limb([shoulder, cuff], width * 1.08), far)
        elif upper.kind != "vest":
            wrist = (elbow[0] * 0.15 + hand[0] * 0.85, elbow[1] * 0.15 + hand[1] * 0.85)
            self._fill(upper, self._shape().limb([shoulder, elbow, wrist], width), far)

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
        for side in (-1, 1):
            eye = (x + side * fx * 0.42 * max(self.cos, 0.15), y - ry * 0.1)
            if person.glasses:
                self.canvas.disc(eye, fx * 0.38, ry * 0.2, (20, 20, 24))
            else:
                self.canvas.disc(eye, fx * 0.13, ry * 0.09, (30, 24, 24))

    def _hat(self, centre: Point, rx: float, ry: float) -> None:
        colour, kind = self.person.hat_colour, self.person.hat
        x, y = centre
        top = (x - rx * 1.12, y - ry * 1.22, x + rx * 1.12, y + ry * 0.72)
        self.canvas.pen.pieslice(top, 180, 360, fill=colour)
        brim = y - ry * 0.25
        if kind == "cap":
            tip = self.sin * rx * 1.9 + self.cos * 0.01
            ends = [(x - rx * 0.7 * max(self.cos, 0), brim), (x + tip, brim + ry * 0.1)]
            if self.cos > -0.4:
                ends.append((x + rx * 0.7 * max(self.cos, 0), brim))
                self.canvas.limb(ends, ry * 0.24, shaded(colour, 0.7))
        elif kind == "hat":
            self.canvas.disc((x, brim), rx * 1.9, ry * 0.24, shaded(colour, 0.85))
        else:
            band = (x - rx * 1.12, brim - ry * 0.16, x + rx * 1.12, brim + ry * 0.14)
            self.canvas.pen.rectangle(band, fill=shaded(colour, 0.75))
            self.canvas.disc((x, y - ry * 1.28), rx * 0.3, ry * 0.24, shaded(colour, 1.2))

    def _long_hair(self) -> None:
        size = self.body.head
        top, end = self._at(0, -0.005, 0.93), self._at(0, -0.03, 0.79)
        wide = self._px(size * (1.7 if abs(self.cos) > 0.5 else 1.2))
        self.canvas.limb([top, end], wide, shaded(self.person.hair_colour, 0.9))

    def _bag(self) -> tuple[float, Callable[[], None]]:
        """Return the bag's depth and the stroke that draws it."""
        side, body = self.person.bag_side, self.body
        if self.person.bag == "backpack":
            return self._depth(0, -body.depth - 0.2), self._backpack
        r = side * (body.hip + 0.045)
        if self.person.bag == "satchel":
            return self._depth(r, 0) + 0.03, lambda: self._pouch(r, 0.0, 0.50, 0.06, 0.05)
        hand = -self.pose.stride * side * self.pose.swing
        r = side * (body.shoulder + 0.01)
        return self._depth(r, hand) + 0.04, lambda: self._pouch(r, hand + 0.02, 0.40, 0.055, 0.065)

    def _backpack(self) -> None:
        body, person = self.body, self.person
        f, grow = -body.depth - 0.035, person.bag_size
        half = math.hypot(0.085 * grow * self.cos, 0.05 * self.sin)
        x, top = self._at(0, f, 0.815)
        bottom = self.pose.ground - (0.815 - 0.24 * grow) * self.pose.height
        box = (x - self._px(half), top, x + self._px(half), bottom)
        self.canvas.pen.rounded_rectangle(box, self._px(0.025), fill=person.bag_colour)
        if self.cos < 0:
            pocket = (
                x - self._px(half * 0.7),
                (top + bottom) / 2,
                x + self._px(half * 0.7),
                bottom - self._px(0.015),
            )
            self.canvas.pen.rounded_rectangle(
                pocket, self._px(0.015), fill=shaded(person.bag_colour, 0.7)
            )

    def _pouch(self, r: float, f: float, z: float, half: float, tall: float) -> None:
        person, grow = self.person, self.person.bag_size
        x, y = self._at(r, f, z)
        wide = self._px(math.hypot(half * self.sin, 0.03 * self.cos)) * grow
        high = self._px(tall) * grow
        if person.bag == "handbag":
            self.canvas.pen.arc(
                (x - wide * 0.7, y - high * 1.9, x + wide * 0.7, y), 180, 360,
                fill=shaded(person.bag_colour, 0.6), width=2,
            )  # fmt: skip
        box = (x - wide, y - high, x + wide, y + high)
        self.canvas.pen.rounded_rectangle(box, self._px(0.012), fill=person.bag_colour)
        flap = (x - wide, y - high, x + wide, y - high * 0.3)
        self.canvas.pen.rounded_rectangle(
            flap, self._px(0.012), fill=shaded(person.bag_colour, 0.75)
        )
