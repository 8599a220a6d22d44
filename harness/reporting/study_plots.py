"""Interactive plots of a sweep, by optuna.visualization: see `plots`.

Axes are as the sweep file declares them. Each dot, line and bar is one run, with its signature as
`customdata`, by which a page can mark the run everywhere; hovering shows its point and seed.
"""

import html
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.reporting.drawing import LINES
from harness.reporting.landscape import LEAST_OF_MAP, MOST_LINES, map_keys
from harness.reporting.ranking_table import trial_label
from harness.sweeps.study import STATES, as_study, single
from harness.sweeps.sweep_results import Outcome, SweepResults

if TYPE_CHECKING:  # plotly takes half a second to import
    from plotly.graph_objects import Figure

MOST_DOTS = 500
"""Runs in a plot of dots or bars: with more, a browser takes seconds to draw it."""
MOST_OF_MAP = 100
"""Runs in the contour plot, which has a cell for each pair of their values."""
MOST_KEYS = 6
"""Keys side by side: more cannot be read on a laptop."""
LEAST_OF_AXIS, LEAST_OF_SLICE = 130, 200
"""Least width of an axis of the parallel coordinates, and of a slice, in pixels; a narrow page
scrolls."""
COLOURS = "Viridis"
"""Visible on white and on black."""
BARS = {"COMPLETE": 0, "PRUNED": 1, "RUNNING": 2, "FAIL": -1}
"""Place in LINES of the colour of each of Optuna's states."""
HOVER = "%{text}<extra></extra>"


class Plot(NamedTuple):
    """A plot for a page."""

    name: str
    """Of its files."""
    figure: "Figure"
    heading: str
    caption: str


def plots(results: SweepResults) -> list[Plot]:
    """Return the plots that a sweep's complete runs allow, for a page.

    History, importance, parallel coordinates, contour, slice, Pareto front (for each further
    objective), and a timeline of all runs that have begun. Large sweeps are drawn in part: the best
    runs and a sample of the others, as captions say.
    """
    makers = (_history, _importance, _lines, _contour, _slices)
    made = [make(results) for make in makers] if len(_complete(results)) > 1 else []
    made += [_front(results, key) for key in results.objectives]
    made.append(_timeline(results))
    found = [one for one in made if one is not None]
    for one in found:
        one.figure.update_layout(title=None)  # the page has headings
    return found


def _history(results: SweepResults) -> Plot:
    from optuna.visualization import plot_optimization_history

    places = {id(one): place for place, one in enumerate(results.outcomes)}
    outcomes = _part(results, MOST_DOTS, also=_records(results))
    figure = plot_optimization_history(as_study(single(results), outcomes),
                                       target_name=results.metric)
    dots, best, *_ = figure.data
    numbers = [places[id(one)] for one in outcomes]
    dots.update(x=numbers)
    best.update(x=numbers, name="best so far", line_shape="hv", hoverinfo="skip")
    _mark(dots, outcomes, results)
    figure.update_xaxes(title="trial, in the order of the sweep")
    return Plot("history", figure, f"{results.metric} from trial to trial",
                _caption("Each dot is a run, the line the best so far.", results, MOST_DOTS))


def _importance(results: SweepResults) -> Plot | None:
    from optuna.importance import BaseImportanceEvaluator
    from optuna.visualization import plot_param_importances

    shares = {key: share for key, share in results.shares.items() if key in results.dimensions}
    if not shares:
        return None

    class Known(BaseImportanceEvaluator):
        """Gives the shares that the ranking's remarks name, too."""

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            return shares

    study = as_study(single(results), _part(results, MOST_OF_MAP))  # for the keys only
    figure = plot_param_importances(study, Known(), target_name=results.metric)
    [bars] = figure.data
    values = [shares[key] for key in bars.y]  # not scaled to a sum of 1
    bars.update(x=values, text=[f"{value:.0%}" for value in values],
                hovertemplate="%{y}: %{text}<extra></extra>")
    figure.update_xaxes(title=f"share of the variance of {results.metric}", tickformat=".0%")
    figure.update_yaxes(title=None)
    rest = results.shares.get("interactions")
    others = f"; interactions of keys have {rest:.0%}" if rest is not None else ""
    return Plot("importance", figure, f"How much each key changes {results.metric}",
                f"Each key's share of the variance of {results.metric}, computed from "
                f"{results.weighed} points{others}.")


def _lines(results: SweepResults) -> Plot | None:
    from optuna.visualization import plot_parallel_coordinate
    from plotly.colors import sample_colorscale

    keys = _varied(results)
    outcomes = [one for one in _part(results, MOST_LINES) if all(key in one.point for key in keys)]
    if not keys or len(outcomes) < 2:
        return None
    outcomes.sort(key=_rank(results), reverse=True)  # the best last, over the others
    study = as_study(single(results), outcomes)
    figure = plot_parallel_coordinate(study, keys, target_name=results.metric)
    figure.update_layout(plot_bgcolor=None, width=LEAST_OF_AXIS * (len(keys) + 1))
    figure.update_annotations(font_color=None)
    *lines, scale = figure.data
    scale.marker.update(colorscale=COLOURS, reversescale=False)
    values = [one.value or 0.0 for one in outcomes]
    low, width = min(values), (max(values) - min(values)) or 1.0
    colours = sample_colorscale(COLOURS, [(value - low) / width for value in values])
    for line, one, colour in zip(lines, outcomes, colours, strict=True):
        line.line.color = colour
        line.update(
            text=[f"{_name(one)}<br>{html.escape(f'{key}: {value}')}"
                  for key, value in line.customdata],
            customdata=[one.run.signature] * len(line.x), meta=one.run.signature,
            hovertemplate=HOVER,
        )
    return Plot("points", figure, f"Settings of all runs, coloured by {results.metric}",
                _caption("Each line is a run.", results, MOST_LINES))


def _contour(results: SweepResults) -> Plot | None:
    from optuna.visualization import plot_contour

    keys = sorted(map_keys(results, results.shares))  # Optuna sorts them
    outcomes = [one for one in _part(results, MOST_OF_MAP) if all(key in one.point for key in keys)]
    if len(keys) < 2 or len(outcomes) < LEAST_OF_MAP:
        return None
    if any(len({one.point[key] for one in outcomes}) < 2 for key in keys):
        return None
    study = as_study(single(results), outcomes)
    figure = plot_contour(study, keys, target_name=results.metric)
    figure.data[0].update(colorscale=COLOURS, reversescale=False)
    _mark(figure.data[1], outcomes, results)
    text = f"{results.metric} at the dots (runs), interpolated between them"
    others = "; other keys differ, too" if len(_varied(results)) > 2 else ""
    return Plot("map", figure, f"{results.metric} over {keys[0]} and {keys[1]}",
                _caption(f"{text}{others}.", results, MOST_OF_MAP))


def _slices(results: SweepResults) -> Plot | None:
    from optuna.visualization import plot_slice

    keys = _varied(results)
    if not keys:
        return None
    outcomes = _part(results, MOST_DOTS)
    number = {one.run.signature: number for number, one in enumerate(results.outcomes)}
    figure = plot_slice(as_study(single(results), outcomes), keys, target_name=results.metric)
    for dots in figure.data:
        runs = [outcomes[place] for place in dots.marker.color]
        _mark(dots, runs, results)
        dots.marker.update(color=[number[one.run.signature] for one in runs], colorscale=COLOURS)
    figure.update_layout(width=LEAST_OF_SLICE * len(keys))
    text = f"Each dot is a run, brighter the later its trial{_most(results)}."
    return Plot("slices", figure, f"{results.metric} by each key",
                _caption(text, results, MOST_DOTS))


def _front(results: SweepResults, objective: str) -> Plot | None:
    from optuna.visualization import plot_pareto_front

    pair = SweepResults(
        results.name, results.folder, results.metric, results.mode,
        [one for one in results.outcomes if one.value is not None and objective in one.numbers],
        {objective: results.objectives[objective]}, results.search,
    )
    if len(pair.outcomes) < 2:
        return None
    is_max = results.objectives[objective] == "max"

    def other(one: Outcome) -> float:
        return -one.numbers[objective] if is_max else one.numbers[objective]

    outcomes = _part(pair, MOST_DOTS, other=other)
    figure = plot_pareto_front(as_study(pair, outcomes), target_names=[results.metric, objective])
    for dots, name in zip(figure.data, ("beaten", "unbeaten"), strict=True):
        runs = [outcomes[place] for place in dots.marker.color]
        dots.update(marker=None, name=name, showlegend=True)  # coloured by number, on two scales
        _mark(dots, runs, results)
    text = ("Each dot is a run; no other run is at least as good as an unbeaten one in both, and "
            "better in one.")
    return Plot(f"front-{objective}", figure, f"{results.metric} against {objective}",
                _caption(text, pair, MOST_DOTS))


def _timeline(results: SweepResults) -> Plot | None:
    from optuna.visualization import plot_timeline

    begun = [one for one in results.outcomes if one.state in STATES]
    outcomes = begun[-MOST_DOTS:]
    if not outcomes:
        return None
    figure = plot_timeline(as_study(single(results), outcomes))
    places = [n for n, one in enumerate(results.outcomes) if one.state in STATES][-len(outcomes):]
    states = {name: state for state, name in STATES.items() if state != "unreadable"}
    for bars in figure.data:
        runs = [outcomes[place] for place in bars.y]
        bars.update(text=[f"{_name(one)}<br>{one.state}" for one in runs], hovertemplate=HOVER,
                    customdata=[one.run.signature for one in runs], name=states[bars.name],
                    y=[places[place] for place in bars.y], marker_color=LINES[BARS[bars.name]])
    figure.update_xaxes(title=None)
    figure.update_yaxes(title="trial, in the order of the sweep",
                        range=[places[-1] + 0.6, places[0] - 0.6])
    cut = f" The last {len(outcomes)} of {len(begun)} runs." if len(begun) > len(outcomes) else ""
    return Plot("timeline", figure, "When the runs ran",
                f"Each bar is the last attempt of a run.{cut}")


# --- parts ---


def _complete(results: SweepResults) -> list[Outcome]:
    return [one for one in results.outcomes if one.value is not None and one.state == "complete"]


def _rank(results: SweepResults) -> Callable[[Outcome], float]:
    """Return a key that sorts complete runs, the best first."""
    sign = -1.0 if results.mode == "max" else 1.0
    return lambda one: sign * (one.value or 0.0)


def _part(
    results: SweepResults, most: int, *, other: Callable[[Outcome], float] | None = None,
    also: Sequence[Outcome] = (),
) -> list[Outcome]:
    """Return the complete runs in the sweep's order: all, or of more than `most` the best and a
    sample of the others. other: what else to be the best in. also: further runs to keep."""
    complete = _complete(results)
    if len(complete) <= most:
        return complete
    orders = [key for key in (_rank(results), other) if key is not None]
    share = most // 2 // len(orders)
    kept = {id(one) for key in orders for one in sorted(complete, key=key)[:share]}
    rest = [one for one in complete if id(one) not in kept]
    kept |= {id(one) for one in random.Random(0).sample(rest, most - len(kept))}
    kept |= {id(one) for one in also}
    return [one for one in complete if id(one) in kept]


def _records(results: SweepResults) -> list[Outcome]:
    """Return the complete runs that were better than all before them."""
    rank, found = _rank(results), list[Outcome]()
    for one in _complete(results):
        if not found or rank(one) < rank(found[-1]):
            found.append(one)
    return found


def _varied(results: SweepResults) -> list[str]:
    """Return the keys in which complete runs differ, the most important first, at most six."""
    outcomes = _complete(results)
    keys = [key for key in results.keys
            if len({str(one.point[key]) for one in outcomes if key in one.point}) > 1]
    return sorted(keys, key=lambda key: -results.shares.get(key, 0.0))[:MOST_KEYS]


def _most(results: SweepResults) -> str:
    return f"; the {MOST_KEYS} keys that matter most" if len(results.keys) > MOST_KEYS else ""


def _caption(text: str, results: SweepResults, most: int) -> str:
    count = len(_complete(results))
    if count <= most:
        return text
    return f"{text} Drawn are {most} of {count} complete runs: the best and a sample."


def _name(one: Outcome) -> str:
    return html.escape(trial_label(one))  # plotly reads some HTML


def _mark(dots: Any, outcomes: Sequence[Outcome], results: SweepResults) -> None:
    """Give each dot of a trace its run's signature, and its name on hovering."""
    dots.update(
        customdata=[one.run.signature for one in outcomes], hoverinfo=None, hovertemplate=HOVER,
        text=[f"{_name(one)}<br>{html.escape(results.metric)}: {one.value:.4f}"
              for one in outcomes],
    )
