"""What came out of a sweep, against numbers worked out by hand or by another library."""

import csv
import json
import math
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import scipy.stats
import yaml

from harness.base.errors import UserError
from harness.base.files import read_json, write_json
from harness.reporting.ranking_table import ranking_table, trial_label
from harness.runs.run import Run
from harness.sweeps import sweep_results
from harness.sweeps.sweep_results import SweepResults

Made = Callable[..., SweepResults]


@pytest.fixture
def make(tmp_path: Path) -> Made:
    """Make a sweep folder of points and their metrics by seed; None: the trial is not complete."""

    def made(*rows: tuple[dict[str, Any], dict[int, float | None]], **summary: Any) -> Any:
        trials = []
        for number, (point, values) in enumerate(rows):
            for seed, value in values.items():
                run = Run(tmp_path / f"run{number}-{seed}")
                run.create(yaml.safe_dump({
                    "seed": seed, "data": {"validation": 0.25, "root": "/here"},
                    "run": {"runs": "runs"}, "point": point,
                }))
                if value is None:
                    run.set_status("failed", error="out of luck")
                else:
                    write_json(run.result_file, {
                        "mAP": value / 2, "cmc": {"1": value}, "dataset": "drawn",
                        "validation": {"mAP": value},
                    })
                trials.append({"point": point, "seed": seed, "signature": run.signature})
        write_json(tmp_path / "sweep.json", {
            "name": "tried", "metric": "validation.mAP", "mode": "max", "trials": trials, **summary,
        })
        return sweep_results.read_outcomes(tmp_path)

    return made


def test_points_are_ranked_by_the_mean_over_their_complete_seeds(make: Made) -> None:
    sweeping = make(
        ({"a": 1}, {1: 0.5, 2: 0.9, 3: None}), ({"a": 2}, {1: 0.65, 2: 0.6, 3: 0.7}),
        ({"a": 3}, {1: None, 2: None, 3: None}), ({"a": 4}, {1: 0.1, 2: 0.1, 3: 0.1}),
    )
    ranked = sweeping.ranked()
    # the seed that is missing was perhaps a bad one: its point cannot win
    assert [one.point["a"] for one in ranked] == [2, 4, 1]
    assert [one.is_whole for one in ranked] == [True, True, False]
    assert [one.mean for one in ranked] == pytest.approx([0.65, 0.1, 0.7])
    assert [one.point["a"] for one in sweeping.sound()] == [2, 4]
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=0.65, scale=scipy.stats.sem([0.65, 0.6, 0.7])
    )
    assert ranked[0].half_width == pytest.approx((high - low) / 2)
    assert sweeping.selected_on == "validation"
    lowest = make(({"a": 1}, {1: 0.5}), ({"a": 2}, {1: 0.4}), metric="mAP", mode="min")
    assert [one.point["a"] for one in lowest.ranked()] == [2, 1]
    assert lowest.ranked()[0].half_width is None
    assert lowest.selected_on == "test"


def test_a_full_grids_importance_is_its_analysis_of_variance(make: Made) -> None:
    rows = [({"a": a, "b": b, "c": 7}, {1: 3.0 * a + 1.0 * b + 0.5 * a * b})
            for a, b in product((-3, -1, 1, 3), (-3, -1, 1, 3))]
    sweeping = make(*rows)
    total = 45 + 5 + 6.25
    assert sweeping.shares == pytest.approx(
        {"a": 45 / total, "b": 5 / total, "interactions": 6.25 / total}
    )
    assert list(sweeping.shares) == ["a", "b", "interactions"]
    assert sweeping.weighed == 16


def test_other_points_importance_finds_what_matters(make: Made) -> None:
    rows = [
        ({"a": n * 7 % 20, "b": n * 3 % 20, "c": "xyz"[n % 3]}, {1: float(n * 7 % 20)})
        for n in range(20)
    ]
    found = make(*rows).shares
    assert next(iter(found)) == "a"
    assert found["a"] > 0.7
    assert sum(found.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "rows",
    [
        [({"a": n}, {1: 0.1 * n}) for n in range(9)],  # too few
        [({"a": n}, {1: 0.5}) for n in range(10)],  # no variance
        [({"a": 1}, {1: 0.5})],
    ],
)
def test_keys_have_no_importance_when_it_cannot_be_computed(make: Made, rows: Any) -> None:
    assert make(*rows).shares == {}


def test_the_best_point_becomes_a_recipe(make: Made, tmp_path: Path) -> None:
    sweeping = make(({"a": 1}, {1: 0.5, 2: 0.7}), ({"a": 2}, {1: 0.9, 2: None}))
    path = sweep_results.write_best(
        sweeping, without={"data.validation": 0.0, "data.root": None, "run": None},
        absent={"point.a": 5, "point.b": "as before"},
    )
    assert path == tmp_path / "best.yaml"
    text = path.read_text()
    assert yaml.safe_load(text) == {
        "seed": 1, "data": {"validation": 0.0}, "point": {"a": 1, "b": "as before"},
    }
    assert "The best of 2 points of the sweep tried, selected on validation" in text
    assert "runs run0-1, run0-2" in text


def test_without_a_complete_trial_there_is_no_best(make: Made) -> None:
    sweeping = make(({"a": 1}, {1: None}))
    assert sweep_results.write_best(sweeping, without={}) is None
    assert sweeping.ranked() == []


def test_every_trial_stands_in_both_tables(make: Made) -> None:
    sweeping = make(
        ({"a": [0.1, 0.2], "c": "1e-4", "d": 0}, {1: 0.5}),
        ({"a": [0.3, 0.2], "b": "x, y", "c": 0.001, "d": 0.8}, {1: None, 2: 0.4}),
    )
    table, typed = sweep_results.write_tables(sweeping)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert [row["validation.mAP"] for row in rows] == ["0.5", "", "0.4"]
    assert [json.loads(row["a"]) for row in rows] == [[0.1, 0.2], [0.3, 0.2], [0.3, 0.2]]
    assert [row["b"] for row in rows] == ["", "x, y", "x, y"]
    columns = pyarrow.parquet.read_table(typed).to_pydict()
    assert columns["validation.mAP"] == [0.5, None, 0.4]
    assert columns["seed"] == [1, 1, 2]
    assert columns["c"] == ["1e-4", "0.001", "0.001"]  # types were mixed: nothing is guessed
    assert columns["d"] == [0.0, 0.8, 0.8]
    assert math.isclose(columns["cmc.1"][0], 0.5)


def test_keys_are_searched_as_the_sweep_says_and_otherwise_as_a_grid_of_what_was_tried(
    make: Made
) -> None:
    search = {"a": {"loguniform": [0.1, 10]}, "gone": {"grid": [1]}}
    found = make(({"a": 0.2, "b": 3}, {1: 0.5, 2: 0.4}), ({"a": 4.0, "b": [1]}, {1: 0.5}),
                 search=search).dimensions
    assert {key: (one.kind, one.values) for key, one in found.items()} == {
        "a": ("loguniform", (0.1, 10)), "b": ("grid", (3, [1])),
    }


def test_a_folder_that_is_no_sweeps_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a sweep folder: it has no sweep\.json"):
        sweep_results.read_outcomes(tmp_path)
    (tmp_path / "sweep.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"sweep\.json: cannot be read"):
        sweep_results.read_outcomes(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../up"), ("name", 5), ("metric", None), ("mode", "sideways"), ("mode", ["max"]),
     ("objectives", []), ("objectives", {"a": "more"}), ("trials", {}), ("trials", [5]),
     ("trials", [{"point": [], "seed": 1, "signature": "a"}]),
     ("trials", [{"point": {}, "seed": 1.5, "signature": "a"}]),
     ("trials", [{"point": {}, "seed": 1, "signature": "../a"}])],
)  # fmt: skip
def test_a_sweep_file_with_an_odd_value_is_named_not_guessed(
    tmp_path: Path, key: str, value: object
) -> None:
    trials = [{"point": {}, "seed": 1, "signature": "a"}]
    whole = {"name": "x", "metric": "mAP", "mode": "max", "trials": trials}
    write_json(tmp_path / "sweep.json", whole)
    assert len(sweep_results.read_outcomes(tmp_path).outcomes) == 1
    write_json(tmp_path / "sweep.json", whole | {key: value})
    with pytest.raises(UserError, match=r"sweep\.json: cannot be read"):
        sweep_results.read_outcomes(tmp_path)


def test_points_that_nothing_beats_in_everything_are_known(make: Made) -> None:
    rows = [({"a": 1}, {1: 0.9}), ({"a": 2}, {1: 0.8}), ({"a": 3}, {1: 0.7}), ({"a": 4}, {1: 0.6})]
    sweeping = make(*rows, objectives={"speed": "max"})
    for one, speed in zip(sweeping.outcomes, (10.0, 5.0, 30.0, 30.0), strict=True):
        one.run.log_metrics({"kind": "epoch", "epoch": 1, "speed": speed})
    sweeping = sweep_results.read_outcomes(sweeping.folder)
    assert sweep_results.unbeaten(sweeping, sweeping.ranked()) == [True, False, True, False]
    alone = make(*rows)
    assert sweep_results.unbeaten(alone, alone.ranked()) == [True, False, False, False]


def test_settings_that_changed_during_training_are_in_best_yaml(make: Made) -> None:
    sweeping = make(*(({"a": n}, {1: 0.05 * n}) for n in range(1, 11)))
    assert sweeping.shares == {"a": 1.0}
    write_json(sweeping.ranked()[0].outcomes[0].run.folder / "changes.json", {
        "changes": [{"of": "other", "epoch": 2, "settings": {"data.validation": 0.5}}],
    })
    sweeping = sweep_results.read_outcomes(sweeping.folder)
    assert sweeping.has_changed
    assert sweeping.shares == {}
    path = sweep_results.write_best(sweeping, without={"run": None})
    assert path is not None
    assert "Settings changed during training" in path.read_text()
    assert yaml.safe_load(path.read_text())["data"]["validation"] == 0.5


@pytest.mark.parametrize("change", [
    {"mode": "most"}, {"metric": 5}, {"objectives": []}, {"objectives": {"a": "up"}},
    {"trials": {}}, {"trials": [5]}, {"trials": [{"point": [], "seed": 1, "signature": "a"}]},
    {"trials": [{"point": {}, "seed": 1e400, "signature": "a"}]},
    {"trials": [{"point": {}, "seed": "1", "signature": "a"}]},
    {"trials": [{"point": {}, "seed": 1, "signature": "../a"}]}, {"name": None},
    {"search": {"a": {"loguniform": [-1, 1]}}}, {"search": {"a": 5}},
])
def test_a_sweep_json_that_no_launch_has_written_is_reported(
    make: Made, tmp_path: Path, change: dict[str, Any]
) -> None:
    make(({"a": 1}, {1: 0.5}))
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))}: cannot be read: "):
        sweep_results.read_outcomes(tmp_path)


def test_a_sweep_json_that_is_no_record_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    for text in ("[" * 100_000, "5", "{", "[]"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"sweep.json: cannot be read: "):
            sweep_results.read_outcomes(tmp_path)
    with pytest.raises(UserError, match=r": not a sweep folder: it has no sweep.json$"):
        sweep_results.read_outcomes(file)


def test_a_damaged_record_of_changes_counts_as_a_change_and_the_sweep_is_read(make: Made) -> None:
    sweeping = make(*(({"a": n}, {1: 0.1 * n}) for n in range(1, 6)))
    (sweeping.outcomes[0].run.folder / "changes.json").write_text("{")
    assert sweep_results.read_outcomes(sweeping.folder).has_changed


def test_a_damaged_configuration_of_the_best_run_is_named(make: Made) -> None:
    sweeping = make(({"a": 1}, {1: 0.9}), ({"a": 2}, {1: 0.8}))
    file = sweeping.ranked()[0].outcomes[0].run.config_file
    file.write_text("data: 5\n")
    with pytest.raises(UserError, match=rf"{file}: data is 5, not a group of keys"):
        sweep_results.write_best(sweeping, without={"data.validation": 0.0})


def test_points_that_left_the_sweep_file_rank_last_apart_and_do_not_become_the_best(
    make: Made, tmp_path: Path
) -> None:
    make(*(({"a": a}, {1: value}) for a, value in ((1, 0.5), (2, 0.4), (1, 0.9), (1, 0.8))))
    summary = read_json(tmp_path / "sweep.json")
    for place, dropped in ((2, 1), (3, 2)):  # of two earlier states with other settings
        summary["trials"][place]["dropped"] = dropped
    write_json(tmp_path / "sweep.json", summary)
    results = sweep_results.read_outcomes(tmp_path)
    ranked = results.ranked()
    assert [(one.point["a"], one.values, one.in_file) for one in ranked] == [
        (1, [0.5], True), (2, [0.4], True), (1, [0.9], False), (1, [0.8], False)]
    assert [one.mean for one in results.sound()] == [0.5, 0.4]
    remarks = ranking_table(results, {}).remarks
    assert any(line.endswith("other settings may differ: rank 3, 4.") for line in remarks)
    assert sweep_results.unbeaten(results, ranked) == [True, False, False, False]
    labels = [trial_label(one) for one in results.outcomes]
    assert labels == ["a=1 seed=1", "a=2 seed=1", *2 * ["a=1 seed=1 (no longer in the file)"]]
    assert [one.value for one in results.in_file.outcomes] == [0.5, 0.4]
    table, _ = sweep_results.write_tables(results)
    with table.open(newline="") as file:
        assert [row["in_file"] for row in csv.DictReader(file)] == ["True"] * 2 + ["False"] * 2
    best = sweep_results.write_best(results, without={})
    assert best is not None
    assert "# The best of 2 points " in best.read_text()
    for name in (0, 1):
        results.outcomes[name].run.result_file.unlink()
    assert sweep_results.write_best(sweep_results.read_outcomes(tmp_path), without={}) is None


@pytest.mark.parametrize(
    ("about", "message"),
    [({"file": "synthetic", "recipes": ["synthetic"], "words": []},
      "this is the run of a recipe; give --recipe synthetic$"),
     ({"file": "my.yaml", "recipes": ["my.yaml"]}, "give --recipe my.yaml$"),
     ({"file": "my.yaml", "recipes": ["synthetic"]}, "has a file; give --sweep my.yaml$"),
     ({"file": "my.yaml"}, "has a file; give --sweep my.yaml$")],
)
def test_a_sweep_that_was_not_typed_says_how_it_is_given(
    tmp_path: Path, about: dict[str, Any], message: str
) -> None:
    write_json(tmp_path / "tried" / "sweep.json", about)
    with pytest.raises(UserError, match=f"^--sweep-name tried: .*{message}"):
        sweep_results.words_of(tmp_path, "tried")
