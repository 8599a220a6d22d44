"""Persons of the synthetic world: their looks and captions; `person_painter` draws them."""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Garment:
    """A piece of clothing, with the names of its colours for captions."""

    kind: str
    colour: str
    second: str
    fabric: Fabric

    @property
    def words(self) -> str:
        """Colour, pattern and kind: "red and white striped shirt"."""
        if self.fabric.pattern == "plain":
            return f"{self.colour} {self.kind}"
        return f"{self.colour} and {self.second} {self.fabric.pattern} {self.kind}"


@dataclass(frozen=True)
class Emblem:
    """A mark sewn on a garment at `r` and `z`."""

    kind: str
    colour: Colour
    r: float
    z: float
    size: float


@dataclass(frozen=True)
class Body:
    """Proportions, in units of the body's height (`stature` in units of the picture's)."""

    stature: float
    shoulder: float
    hip: float
    depth: float
    crotch: float
    head: float
    arm: float
    leg: float


@dataclass(frozen=True)
class Person:
    """Everything that stays the same from picture to picture."""

    body: Body
    skin: Colour
    hair: str
    hair_colour: Colour
    hair_length: str
    beard: bool
    glasses: bool
    upper: Garment
    lower: Garment
    inner: Colour
    front: Emblem
    back: Emblem
    side_stripe: bool
    shoes_name: str
    shoes: Colour
    boots: bool
    bag: str
    bag_name: str
    bag_colour: Colour
    bag_side: int
    bag_size: float
    hat: str
    hat_name: str
    hat_colour: Colour


def draw_person(rng: np.random.Generator) -> Person:
    """Return a random person."""
    hair = choose(rng, dict.fromkeys(HAIRS, 1.0))
    shoes, bag_name, hat_name = (choose(rng, EVEN_COLOURS) for _ in range(3))
    upper = _garment(rng, UPPERS, UPPER_COLOURS, plain=0.4)
    return Person(
        body=_body(rng),
        skin=jittered(SKINS[rng.integers(0, len(SKINS))], rng),
        hair=hair,
        hair_colour=jittered(HAIRS[hair], rng),
        hair_length=choose(rng, LENGTHS),
        beard=bool(rng.random() < 0.2),
        glasses=bool(rng.random() < 0.25),
        upper=upper,
        lower=_garment(rng, LOWERS, LOWER_COLOURS, plain=0.7),
        inner=any_colour(rng),
        front=_emblem(rng),
        back=_emblem(rng),
        side_stripe=bool(rng.random() < 0.25),
        shoes_name=shoes,
        shoes=jittered(PALETTE[shoes], rng),
        boots=bool(rng.random() < 0.3),
        bag=choose(rng, BAGS),
        bag_name=bag_name,
        bag_colour=jittered(PALETTE[bag_name], rng),
        bag_side=1 if rng.random() < 0.5 else -1,
        bag_size=rng.uniform(0.8, 1.25),
        hat=choose(rng, HATS),
        hat_name=hat_name,
        hat_colour=jittered(PALETTE[hat_name], rng),
    )


def _body(rng: np.random.Generator) -> Body:
    build = rng.normal(0.0, 1.0)

    def within(low: float, high: float, value: float) -> float:
        return min(max(value, low), high)

    return Body(
        stature=within(0.82, 1.0, rng.normal(0.91, 0.04)),
        shoulder=within(0.11, 0.18, 0.142 + 0.014 * build + rng.normal(0, 0.006)),
        hip=within(0.08, 0.15, 0.106 + 0.014 * build + rng.normal(0, 0.008)),
        depth=within(0.07, 0.13, 0.092 + 0.014 * build),
        crotch=rng.uniform(0.44, 0.52),
        head=rng.uniform(0.062, 0.074),
        arm=within(0.045, 0.072, 0.056 + 0.006 * build),
        leg=within(0.072, 0.115, 0.092 + 0.010 * build),
    )


def _garment(
    rng: np.random.Generator, kinds: dict[str, float], colours: dict[str, float], *, plain: float
) -> Garment:
    kind, name = choose(rng, kinds), choose(rng, colours)
    second = choose(rng, {other: 1.0 for other in PALETTE if other != name})
    patterned = dict.fromkeys(PATTERNS[1:], (1 - plain) / (len(PATTERNS) - 1))
    fabric = Fabric(
        colour=jittered(PALETTE[name], rng),
        second=jittered(PALETTE[second], rng),
        pattern=choose(rng, {"plain": plain, **patterned}),
        period=rng.uniform(0.045, 0.13),
        duty=rng.uniform(0.25, 0.6),
        weave=int(rng.integers(0, 4)),
    )
    return Garment(kind=kind, colour=name, second=second, fabric=fabric)


def _emblem(rng: np.random.Generator) -> Emblem:
    return Emblem(
        kind=choose(rng, EMBLEMS),
        colour=any_colour(rng),
        r=float(rng.choice((-0.05, 0.0, 0.05))),
        z=rng.uniform(0.62, 0.76),
        size=rng.uniform(0.022, 0.05),
    )


def describe(rng: np.random.Generator, person: Person, yaw: float) -> str:
    """Return an English sentence about what can be seen of a person turned by `yaw`."""
    upper, lower, hair = person.upper.words, person.lower.words, _hair_words(person)
    form = rng.random()
    if form < 0.15:
        colours = f"{person.upper.colour} {person.upper.kind} {person.lower.colour}"
        return f"a photo of a {colours} {person.lower.kind} person."
    if form < 0.35:
        return f"a photo of a person in {_a(upper)} and {_a(lower)}."
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


def _hair_words(person: Person) -> str:
    return f"{person.hair_length} {person.hair} hair" if person.hair_length else "a bald head"


def _a(garment: str) -> str:
    plural = garment.endswith(("trousers", "shorts"))
    return garment if plural else f"a {garment}"


def _side(yaw: float) -> str:
    """Return which side of the person is towards the camera."""
    if abs(math.cos(yaw)) > 0.6:
        return "front" if math.cos(yaw) > 0 else "back"
    return "right" if math.sin(yaw) > 0 else "left"
