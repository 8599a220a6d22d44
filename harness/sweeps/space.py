"""The points of a search: every combination of the grid, so many draws of the rest.

    points = grid x samples of the random dimensions

less those that a constraint forbids. A dimension with a condition (`when`) is part of a point only
where that holds; elsewhere its key keeps the recipe's value. What is drawn is a function of the key
and the number of the draw alone, so that a sweep file that asks for more draws keeps its earlier
ones.

Points that an algorithm proposed cannot be computed again from the sweep file: they are kept, in
order, in runs/<name>/points.jsonl.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from harness.base.files import write_text
from harness.config.values import value_at
from harness.sweeps.conditions import Condition
from harness.sweeps.dimensions import Dimension

Point = dict[str, Any]
RECIPE = "recipe"
"""The key of `search` under which recipes are compared."""
MANY = 10_000
"""Spaces of more points are not looked through."""
TRIES = 1000
"""How often a draw that a constraint forbids is drawn anew."""


@dataclass(frozen=True)
class Space:
    """What is searched."""

    dimensions: tuple[Dimension, ...] = ()
    constraints: tuple[Condition, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """By recipe, the configuration that gives the values of all other keys; the first one's where
    no recipe is searched."""

    @property
    def is_random(self) -> bool:
        return any(dimension.is_random for dimension in self.dimensions)

    @property
    def is_conditional(self) -> bool:
        """Whether any condition is to be looked at."""
        return bool(self.constraints) or any(dimension.when for dimension in self.dimensions)

    def value_at(self, point: Point, key: str) -> Any:
        """Return the value of a key in the trial of a point."""
        if key in point:
            return point[key]
        first = next(iter(self.fixed))
        return value_at(self.fixed[point.get(RECIPE, first)], key)

    def pick(self, choose: Callable[[Dimension], Any]) -> Point:
        """Return a point, choosing in the file's order for the dimensions that are part of it."""
        point: Point = {}
        for dimension in self.dimensions:
            when = dimension.when
            if when is None or when.holds(lambda key: self.value_at(point, key)):
                point[dimension.key] = choose(dimension)
        return point

    def allows(self, point: Point) -> bool:
        """Whether no constraint forbids the point."""
        return all(c.holds(lambda key: self.value_at(point, key)) for c in self.constraints)

    def holds(self, point: Point) -> bool:
        """Whether the point lies in the space, as one of an earlier form of the file may not."""
        try:
            same = self.pick(lambda dimension: point[dimension.key])
        except KeyError:
            return False
        inside = all(d.holds(point[d.key]) for d in self.dimensions if d.key in same)
        return same == point and inside and self.allows(point)

    def every(self) -> list[Point] | None:
        """Return all points of a space of choices and whole numbers; None of one that has more than
        can be looked through."""
        values = []
        for dimension in self.dimensions:
            if dimension.kind in ("uniform", "loguniform"):
                return None
            low_high = dimension.values if dimension.kind == "randint" else None
            values.append(range(*low_high) if low_high else dimension.values)
        if math.prod(len(some) for some in values) > MANY:
            return None
        found: dict[str, Point] = {}
        for taken in product(*values):
            chosen = dict(zip((d.key for d in self.dimensions), taken, strict=True))
            point = self.pick(lambda dimension, chosen=chosen: chosen[dimension.key])  # type: ignore[misc]
            if self.allows(point):
                found.setdefault(json.dumps(point, sort_keys=True), point)
        return list(found.values())

    def corners(self) -> Iterator[Point]:
        """Yield points that together have every choice and both ends of every range."""
        ends = [
            d.values if d.kind in ("grid", "choice")
            else (d.values[0], d.values[1] - (d.kind == "randint")) for d in self.dimensions
        ]
        for n in range(max(map(len, ends), default=0)):
            chosen = {d.key: some[n % len(some)]
                      for d, some in zip(self.dimensions, ends, strict=True)}
            yield self.pick(lambda dimension, chosen=chosen: chosen[dimension.key])  # type: ignore[misc]

    def points(self, samples: int) -> Iterator[Point]:
        """Yield the points in order: that of the grid, draws within a combination of it."""
        grid = [d for d in self.dimensions if not d.is_random]
        seen = set()
        for values in product(*(d.values for d in grid)):
            taken = dict(zip((d.key for d in grid), values, strict=True))
            for n in range(samples):
                point = self._drawn(taken, n)
                # without conditions a grid that names a run twice is a mistake, to be told
                twin = json.dumps(point, sort_keys=True) if self.is_conditional else None
                if point is not None and twin not in seen:
                    seen |= {twin} if twin else set()
                    yield point

    def _drawn(self, taken: Point, n: int) -> Point | None:
        """Return draw number `n` for a combination of the grid, None when nothing is allowed."""
        def choose(attempt: int, dimension: Dimension) -> Any:
            return dimension.draw(n, attempt) if dimension.is_random else taken[dimension.key]

        for attempt in range(TRIES if self.is_random and self.constraints else 1):
            point = self.pick(partial(choose, attempt))
            if self.allows(point):
                return point
        return None


def points_file(folder: Path) -> Path:
    """Where a search keeps the points that it proposed; `folder` is runs/<name>."""
    return folder / "points.jsonl"


def read_points(folder: Path) -> list[Point]:
    """Return the proposed points in order; a last line cut short by a kill is left out."""
    try:
        lines = points_file(folder).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    return [json.loads(line)["point"] for line in lines[:-1] if line]


def add_point(folder: Path, point: Point) -> None:
    """Keep a further point; all are written anew, so that a kill leaves no half line."""
    points = [*read_points(folder), point]
    write_text(points_file(folder), "".join(json.dumps({"point": p}) + "\n" for p in points))
