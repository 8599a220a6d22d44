"""Persons of the synthetic world: their looks and captions; `person_painter` draws them."""

import math

import numpy as np

from svll.world.drawing import (
    EVEN_COLOURS,
    PALETTE,
    PATTERNS,
    Colour,
    Fabric,
    any_colour,
    choose,
    jittered,
)

Weights = dict[str, float]

SKINS: tuple[Colour, ...] = ((238, 200, 172), (214, 164, 126), (166, 116, 80), (106, 70, 48))
HAIRS: dict[str, Colour] = {
    "black": (30, 26, 26),
    "brown": (92, 58, 36),
    "blond": (206, 172, 104),
    "red": (150, 66, 34),
    "grey": (168, 168, 170),
}
# Garment colours are few and unevenly worn, so that colour alone never identifies a person.
UPPER_COLOURS = dict(zip(PALETTE, (5, 4, 3, 2, 4, 1.5, 1, 1), strict=True))
LOWER_COLOURS = dict(zip(PALETTE, (6, 1, 3, 0.7, 5, 0.7, 0.4, 2), strict=True))
UPPERS = {"shirt": 3.0, "sweater": 2.5, "jacket": 2.5, "hoodie": 1.5, "coat": 1.5, "vest": 1.0}
LOWERS = {"trousers": 5.0, "shorts": 2.0, "skirt": 2.0}
BAGS = {"": 3.0, "backpack": 3.0, "satchel": 2.0, "handbag": 2.0}
HATS = {"": 6.0, "cap": 1.5, "beanie": 1.5, "hat": 1.0}
LENGTHS = {"short": 5.0, "long": 4.0, "": 0.7}
EMBLEMS = {"": 4.0, "disc": 1.0, "square": 1.0, "triangle": 1.0, "cross": 1.0, "bar": 1.0}


class Garment:
    """A random piece of clothing, with the names of its colours for captions."""

    def __init__(
        self, rng: np.random.Generator, kinds: Weights, colours: Weights, *, plain: float
    ) -> None:
        self.kind, self.colour = choose(rng, kinds), choose(rng, colours)
        self.second = choose(rng, {other: 1.0 for other in PALETTE if other != self.colour})
        patterned = dict.fromkeys(PATTERNS[1:], (1 - plain) / (len(PATTERNS) - 1))
        self.fabric = Fabric(
            colour=jittered(PALETTE[self.colour], rng),
            second=jittered(PALETTE[self.second], rng),
            pattern=choose(rng, {"plain": plain, **patterned}),
            period=rng.uniform(0.045, 0.13),
            duty=rng.uniform(0.25, 0.6),
            weave=int(rng.integers(0, 4)),
        )

    @property
    def words(self) -> str:
        """Colour, pattern and kind: "red and white striped shirt"."""
        if self.fabric.pattern == "plain":
            return f"{self.colour} {self.kind}"
        return f"{self.colour} and {self.second} {self.fabric.pattern} {self.kind}"


class Emblem:
    """A random mark sewn on a garment at `r` and `z`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.kind, self.colour = choose(rng, EMBLEMS), any_colour(rng)
        self.r, self.z = float(rng.choice((-0.05, 0.0, 0.05))), rng.uniform(0.62, 0.76)
        self.size = rng.uniform(0.022, 0.05)


class Body:
    """Random proportions, in units of the body's height (`stature` in units of the picture's)."""

    def __init__(self, rng: np.random.Generator) -> None:
        build = rng.normal(0.0, 1.0)
        self.stature = _within(0.82, 1.0, rng.normal(0.91, 0.04))
        self.shoulder = _within(0.11, 0.18, 0.142 + 0.014 * build + rng.normal(0, 0.006))
        self.hip = _within(0.08, 0.15, 0.106 + 0.014 * build + rng.normal(0, 0.008))
        self.depth = _within(0.07, 0.13, 0.092 + 0.014 * build)
        self.crotch = rng.uniform(0.44, 0.52)
        self.head = rng.uniform(0.062, 0.074)
        self.arm = _within(0.045, 0.072, 0.056 + 0.006 * build)
        self.leg = _within(0.072, 0.115, 0.092 + 0.010 * build)


def _within(low: float, high: float, value: float) -> float:
    return min(max(value, low), high)


class Person:
    """A random person: everything that stays the same from picture to picture."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.hair = choose(rng, dict.fromkeys(HAIRS, 1.0))
        names = (choose(rng, EVEN_COLOURS) for _ in range(3))
        self.shoes_name, self.bag_name, self.hat_name = names
        self.upper = Garment(rng, UPPERS, UPPER_COLOURS, plain=0.4)
        self.body = Body(rng)
        self.skin = jittered(SKINS[rng.integers(0, len(SKINS))], rng)
        self.hair_colour = jittered(HAIRS[self.hair], rng)
        self.hair_length = choose(rng, LENGTHS)
        self.beard, self.glasses = rng.random() < 0.2, rng.random() < 0.25
        self.lower = Garment(rng, LOWERS, LOWER_COLOURS, plain=0.7)
        self.inner = any_colour(rng)
        self.front, self.back = Emblem(rng), Emblem(rng)
        self.side_stripe = rng.random() < 0.25
        self.shoes = jittered(PALETTE[self.shoes_name], rng)
        self.boots = rng.random() < 0.3
        self.bag = choose(rng, BAGS)
        self.bag_colour = jittered(PALETTE[self.bag_name], rng)
        self.bag_side, self.bag_size = 1 if rng.random() < 0.5 else -1, rng.uniform(0.8, 1.25)
        self.hat = choose(rng, HATS)
        self.hat_colour = jittered(PALETTE[self.hat_name], rng)


def describe(rng: np.random.Generator, person: Person, yaw: float) -> str:
    """Return an English sentence about what can be seen of a person turned by `yaw`."""
    upper, lower, form = person.upper.words, person.lower.words, rng.random()
    if form < 0.15:
        colours = f"{person.upper.colour} {person.upper.kind} {person.lower.colour}"
        return f"a photo of a {colours} {person.lower.kind} person."
    if form < 0.35:
        return f"a photo of a person in {_a(upper)} and {_a(lower)}."
    length = person.hair_length
    hair = f"{length} {person.hair} hair" if length else "a bald head"
    text = f"a photo of a person with {hair}"
    if person.hat:
        text += f" and a {person.hat_name} {person.hat}"
    footwear = f"{person.shoes_name} {'boots' if person.boots else 'shoes'}"
    text += f", wearing {_a(upper)}, {_a(lower)} and {footwear}"
    if person.bag and (person.bag != "backpack" or math.cos(yaw) < 0.7):
        text += f", carrying a {person.bag_name} {person.bag}"
    return f"{text}, seen from the {_side(yaw)}."


def words() -> set[str]:
    """Return every word that `describe` can use."""
    sentence = "a photo of person in and with wearing carrying seen from the hair bald head"
    kinds = {*UPPERS, *LOWERS, *BAGS, *HATS, *LENGTHS, "shoes", "boots"} - {""}
    sides = {"front", "back", "left", "right"}
    return {*sentence.split(), *kinds, *HAIRS, *PALETTE, *PATTERNS[1:], *sides}


def _a(garment: str) -> str:
    plural = garment.endswith(("trousers", "shorts"))
    return garment if plural else f"a {garment}"


def _side(yaw: float) -> str:
    """Return which side of the person is towards the camera."""
    if abs(math.cos(yaw)) > 0.6:
        return "front" if math.cos(yaw) > 0 else "back"
    return "right" if math.sin(yaw) > 0 else "left"
