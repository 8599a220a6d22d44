"""A sweep's points: the grid, draws of the rest, and what conditions leave of them."""

import dataclasses
import hashlib
import json
import re
import time
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import UserError
from harness.sweeps.conditions import Condition, read_condition
from harness.sweeps.dimensions import Dimension
from harness.sweeps.space import Point, Space, add_point, points_file, read_points
from tests.harness.sweeps.small import Config, faults_of


def condition(text: str) -> Condition:
    found = read_condition(text, "here", [])
    assert found is not None
    return found


def dimension(key: str, kind: Any, values: tuple[Any, ...], when: str = "") -> Dimension:
    return Dimension(key, kind, values, "here", condition(when) if when else None)


def space(*dimensions: Dimension, constraints: tuple[str, ...] = ()) -> Space:
    return Space(dimensions, tuple(map(condition, constraints)), {"base": Config()})


def test_a_key_whose_condition_does_not_hold_is_no_part_of_the_point() -> None:
    found = list(space(
        dimension("train.name", "grid", ("plain", "wide")),
        dimension("train.width", "grid", (16, 32), when="train.name == 'wide'"),
    ).points(1))
    assert found == [
        {"train.name": "plain"},
        {"train.name": "wide", "train.width": 16}, {"train.name": "wide", "train.width": 32},
    ]


def test_conditions_also_look_at_keys_that_are_not_searched() -> None:
    # epochs are 4
    dims = (dimension("train.lr", "grid", (0.1, 0.2, 0.4)),)
    few = space(*dims, constraints=("train.lr * train.epochs < 1",))
    assert list(few.points(1)) == [{"train.lr": 0.1}, {"train.lr": 0.2}]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), st.integers(0, 10),
)
def test_a_constraint_leaves_the_grid_points_that_meet_it_in_their_order(
    epochs: list[int], widths: list[int], most: int
) -> None:
    found = space(
        dimension("train.epochs", "grid", tuple(epochs)),
        dimension("train.width", "grid", tuple(widths)),
        constraints=(f"train.epochs + train.width <= {most}",),
    ).points(1)
    expected = [(e, w) for e, w in product(epochs, widths) if e + w <= most]
    assert [(p["train.epochs"], p["train.width"]) for p in found] == expected


def test_a_draw_that_is_forbidden_is_drawn_anew_and_the_others_stay() -> None:
    dims = (
        dimension("train.lr", "uniform", (0.0, 1.0)), dimension("train.width", "randint", (1, 9)),
    )
    free = list(space(*dims).points(30))
    few = list(space(*dims, constraints=("train.lr < 0.4 or train.width > 6",)).points(30))
    assert len(few) == 30
    assert all(p["train.lr"] < 0.4 or p["train.width"] > 6 for p in few)
    kept = [a == b for a, b in zip(free, few, strict=True)]
    allowed = [p["train.lr"] < 0.4 or p["train.width"] > 6 for p in free]
    assert kept == allowed
    assert list(space(*dims, constraints=("train.lr < 0.4 or train.width > 6",)).points(20)) == (
        few[:20]
    )


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({"train.name": "wide", "train.lr": 0.5}, True),
        ({"train.name": "plain"}, True),
        ({"train.name": "plain", "train.lr": 0.5}, False),  # no part of it
        ({"train.name": "wide"}, False),
        ({"train.name": "wide", "train.lr": 1.5}, False),
        ({"train.name": "wide", "train.lr": 0.05}, False),  # the constraint
        ({"train.name": "other"}, False),
        ({"train.name": "wide", "train.lr": 0.5, "train.width": 3}, False),
    ],
)
def test_a_point_of_another_form_of_the_file_is_recognised(point: Point, expected: bool) -> None:
    own = space(
        dimension("train.name", "choice", ("wide", "plain")),
        dimension("train.lr", "uniform", (0.0, 1.0), when="train.name == 'wide'"),
        constraints=("train.lr >= 0.1",),
    )
    assert own.holds(point) is expected


def test_proposed_points_are_read_in_order_and_a_line_cut_short_is_left_out(
    tmp_path: Path,
) -> None:
    assert read_points(tmp_path) == []
    points = [{"a": 1, "b": [0.1, 0.2]}, {"a": None}]
    for point in points:
        add_point(tmp_path, point)
    with points_file(tmp_path).open("a") as file:
        file.write(json.dumps({"point": {"a": 3}})[:-3])
    assert read_points(tmp_path) == points


def test_another_search_seed_shares_no_draw_and_the_default_draws_as_ever(tmp_path: Path) -> None:
    zero = space(dimension("train.lr", "uniform", (0.0, 1.0)), constraints=("train.lr <= 0.9",))
    drawn = {seed: {point["train.lr"] for point in dataclasses.replace(zero, seed=seed).points(30)}
             for seed in range(5)}
    assert all(len(values) == 30 for values in drawn.values())
    assert not any(drawn[one] & drawn[other] for one, other in combinations(drawn, 2))
    digest = hashlib.sha256(b"train.lr 5").digest()
    assert list(zero.points(6))[5] == {
        "train.lr": float(f"{int.from_bytes(digest[:7], 'big') / 2**56:.6g}")
    }
    add_point(tmp_path, {"a": 1})
    before = points_file(tmp_path).read_text()
    add_point(tmp_path, {"a": 2}, 7)
    assert before == '{"point": {"a": 1}}\n'
    assert points_file(tmp_path).read_text().startswith(before)
    assert (read_points(tmp_path), read_points(tmp_path, 7)) == ([{"a": 1}], [{"a": 2}])


# --- as a sweep file says it ---


def test_a_search_seed_needs_something_to_draw_and_names_runs_that_a_population_changes(
    read: Any
) -> None:
    grid = "recipe: base\nsearch_seed: 2\nsearch: {train.lr: {grid: [0.1, 0.2]}}\n"
    assert faults_of(read, grid) == [
        "tried.yaml, line 2: search_seed: nothing is drawn: no searched key is random (choice, "
        "uniform, loguniform, randint)"
    ]
    assert faults_of(read, grid.replace("2\n", "-1\n")) == [
        "tried.yaml, line 2: search_seed: must be at least 0, found -1"
    ]
    names = [[trial.signature for trial in read(grid, "scheduler=pbt", "backend=ray", *more).trials]
             for more in ([], ["search_seed=0"])]
    assert [name.replace("pbt-2-", "pbt-") for name in names[0]] == names[1]
    assert set(names[0]).isdisjoint(names[1])




def test_a_sweep_file_has_conditions_and_constraints(read: Any) -> None:
    sweep = read(
        "recipe: base\n"
        "search:\n"
        "  train.width: {grid: [8, 16, 24]}\n"
        "  train.lr: {grid: [0.5, 0.6], when: train.width > 8}\n"
        "constraints: ['train.width * train.lr < 12']\n"
    )
    assert [t.point for t in sweep.trials] == [
        {"train.width": 8}, {"train.width": 16, "train.lr": 0.5},
        {"train.width": 16, "train.lr": 0.6},
    ]
    assert sweep.trials[0].config.train.lr == 0.1
    assert sweep.trials[0].title == "width=8 seed=7"


def test_conditions_that_are_invalid_are_reported_together(read: Any) -> None:
    assert set(faults_of(read, "\n".join([
        "recipe: base",
        "search:",
        "  train.lr: {grid: [0.1], when: train.widht > 8}",
        "  train.width: {grid: [8, 16], when: 'train.epochs > 1'}",
        "  train.epochs: {grid: [1, 2], when: 'train.epochs > 1'}",
        "  train.name: {grid: [a, b], when: open(1)}",
        "constraints: [train.lrr < 1, 3 < 4, recipe == 'base', seed > 1]",
    ]))) == {
        "tried.yaml, line 3: train.lr: when: no key train.widht; did you mean train.width?",
        "tried.yaml, line 4: train.width: when uses train.epochs, which must be searched "
        "above it",
        "tried.yaml, line 5: train.epochs: when uses train.epochs, which must be searched "
        "above it",
        "tried.yaml, line 6: train.name: when: 'open(1)' is not a condition (open(1) cannot be "
        "used here); write it as first.weight + second.weight <= 1",
        "tried.yaml, line 7: constraints: no key train.lrr; did you mean train.lr?",
        "tried.yaml, line 7: constraints: '3 < 4' names no key",
        "tried.yaml, line 7: constraints: no key recipe; one of train.lr, train.epochs, "
        "train.width, train.name, run.runs, run.name, run.threads",
        "tried.yaml, line 7: constraints: no key seed; one of train.lr, train.epochs, "
        "train.width, train.name, run.runs, run.name, run.threads",
    }


def test_constraints_that_leave_nothing_are_a_mistake(read: Any) -> None:
    [line] = faults_of(
        read, "recipe: base\nsearch: {train.lr: {grid: [0.1]}}\nconstraints: [train.lr > 1]\n"
    )
    assert line == "tried.yaml, line 3: constraints: no point of the search meets them"


def test_objectives_are_max_or_min_and_only_for_an_algorithm(read: Any) -> None:
    text = "recipe: base\nsearch: {train.lr: {uniform: [0.1, 0.2]}}\nobjectives: {speed: fast}\n"
    assert faults_of(read, text) == [
        "tried.yaml, line 3: objectives.speed: expected max or min, found 'fast'",
        "tried.yaml, line 3: objectives: need an algorithm; set algorithm: tpe",
    ]
    sweep = read(text.replace("fast", "max"), "algorithm=tpe", "backend=ray")
    assert sweep.objectives == {"speed": "max"}


def test_a_condition_sees_the_values_of_its_own_recipe() -> None:
    other = Config()
    other.train.epochs = 40
    own = Space(
        (dimension("recipe", "grid", ("base", "other")),), (condition("train.epochs > 10"),),
        {"base": Config(), "other": other},
    )
    assert list(own.points(1)) == [{"recipe": "other"}]


def test_all_points_of_a_small_space_are_known_and_those_of_a_large_one_are_not() -> None:
    own = space(
        dimension("train.name", "choice", ("wide", "plain")),
        dimension("train.width", "randint", (1, 4), when="train.name == 'wide'"),
        constraints=("train.width != 2",),
    )
    assert own.every() == [
        {"train.name": "wide", "train.width": 1}, {"train.name": "wide", "train.width": 3},
        {"train.name": "plain"},
    ]
    assert space(dimension("train.lr", "uniform", (0.0, 1.0))).every() is None
    assert space(dimension("train.width", "randint", (1, 99_999))).every() is None


def test_corners_have_every_choice_and_both_ends() -> None:
    own = space(
        dimension("train.name", "choice", ("a", "b", "c")),
        dimension("train.lr", "uniform", (0.0, 1.0)), dimension("train.width", "randint", (1, 9)),
    )
    found = list(own.corners())
    assert {p["train.name"] for p in found} == {"a", "b", "c"}
    assert {p["train.lr"] for p in found} == {0.0, 1.0}
    assert {p["train.width"] for p in found} == {1, 8}


def test_a_search_is_checked_before_anything_is_proposed(read: Any) -> None:
    text = (
        "recipe: base\nbackend: ray\nalgorithm: tpe\nsamples: 9\nsearch:\n"
        "  train.lrr: {uniform: [0, 1]}\n  train.name: {uniform: [0, 1]}\n"
        "  train.epochs: {randint: [0, 3]}\n"
    )
    assert {line.split(", found")[0] for line in faults_of(read, text)} == {
        "tried.yaml, line 6: no key train.lrr; did you mean train.lr?",
        "tried.yaml, line 7: train.name: expected a string",
        "tried.yaml, line 8: train.epochs: must be at least 1",
    }
    sweep = read("recipe: base\nbackend: ray\nalgorithm: tpe\nsamples: 9\n"
                 "search: {train.width: {randint: [1, 4]}}\n")
    assert sweep.to_propose == 3  # there are no more
    assert sweep.trials == ()
    assert {trial.point["train.width"] for trial in sweep.probes} >= {1, 3}


def test_population_based_training_needs_a_search(read: Any) -> None:
    [line] = faults_of(read, "recipe: base\nscheduler: pbt\n")
    assert line == "tried.yaml, line 2: scheduler: pbt needs backend: ray"


@pytest.mark.parametrize("text", [
    '{"point": {"a": 1}}\nnot json\n', "[1]\n", '{"point": 5}\n', "{}\n", "[" * 5000 + "\n",
])
def test_a_damaged_file_of_points_is_reported(tmp_path: Path, text: str) -> None:
    points_file(tmp_path).write_text(text)
    file = re.escape(str(points_file(tmp_path)))
    with pytest.raises(UserError, match=rf"^{file}: cannot be read"):
        read_points(tmp_path)


@given(st.floats(-1e3, 1e3), st.integers(0, 100), st.sampled_from(["uniform", "loguniform"]))
def test_a_draw_lies_in_its_range_however_narrow_that_is(low: float, n: int, kind: Any) -> None:
    low = abs(low) + 1e-3 if kind == "loguniform" else low
    high = low + abs(low) * 1e-9 + 1e-9
    one = dimension("train.lr", kind, (low, high))
    assert low <= one.draw(n) <= high


def test_the_number_of_all_points_of_wide_ranges_is_not_too_large_to_count() -> None:
    assert space(dimension("train.width", "randint", (-(2**53), 2**53))).every() is None
    assert space(dimension("train.width", "randint", (3, 5))).every() == [
        {"train.width": 3}, {"train.width": 4}
    ]


@pytest.mark.parametrize(("search", "more", "message"), [
    ("{train.lr: {uniform: [0, 1]}}", "samples: 1000000000",
     "tried.yaml: 1000000000 trials (grid x samples x seeds), at most 100000 are possible; search "
     "with choice, and draw fewer samples"),
    ("{train.width: {grid: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]}, "
     "train.lr: {grid: *a}, train.epochs: {grid: *a}}", f"seeds: {list(range(20))}",
     "tried.yaml: 116640 trials (grid x samples x seeds), at most 100000 are possible; search with "
     "choice, and draw fewer samples"),
    ("{train.lr: {uniform: [0, 1]}}", "samples: 1000\nconstraints: [train.lr < 0]",
     "tried.yaml, line 4: constraints: 201000 draws were forbidden, and only 0 points found; "
     "search narrower ranges"),
])
def test_what_would_take_minutes_is_refused_at_once(
    read: Any, search: str, more: str, message: str
) -> None:
    started = time.process_time()
    assert message in faults_of(read, f"recipe: base\nsearch: {search}\n{more}\n")
    assert time.process_time() - started < 10


@pytest.mark.parametrize(("search", "found"), [
    (f"randint: [0, {2**53 + 1}]", "integers"), ("randint: [0, 1" + "0" * 400 + "]", "integers"),
    ("uniform: [0, 1" + "0" * 400 + "]", "numbers"), ("uniform: [-1e308, 1e308]", "numbers"),
    ("loguniform: [1, 1" + "0" * 400 + "]", "numbers above 0"),
])
def test_a_range_that_cannot_be_drawn_from_is_refused(read: Any, search: str, found: str) -> None:
    [fault, *_] = faults_of(read, f"recipe: base\nsearch: {{train.lr: {{{search}}}}}\n")
    assert f": expected two rising {found}, found [" in fault


@pytest.mark.parametrize(("text", "fault"), [
    ("train.lr < '1e-4'", "train.lr is compared with '1e-4': expected a number, found '1e-4'"),
    ("'3' == train.epochs", "train.epochs is compared with '3': expected an integer, found '3'"),
    ("train.lr > 0 and train.name in ['wide', 5]",
     "train.name is compared with 5: expected a string, found 5"),
])
def test_a_condition_that_no_value_of_its_key_meets_is_a_mistake(
    read: Any, text: str, fault: str
) -> None:
    found = faults_of(read, "recipe: base\nsearch: {train.lr: {grid: [0.1, 1]}}\n"
                            f"constraints: [{json.dumps(text)}]")
    assert found == [f"tried.yaml, line 3: constraints: {fault}"]


def test_a_condition_may_compare_any_numbers(read: Any) -> None:
    for text in ("train.epochs < 6.5", "train.lr == 1", "2 < train.epochs", "train.lr in [0.1, 1]",
                 "'a' in train.name", "train.name in 'plainly'", "train.lr != null"):
        found = read(f"recipe: base\nsearch: {{train.lr: {{grid: [0.1, 1]}}}}\nconstraints: "
                     f"[{json.dumps(text)}]")
        assert found.trials
