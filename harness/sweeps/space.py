"""The points of a search.

    points = grid x samples of the random dimensions - those that a constraint forbids

A dimension with a condition (`when`) is part of a point only where that holds; elsewhere its key
keeps the recipe's value. A draw is a function of search seed, key and number alone, so a sweep file
with more samples keeps its earlier draws.

Points that an algorithm proposed cannot be computed again from the sweep file, so they are kept, in
order, in runs/<name>/points.jsonl. Searches with different seeds do not see each other's.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json_lines, write_json_lines
from harness.config.casts import at_type
from harness.config.values import value_at
from harness.sweeps.conditions import Condition
from harness.sweeps.dimensions import Dimension

Point = dict[str, Any]
RECIPE = "recipe"
"""The key of `search` under which recipes are compared."""
MANY = 10_000
"""Larger spaces are not enumerated."""
TRIES = 1000
"""How often a draw is repeated that a constraint forbids."""
MOST_FORBIDDEN = 200_000
"""Of more forbidden draws of a sweep, the constraints are refused: they take seconds."""


@dataclass(frozen=True)
class Space:
    """What is searched."""

    dimensions: tuple[Dimension, ...] = ()
    constraints: tuple[Condition, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The configurations, by recipe, with the values of all other keys; one if no recipe is
    searched."""
    seed: int = 0
    """The sweep file's `search_seed`."""

    @property
    def is_random(self) -> bool:
        return any(dimension.is_random for dimension in self.dimensions)

    @property
    def is_conditional(self) -> bool:
        return bool(self.constraints) or any(dimension.when for dimension in self.dimensions)

    def value_at(self, point: Point, key: str) -> Any:
        """Return the value of a key in the trial of a point."""
        if key in point:
            return point[key]
        first = next(iter(self.fixed))
        return value_at(self.fixed[point.get(RECIPE, first)], key)

    def pick(self, choose: Callable[[Dimension], Any]) -> Point:
        """Return a point: the chosen values, in the file's order, of the dimensions in it."""
        point: Point = {}
        for dimension in self.dimensions:
            when = dimension.when
            if when is None or when.holds(lambda key: self.value_at(point, key)):
                point[dimension.key] = choose(dimension)
        return point

    def allows(self, point: Point) -> bool:
        """Return whether no constraint forbids the point."""
        return all(c.holds(lambda key: self.value_at(point, key)) for c in self.constraints)

    def holds(self, point: Point) -> bool:
        """Return whether the point is in the space; one from before an edit of the file may not."""
        try:
            same = self.pick(lambda dimension: point[dimension.key])
        except KeyError:
            return False
        inside = all(d.holds(point[d.key]) for d in self.dimensions if d.key in same)
        return same == point and inside and self.allows(point)

    def every(self) -> list[Point] | None:
        """Return all points of a space of choices and integers; None if it has too many."""
        if any(dimension.kind in ("uniform", "loguniform") for dimension in self.dimensions):
            return None
        if math.prod(map(_count, self.dimensions)) > MANY:
            return None
        values = [range(*d.values) if d.kind == "randint" else d.values for d in self.dimensions]
        found: dict[str, Point] = {}
        for combination in product(*values):
            point = self._of(combination)
            if self.allows(point):
                found.setdefault(json.dumps(point, sort_keys=True), point)
        return list(found.values())

    def corners(self) -> Iterator[Point]:
        """Yield points that together have every choice and both ends of every range."""
        ends = [d.values if d.kind in ("grid", "choice")
                else (d.values[0], d.values[1] - (d.kind == "randint")) for d in self.dimensions]
        for n in range(max(map(len, ends), default=0)):
            yield self._of([values[n % len(values)] for values in ends])

    def _of(self, values: Sequence[Any]) -> Point:
        """Return the point of a value for each dimension."""
        chosen = dict(zip((d.key for d in self.dimensions), values, strict=True))
        return self.pick(lambda dimension: chosen[dimension.key])

    def size(self, samples: int) -> int:
        """Return the number of points before constraints."""
        return samples * math.prod(len(d.values) for d in self.dimensions if not d.is_random)

    def points(self, samples: int) -> Iterator[Point]:
        """Yield the points: draws within combinations of the grid, in the file's order. Raises
        UserError if constraints forbid nearly all draws."""
        grid = [d for d in self.dimensions if not d.is_random]
        seen: set[str] = set()
        forbidden = 0
        for values in product(*(d.values for d in grid)):
            combination = dict(zip((d.key for d in grid), values, strict=True))
            for n in range(samples):
                point, attempts = self._drawn(combination, n)
                forbidden += attempts
                if forbidden > MOST_FORBIDDEN:
                    raise UserError(f"constraints: {forbidden} draws were forbidden, and only "
                                    f"{len(seen)} points found; search narrower ranges")
                text = json.dumps(point, sort_keys=True)
                # without conditions, a grid that names a run twice is a mistake to report
                if point is not None and not (self.is_conditional and text in seen):
                    seen.add(text)
                    yield point

    def _drawn(self, combination: Point, n: int) -> tuple[Point | None, int]:
        """Return draw `n` within a combination of the grid, None if constraints forbid all, and how
        many were forbidden."""
        def choose(attempt: int, dimension: Dimension) -> Any:
            if dimension.is_random:
                return dimension.draw(n, attempt, self.seed)
            return combination[dimension.key]

        attempts = TRIES if self.is_random and self.constraints else 1
        for attempt in range(attempts):
            point = self.pick(partial(choose, attempt))
            if self.allows(point):
                return point, attempt
        return None, attempts if attempts > 1 else 0


def _count(dimension: Dimension) -> int:
    """Return the number of values of a grid, a choice or integers."""
    values = dimension.values
    return values[1] - values[0] if dimension.kind == "randint" else len(values)


def points_file(folder: Path) -> Path:
    """Return the file with the points that a search proposed; `folder` is runs/<name>."""
    return folder / "points.jsonl"


def read_points(folder: Path, seed: int = 0) -> list[Point]:
    """Return the points that the search of a seed has proposed, in order. Raises UserError for a
    damaged file."""
    file = points_file(folder)
    try:
        lines = [at_type(line, dict[str, Any]) for line in read_json_lines(file)]
        return [at_type(line["point"], dict[str, Any]) for line in lines
                if line.get("search_seed", 0) == seed]
    except (ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {error!r}; put an earlier copy back, or delete "
                        "it and search anew") from None


def add_point(folder: Path, point: Point, seed: int = 0) -> None:
    """Add a point; the whole file is replaced, so that a kill leaves no half line."""
    line = {"point": point, **({"search_seed": seed} if seed else {})}
    write_json_lines(points_file(folder), [*read_json_lines(points_file(folder)), line])
