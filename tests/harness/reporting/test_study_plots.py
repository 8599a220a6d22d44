"""The plots of a sweep: which runs their dots, lines and bars are, and how their axes run."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.reporting import study_plots
from harness.reporting.landscape import map_keys
from harness.reporting.ranking_table import setting
from harness.reporting.study_plots import Plot, plots
from harness.runs.run import Run
from harness.sweeps.dimensions import Dimension
from harness.sweeps.sweep_results import Outcome, SweepResults

KINDS = {
    "lr": ("loguniform", (1e-5, 1e-3)), "weight": ("uniform", (0.0, 2.0)),
    "tokens": ("grid", (1, 2, 4, 8)), "loss": ("choice", ("<b>ntxent</b>", "simsiam")),
}
RUNS = 20


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> SweepResults:
    """20 complete runs, one that failed and one that waits; a smaller `seconds` is better."""
    search = {key: Dimension(key, kind, values, "")  # type: ignore[arg-type]
              for key, (kind, values) in KINDS.items()}
    outcomes = []
    for n in range(RUNS + 2):
        point = {key: one.draw(n) for key, one in search.items()}
        run = Run(tmp_path_factory.getbasetemp() / f"run{n:02}")
        value = 0.1 * point["weight"] + 0.01 * (n * 7 % 20)
        if n < RUNS:
            numbers = {"mAP": value, "seconds": 10.0 + n * 3 % 20}
            outcomes.append(Outcome(point, 1, run, "complete", value, numbers))
        else:
            state = "failed" if n == RUNS else "submitted"
            outcomes.append(Outcome(point, 1, run, state, None, {}))
    return SweepResults("tried", Path("/runs/tried"), "mAP", "max", outcomes,
                        {"seconds": "min"}, search)


@pytest.fixture(scope="module")
def made(results: SweepResults) -> dict[str, Plot]:
    return {one.name: one for one in plots(results)}


def dots(plot: Plot) -> Iterator[tuple[Any, int]]:
    """Yield each trace whose points are runs, with the place of a point."""
    for trace in plot.figure.data:
        for place in range(len(trace.customdata or ())):
            yield trace, place


def test_each_plot_has_a_heading_that_says_what_it_shows(
    made: dict[str, Plot], results: SweepResults
) -> None:
    x, y = sorted(map_keys(results, results.shares))
    assert {name: one.heading for name, one in made.items()} == {
        "history": "mAP from trial to trial", "importance": "How much each key changes mAP",
        "points": "Settings of all runs, coloured by mAP", "map": f"mAP over {x} and {y}",
        "slices": "mAP by each key", "front-seconds": "mAP against seconds",
        "timeline": "When the runs ran",
    }
    assert all(one.figure.layout.title.text is None for one in made.values())


def test_every_dot_is_at_its_runs_numbers_and_named_by_its_signature(
    made: dict[str, Plot], results: SweepResults
) -> None:
    by_run = {one.run.signature: one for one in results.outcomes}
    for name, count in (("history", 20), ("slices", 4 * 20), ("front-seconds", 20), ("map", 20)):
        found = list(dots(made[name]))
        assert len(found) == count, name
        for trace, place in found:
            one = by_run[trace.customdata[place]]
            if name == "map":
                x, y = (axis.title.text for axis in (made[name].figure.layout.xaxis,
                                                     made[name].figure.layout.yaxis))
                assert (trace.x[place], trace.y[place]) == (one.point[x], one.point[y])
            elif name == "front-seconds":
                assert (trace.x[place], trace.y[place]) == (one.value, one.numbers["seconds"])
            else:
                assert trace.y[place] == one.value
            assert f"weight={setting(one.point['weight'])}" in trace.text[place]
            assert "seed=1" in trace.text[place]
            assert "<b>" not in trace.text[place]
    bars = [(bar.customdata[place], bar.y[place]) for bar, place in dots(made["timeline"])]
    assert sorted(bars) == [(f"run{n:02}", n) for n in range(RUNS + 1)]


def test_the_line_of_the_history_is_the_best_so_far(
    results: SweepResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_plots, "MOST_DOTS", 8)
    figure = study_plots._history(results).figure
    values = [one.value or 0.0 for one in results.outcomes[:RUNS]]
    best = list(itertools.accumulate(values, max))
    line = figure.data[1]
    assert [best[n] for n in line.x] == list(line.y)
    assert {n for n in range(RUNS) if n == 0 or best[n] > best[n - 1]} <= set(line.x)
    assert 8 <= len(line.x) < RUNS


def test_axes_are_log_exactly_where_the_search_was(made: dict[str, Plot]) -> None:
    layout = made["slices"].figure.layout
    axes = [layout[name] for name in ("xaxis", "xaxis2", "xaxis3", "xaxis4")]
    assert {axis.title.text: axis.type for axis in axes} == {
        "lr": "log", "weight": None, "tokens": "log", "loss": "category",
    }


def test_many_runs_are_drawn_in_part_the_best_over_the_others(
    results: SweepResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_plots, "MOST_LINES", 10)
    plot = study_plots._lines(results)
    assert plot is not None
    drawn = [trace.meta for trace in plot.figure.data if trace.meta]
    ranked = sorted(results.outcomes[:RUNS], key=lambda one: one.value or 0.0)
    order = [one.run.signature for one in ranked]
    assert drawn == [name for name in order if name in drawn]
    assert drawn[-5:] == order[-5:]
    assert len(drawn) == 10
    assert plot.caption.endswith("Drawn are 10 of 20 complete runs: the best and a sample.")


def test_importance_is_the_rankings_with_the_points_it_is_of_and_left_out_for_few(
    made: dict[str, Plot], results: SweepResults
) -> None:
    [bars] = made["importance"].figure.data
    assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(results.shares)
    assert made["importance"].caption.endswith(" computed from 20 points.")
    few = replace(results, outcomes=results.outcomes[:9], objectives={})
    assert "importance" not in {one.name for one in plots(few)}


def test_a_sweep_without_results_has_a_timeline_of_what_has_begun_at_most(
    results: SweepResults
) -> None:
    assert [one.name for one in plots(replace(results, outcomes=results.outcomes[RUNS:]))] == [
        "timeline"
    ]
    assert plots(replace(results, outcomes=results.outcomes[RUNS + 1 :])) == []
