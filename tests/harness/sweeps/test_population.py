"""Who goes on from whom, and with which settings."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sweeps.dimensions import Dimension
from harness.sweeps.population import explore, source_for

SCORES = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5, "f": 0.6, "g": 0.7, "h": 0.8}


def test_the_worst_go_on_from_one_of_the_best() -> None:
    chosen = {
        name: {source_for(name, SCORES, share=0.25, mode="max", epoch=epoch)
               for epoch in range(30)}
        for name in SCORES
    }
    assert chosen.pop("a") == chosen.pop("b") == {"g", "h"}
    assert set.union(*chosen.values()) == {None}
    assert source_for("h", SCORES, share=0.25, mode="min", epoch=1) in ("a", "b")
    assert source_for("a", SCORES, share=0.25, mode="min", epoch=1) is None


@given(
    st.dictionaries(st.sampled_from("abcdefghij"), st.floats(0, 1), min_size=1),
    st.floats(0.01, 0.5), st.integers(1, 9),
)
def test_no_run_continues_from_a_worse_run_or_itself(
    scores: dict[str, float], share: float, epoch: int
) -> None:
    for name in scores:
        source = source_for(name, scores, share=share, mode="max", epoch=epoch)
        if source is not None:
            assert source != name
            assert scores[source] >= scores[name]
        assert source == source_for(name, scores, share=share, mode="max", epoch=epoch)


DIMENSIONS = (
    Dimension("lr", "loguniform", (1e-4, 1e-1), "here"),
    Dimension("weight", "uniform", (0.0, 1.0), "here"),
    Dimension("count", "randint", (1, 9), "here"),
    Dimension("kind", "choice", ("a", "b", "c"), "here"),
    Dimension("tokens", "choice", (1, 2, 4), "here"),
)
NOW: dict[str, Any] = {"lr": 0.01, "weight": 0.9, "count": 4, "kind": "a", "tokens": 2}


def explored(name: str, resample: float = 0.0, seed: int = 0, **now: Any) -> dict[str, Any]:
    return explore(
        DIMENSIONS, {**NOW, **now}, {"lr", "weight", "count", "kind"}, name=name, epoch=2,
        factor=1.2, resample=resample, seed=seed,
    )


def test_settings_move_by_the_factor_within_their_ranges_and_shapes_stay() -> None:
    found = [explored(str(number)) for number in range(60)]
    assert {one["lr"] for one in found} == {0.012, float(f"{0.01 / 1.2:.6g}")}
    assert {one["weight"] for one in found} == {1.0, 0.75}
    assert {one["count"] for one in found} == {5, 3}
    assert {one["kind"] for one in found} == {"a", "b"}
    assert {one["tokens"] for one in found} == {2}
    assert explored("x") == explored("x")


def test_another_search_seed_changes_runs_in_another_way() -> None:
    names = [str(number) for number in range(200)]
    zero, one = ([explored(name, resample=1.0, seed=seed)["lr"] for name in names]
                 for seed in (0, 1))
    assert set(zero).isdisjoint(one)
    moved = [[explored(name, seed=seed)["lr"] > NOW["lr"] for name in names] for seed in (0, 1)]
    # up or down by chance: half of them differ, with a standard deviation of 7
    assert 70 < sum(a != b for a, b in zip(*moved, strict=True)) < 130
    sources = [[source_for("a", SCORES, share=0.25, mode="max", epoch=epoch, seed=seed)
                for epoch in range(50)] for seed in (0, 1)]
    assert sources[0] != sources[1]


def test_what_is_left_out_stays_so_and_nothing_else_is_left_out() -> None:
    weights = (Dimension("weight", "choice", (0.0, 0.8), "here"),)
    for before in (0.0, 0.8):
        found = {
            explore(weights, {"weight": before}, {"weight"}, name=str(number), epoch=1, factor=2.0,
                    resample=0.5)["weight"]
            for number in range(50)
        }
        assert found == {before}


def test_settings_may_be_drawn_anew() -> None:
    found = [explored(str(number), resample=1.0) for number in range(200)]
    assert len({one["lr"] for one in found}) > 150
    assert all(1e-4 <= one["lr"] <= 1e-1 for one in found)
    assert {one["count"] for one in found} == set(range(1, 9))
    assert {one["tokens"] for one in found} == {2}
    kept = [explored(str(number), resample=0.25)["lr"] for number in range(400)]
    share = sum(value in (0.012, float(f"{0.01 / 1.2:.6g}")) for value in kept) / 400
    assert share == pytest.approx(0.75, abs=0.08)
