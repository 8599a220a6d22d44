"""Proposals: better than chance, the same after a kill, and only what the search allows."""

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest

from harness.sweeps.keys import Algorithm, Gp, Tpe
from harness.sweeps.proposing import TriedPoint, propose
from harness.sweeps.space import Point, Space
from tests.harness.sweeps.test_space import dimension, space

BOWL = space(
    dimension("train.lr", "loguniform", (1e-4, 1.0)),
    dimension("train.width", "randint", (1, 33)),
    dimension("train.name", "choice", ("plain", [1, 2], None)),
)


def height(point: Point) -> float:
    """Best at lr 0.01, width 20, the second name."""
    far = abs(point["train.width"] - 20) / 20 + abs(point["train.lr"] - 0.01) ** 0.25
    return -far - 0.3 * (point["train.name"] != [1, 2])


def search(
    algorithm: Algorithm, count: int, seed: int, *, search_seed: int = 0, **options: Any
) -> list[TriedPoint]:
    tried: list[TriedPoint] = []
    bowl = dataclasses.replace(BOWL, seed=search_seed)
    for _ in range(count):
        point = propose(bowl, algorithm, tried, seed=seed, **{"modes": ["max"], **options})
        assert point is not None
        tried.append(TriedPoint(point, "complete", [height(point)]))
    return tried


def best(tried: Sequence[TriedPoint]) -> float:
    return max(one.values[0] for one in tried if one.values)


@pytest.mark.parametrize(("algorithm", "count"), [(Tpe(startup=8), 40), (Gp(startup=8), 16)])
def test_proposals_find_better_points_than_draws(algorithm: Algorithm, count: int) -> None:
    draws = list(BOWL.points(400))
    chance = random.Random(1)
    by_chance = [max(map(height, chance.sample(draws, count))) for _ in range(100)]
    found = best(search(algorithm, count, seed=3))
    assert found > sorted(by_chance)[80]  # better than four of five random searches


def test_the_same_search_proposes_the_same_points_and_another_seed_others() -> None:
    first = search(Tpe(startup=3), 8, seed=1)
    assert search(Tpe(startup=3), 8, seed=1) == first
    assert search(Tpe(startup=3), 8, seed=2) != first
    other = search(Tpe(startup=3), 8, seed=1, search_seed=1)
    assert {one.point["train.lr"] for one in first}.isdisjoint(o.point["train.lr"] for o in other)
    # as after a kill: nothing but the points is needed
    again = propose(BOWL, Tpe(startup=3), first[:6], modes=["max"], seed=1)
    assert again == first[6].point


def test_smaller_may_be_better() -> None:
    tried = [TriedPoint({"train.lr": 10**-n, "train.width": 9, "train.name": None}, "complete", [n])
             for n in range(1, 4)] * 4
    lrs = [
        [propose(BOWL, Tpe(startup=1), tried, modes=[mode], seed=s)["train.lr"] for s in range(30)]
        for mode in ("max", "min")
    ]
    assert sorted(lrs[0])[15] < sorted(lrs[1])[15]


def test_proposals_meet_conditions_constraints_and_each_other() -> None:
    own = space(
        dimension("train.name", "choice", ("wide", "plain")),
        dimension("train.width", "randint", (1, 4), when="train.name == 'wide'"),
        constraints=("train.width != 2",),
    )
    tried: list[TriedPoint] = []
    while (point := propose(own, Tpe(startup=2), tried, modes=["max"], seed=1)) is not None:
        tried.append(TriedPoint(point, "complete", [1.0]))
    found = sorted((p.point["train.name"], p.point.get("train.width", 0)) for p in tried)
    # there are no more than these, and then nothing is proposed
    assert found == [("plain", 0), ("wide", 1), ("wide", 3)]


def test_what_runs_failed_or_was_ended_early_is_taken_into_account() -> None:
    point = {"train.lr": 0.01, "train.width": 20, "train.name": None}
    others = [
        TriedPoint(point, "running"), TriedPoint({**point, "train.width": 3}, "failed"),
        TriedPoint({**point, "train.width": 4}, "ended early", reached={1: 0.1, 2: 0.2}),
        TriedPoint({**point, "train.width": 5}, "ended early"),
    ]
    for algorithm in (Tpe(startup=1), Gp(startup=1)):
        found = propose(BOWL, algorithm, others, modes=["max"], seed=1)
        assert found is not None
        assert BOWL.holds(found)
        assert found not in [one.point for one in others]


def test_values_are_short_so_that_names_of_runs_are_the_same_everywhere() -> None:
    own: Space = space(dimension("train.lr", "loguniform", (1e-4, 1e-2)))
    point = propose(own, Tpe(), [], modes=["max"], seed=5)
    assert point is not None
    assert float(f"{point['train.lr']:.6g}") == point["train.lr"]


def test_what_is_weighed_against_the_metric_is_sought_as_well() -> None:
    own = space(dimension("train.lr", "uniform", (0.0, 1.0)))

    def values(point: Point) -> list[float]:  # nothing beats what lies between 0.2 and 0.6
        return [-abs(point["train.lr"] - 0.2), abs(point["train.lr"] - 0.6)]

    tried: list[TriedPoint] = []
    for _ in range(60):
        point = propose(own, Tpe(startup=10), tried, modes=["max", "min"], seed=2)
        assert point is not None
        tried.append(TriedPoint(point, "complete", values(point)))
    tried.append(TriedPoint({"train.lr": 0.9}, "ended early", reached={1: 0.5}))
    assert propose(own, Tpe(startup=10), tried, modes=["max", "min"], seed=2) is not None
    inside = [0.2 <= one.point["train.lr"] <= 0.6 for one in tried[10:60]]
    assert sum(inside) > 29  # of 50; by chance 20
