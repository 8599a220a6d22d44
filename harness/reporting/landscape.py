"""A sweep's points and its metric: importance of keys, parallel coordinates, a map of two keys."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.reporting.drawing import LINES, look, new_figure
from harness.sweeps.sweep_results import SweepResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "viridis"
VISIBLE = 0.35, 0.95  # part of these colours that lines take: visible on white and on black
MOST_LINES = 200
"""Lines in parallel coordinates; more are a solid block."""
LEAST_OF_MAP = 4  # fewer points span no map


def importance_bars(shares: Mapping[str, float], metric: str) -> "Figure":
    """Draw each key's share of the metric's variance."""
    figure = new_figure(7.0, 0.6 + 0.3 * len(shares))
    keys, values = list(shares)[::-1], list(shares.values())[::-1]
    with look():
        axes = figure.subplots()
        bars = axes.barh(keys, values, color=LINES[0], height=0.6)
        axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=3)
        axes.set(xlim=(0, 1.1), xlabel=f"share of the variance of {metric}")
    return figure


def parallel_coordinates(results: SweepResults) -> "Figure | None":
    """Draw points as lines over the searched keys; of more than 200 the best and a sample of the
    others. None for under two points or no key."""
    ranked = results.ranked()
    if len(ranked) < 2 or not results.keys:
        return None
    best, rest = ranked[: MOST_LINES // 2], ranked[MOST_LINES // 2 :]
    best += random.Random(0).sample(rest, min(len(rest), MOST_LINES - len(best)))
    # the best last, over the others
    ranked = sorted(best, key=lambda one: one.mean, reverse=results.mode == "min")
    columns = {key: [one.point.get(key) for one in ranked] for key in results.keys}
    columns[results.metric] = [one.mean for one in ranked]
    is_log = {key: one.is_log for key, one in results.dimensions.items()}
    scales = {key: _Scale(values, is_log.get(key, False)) for key, values in columns.items()}
    figure = new_figure(max(7.0, 1.5 * len(scales)), 3.4)
    with look():
        import matplotlib

        axes = figure.subplots()
        colours, (low, high) = matplotlib.colormaps[COLOURS], VISIBLE
        heights = (map(scales[key].height, values) for key, values in columns.items())
        for line in zip(*heights, strict=True):
            colour = colours(low + (high - low) * line[-1])
            axes.plot(range(len(line)), line, color=colour, linewidth=1.3, alpha=0.85)
        _label(axes, scales)
    return figure


def contour(results: SweepResults, keys: Sequence[str]) -> "Figure | None":
    """Draw the metric over two numeric keys; None for under four points or points on a line."""
    ranked = [
        one for one in results.ranked() if all(_is_number(one.point.get(key)) for key in keys)
    ]
    if len(keys) < 2 or len(ranked) < LEAST_OF_MAP:
        return None
    names, places, means = [], [], [one.mean for one in ranked]
    for key in keys:
        values = [float(one.point[key]) for one in ranked]
        is_log = _is_log(values, results.dimensions[key].is_log)
        names.append(f"log10 {key}" if is_log else key)
        places.append([math.log10(value) for value in values] if is_log else values)
    figure, (x, y) = new_figure(5.0, 3.6), places
    with look():
        axes = figure.subplots()
        axes.grid(visible=False)
        try:
            surface = axes.tricontourf(x, y, means, levels=12, cmap=COLOURS, alpha=0.8)
        except (ValueError, RuntimeError):  # all on one line
            return None
        # over the axes, and not clipped at the map's edge
        axes.scatter(x, y, c=means, cmap=COLOURS, edgecolors="white", linewidths=0.8, s=28,
                     vmin=min(means), vmax=max(means), clip_on=False, zorder=3,
                     rasterized=len(ranked) > MOST_LINES)
        figure.colorbar(surface, ax=axes, label=results.metric)
        axes.set(xlabel=names[0], ylabel=names[1])
    return figure


def map_keys(results: SweepResults, shares: Mapping[str, float]) -> list[str]:
    """Return the two most important numeric keys, for `contour`."""
    points = [one.point for one in results.ranked()]
    numeric = [key for key in results.keys
               if len({point[key] for point in points if _is_number(point.get(key))}) > 1]
    return sorted(numeric, key=lambda key: -shares.get(key, 0.0))[:2]


class _Scale:
    """One axis of parallel coordinates: maps a key's values to heights 0..1."""

    def __init__(self, values: Sequence[Any], is_log: bool) -> None:
        known = [value for value in values if value is not None]
        self.is_numeric = bool(known) and all(map(_is_number, known))
        self.is_log = self.is_numeric and _is_log(known, is_log)
        if self.is_numeric:
            self.ticks: list[Any] = sorted({min(known), max(known)})
        else:
            kinds = {json.dumps(value): value for value in known}
            self.ticks = [kinds[text] for text in sorted(kinds)]

    def height(self, value: Any) -> float:
        """Return a value's height; NaN for None, a key that a point does not have."""
        if value is None:
            return math.nan
        if not self.is_numeric:
            return self.ticks.index(value) / max(1, len(self.ticks) - 1)
        ends = self.ticks[0], self.ticks[-1], value
        low, high, at = (math.log(v) if self.is_log else float(v) for v in ends)
        return 0.5 if high == low else (at - low) / (high - low)


def _label(axes: Any, scales: Mapping[str, _Scale]) -> None:
    """Name each axis, and label its smallest and largest value, or its categories."""
    for place, scale in enumerate(scales.values()):
        axes.axvline(place, color="#8a94a0", linewidth=0.8)
        for value in scale.ticks:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            axes.annotate(text, (place, scale.height(value)), xytext=(4, 0), fontsize=8,
                          textcoords="offset points", va="center")
    axes.set_xticks(range(len(scales)), list(scales), rotation=15)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set(yticks=[], xlim=(-0.15, len(scales) - 0.5))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_log(values: Sequence[float], is_declared: bool) -> bool:
    """Return whether an axis is a log axis: that of a search on a log scale, of positive values
    (an earlier form of the sweep file may have declared others)."""
    return is_declared and min(values) > 0
