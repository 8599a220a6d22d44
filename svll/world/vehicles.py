"""Vehicles of the synthetic world: their looks and captions; `vehicle_painter` draws them.

Vehicle coordinates, in metres: x forward, y to the vehicle's left, z up from the ground.
"""

import math
from typing import NamedTuple

import numpy as np

from svll.world.drawing import EVEN_COLOURS, PALETTE, any_colour, choose, jittered

VIEWS = ("front", "rear", "left", "left front", "left rear", "right", "right front", "right rear")
"""Sides by number, in the order of VeRi-776's keypoint lists."""

COLOURS = dict(zip(PALETTE, (5, 6, 5, 2, 3, 1, 1.5, 0.7), strict=True))
EMBLEMS = {"disc": 1.0, "square": 1.0, "triangle": 1.0, "bar": 1.0}

Outline = tuple[tuple[float, float], ...]


class Model(NamedTuple):
    """A type of vehicle: its side view as (x, z)."""

    share: float
    half_width: float
    profile: Outline
    """From the front's lower end over the roof to the rear's lower end."""
    glazed: tuple[int, ...]
    """Numbers of the profile's edges that are windscreens."""
    windows: tuple[Outline, ...]
    wheels: tuple[float, float]
    """Where the axles are (x)."""
    wheel: float
    """Radius."""

    @property
    def front(self) -> float:
        """The front's x."""
        return self.profile[0][0]

    @property
    def rear(self) -> float:
        """The rear's x."""
        return self.profile[-1][0]


MODELS: dict[str, Model] = {
    "sedan": Model(
        4.0, 0.9, ((2.3, 0.3), (2.3, 0.75), (1.3, 0.95), (0.6, 1.42), (-1.0, 1.42), (-1.7, 1.0),
                   (-2.3, 0.95), (-2.3, 0.3)),
        (2, 4), (((1.1, 0.98), (0.55, 1.34), (-0.15, 1.34), (-0.15, 0.98)),
                 ((-0.25, 0.98), (-0.25, 1.34), (-0.95, 1.34), (-1.45, 1.02))), (1.4, -1.4), 0.34,
    ),
    "hatchback": Model(
        3.0, 0.86, ((1.9, 0.3), (1.9, 0.78), (1.1, 0.98), (0.5, 1.5), (-1.5, 1.48), (-1.85, 0.95),
                    (-1.9, 0.3)),
        (2, 4), (((0.95, 1.0), (0.45, 1.42), (-0.35, 1.42), (-0.35, 1.0)),
                 ((-0.45, 1.0), (-0.45, 1.42), (-1.35, 1.4), (-1.6, 1.0))), (1.2, -1.2), 0.33,
    ),
    "suv": Model(
        3.0, 0.97, ((2.3, 0.42), (2.3, 1.0), (1.25, 1.15), (0.75, 1.8), (-1.95, 1.78),
                    (-2.25, 1.1), (-2.3, 0.42)),
        (2, 4), (((1.0, 1.18), (0.7, 1.7), (-0.2, 1.7), (-0.2, 1.18)),
                 ((-0.3, 1.18), (-0.3, 1.7), (-1.1, 1.7), (-1.1, 1.18)),
                 ((-1.2, 1.18), (-1.2, 1.68), (-1.85, 1.66), (-2.0, 1.18))), (1.45, -1.4), 0.42,
    ),
    "van": Model(
        2.0, 1.0, ((2.5, 0.35), (2.5, 0.95), (2.0, 1.2), (1.35, 2.05), (-2.45, 2.05), (-2.5, 0.35)),
        (2,), (((1.8, 1.2), (1.3, 1.85), (0.6, 1.85), (0.6, 1.2)),), (1.65, -1.6), 0.36,
    ),
    "pickup": Model(
        1.5, 0.97, ((2.6, 0.48), (2.6, 1.05), (1.4, 1.15), (0.95, 1.75), (-0.45, 1.75),
                    (-0.6, 1.15), (-2.6, 1.12), (-2.6, 0.48)),
        (2, 4), (((1.15, 1.18), (0.9, 1.66), (0.3, 1.66), (0.3, 1.18)),
                 ((0.2, 1.18), (0.2, 1.66), (-0.4, 1.66), (-0.45, 1.18))), (1.65, -1.65), 0.42,
    ),
    "bus": Model(
        1.0, 1.2, ((4.4, 0.4), (4.4, 1.1), (4.25, 2.75), (-4.4, 2.75), (-4.4, 0.4)),
        (1,), tuple(((x, 1.45), (x, 2.35), (x - 1.2, 2.35), (x - 1.2, 1.45))
                    for x in (4.0, 2.65, 1.3, -0.05, -1.4, -2.75)), (2.7, -2.6), 0.5,
    ),
    "truck": Model(
        1.0, 1.15, ((3.5, 0.5), (3.5, 1.3), (3.3, 2.2), (2.1, 2.2), (2.1, 2.65), (-3.5, 2.65),
                    (-3.5, 0.5)),
        (1,), (((3.2, 1.4), (3.1, 2.05), (2.4, 2.05), (2.4, 1.4)),), (2.6, -2.3), 0.5,
    ),
}


class Sticker:
    """A random mark stuck on: `place` is left, right, rear or front; (along, z) where on it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.place = ("left", "right", "rear", "front")[rng.choice(4, p=(0.3, 0.3, 0.25, 0.15))]
        self.kind, self.colour = choose(rng, EMBLEMS), any_colour(rng)
        self.along, self.z = rng.uniform(-0.6, 0.6), rng.uniform(0.3, 0.8)
        self.size = rng.uniform(0.12, 0.28)


class Vehicle:
    """A random vehicle: everything that stays the same from picture to picture."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.kind = choose(rng, {name: model.share for name, model in MODELS.items()})
        self.model = MODELS[self.kind]
        self.colour_name, stripe = choose(rng, COLOURS), choose(rng, EVEN_COLOURS)
        colour = self.colour = self.roof = jittered(PALETTE[self.colour_name], rng)
        if rng.random() < 0.15:
            self.roof = any_colour(rng)
        self.box = any_colour(rng, COLOURS)
        self.stretch = rng.uniform(0.93, 1.07)
        is_striped = rng.random() < 0.3 and stripe != self.colour_name
        self.stripe_name, self.stripe = stripe if is_striped else "", jittered(PALETTE[stripe], rng)
        self.stripe_z, self.stripe_width = rng.uniform(0.25, 0.8), rng.uniform(0.1, 0.3)
        self.rack = rng.random() < 0.25
        load = any_colour(rng)
        self.rack_load = load if rng.random() < 0.5 else None
        self.sign, self.sunroof = rng.random() < 0.12, rng.random() < 0.25
        self.stickers = [Sticker(rng) for _ in range(rng.integers(0, 4))]
        # place, along and z of each, as in `Sticker`
        self.dents = [_dent(rng) for _ in range(rng.integers(0, 3))]
        self.bumper = (44, 44, 48) if rng.random() < 0.4 else colour
        self.glass = ((38, 44, 54), (92, 108, 120), (58, 72, 74))[rng.integers(0, 3)]
        self.rim = ((176, 178, 184), (64, 64, 68), (206, 200, 180))[rng.integers(0, 3)]
        self.spokes = int(rng.choice((0, 4, 5, 6)))
        self.plate = ((236, 236, 230), (222, 188, 60), (52, 84, 170))[rng.integers(0, 3)]
        self.plate_bars = (rng.random(6) < 0.6).tolist()
        self.lights = rng.uniform(0.14, 0.3)  # half-width of a lamp, in metres


def _dent(rng: np.random.Generator) -> tuple[str, float, float]:
    return ("left", "right")[rng.integers(0, 2)], rng.uniform(-0.7, 0.7), rng.uniform(0.25, 0.7)


def view_from(yaw: float) -> int:
    """Return the number in `VIEWS` of the visible side of a vehicle turned by `yaw` (0: front)."""
    ahead, aside = math.cos(yaw), math.sin(yaw)
    edge = math.sin(math.pi / 8)
    end = "" if abs(ahead) < edge else "front" if ahead > 0 else "rear"
    flank = "" if abs(aside) < edge else "right" if aside > 0 else "left"
    return VIEWS.index(f"{flank} {end}".strip())


def describe(rng: np.random.Generator, vehicle: Vehicle, yaw: float) -> str:
    """Return an English sentence about what can be seen of a vehicle turned by `yaw`."""
    what = f"{vehicle.colour_name} {vehicle.kind}"
    form = rng.random()
    if form < 0.15:
        return f"a photo of a {what} vehicle."
    view = VIEWS[view_from(yaw)]
    marks = _marks(vehicle, view)
    if form < 0.35 or not marks:
        return f"a photo of a vehicle, a {what} seen from the {view}."
    listed = marks[0] if len(marks) == 1 else f"{', '.join(marks[:-1])} and {marks[-1]}"
    return f"a photo of a vehicle, a {what} with {listed}, seen from the {view}."


def _marks(vehicle: Vehicle, view: str) -> list[str]:
    marks = []
    if vehicle.stripe_name and ("left" in view or "right" in view):
        marks.append(f"a {vehicle.stripe_name} stripe")
    if vehicle.rack:
        marks.append("a loaded roof rack" if vehicle.rack_load else "a roof rack")
    if vehicle.sign:
        marks.append("a roof sign")
    visible = [sticker for sticker in vehicle.stickers if sticker.place in view.split()]
    if visible:
        marks.append("a sticker" if len(visible) == 1 else "stickers")
    return marks


def words() -> set[str]:
    """Return every word that `describe` can use."""
    sentence = "a photo of vehicle with and seen from the stripe loaded roof rack sign"
    sides = {word for view in VIEWS for word in view.split()}
    return {*sentence.split(), "sticker", "stickers", *MODELS, *COLOURS, *sides}
