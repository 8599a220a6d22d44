"""A sweep's points against its metric: what mattered, every point as a line, two keys as a map."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.reporting.drawing import LINES, look, new_figure
from harness.sweeps.outcomes import Ranked, SweepResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "viridis"
SEEN = 0.35, 0.95
"""The part of those colours that lines have: they are seen on white and on black."""
WIDE_RANGE = 20.0
"""A positive key whose largest value is so many times its smallest is drawn on a log scale."""
LEAST_OF_MAP = 4
"""Fewer points span no map."""


def importance_bars(shares: Mapping[str, float], metric: str) -> "Figure":
    """Draw each key's share in the metric's variance."""
    figure = new_figure(7.0, 0.6 + 0.3 * len(shares))
    with look():
        axes = figure.subplots()
        keys = list(shares)[::-1]
        bars = axes.barh(keys, [shares[key] for key in keys], color=LINES[0], height=0.6)
        axes.bar_label(bars, [f"{shares[key]:.0%}" for key in keys], padding=3)
        axes.set_xlim(0, 1.1)
        axes.set_xlabel(f"share in the variance of {metric}")
    return figure


def parallel_coordinates(sweeping: SweepResults) -> "Figure | None":
    """Draw every complete point as a line over the searched keys, coloured by its metric.

    None of fewer than two points or without a searched key.
    """
    ranked = sweeping.ranked()
    if len(ranked) < 2 or not sweeping.keys:
        return None
    scales = {key: _Scale([one.point.get(key) for one in ranked]) for key in sweeping.keys}
    scales[sweeping.metric] = _Scale([one.mean for one in ranked])
    figure = new_figure(max(7.0, 1.5 * len(scales)), 3.4)
    with look():
        import matplotlib

        axes = figure.subplots()
        colours = matplotlib.colormaps[COLOURS]
        for one in _worst_first(sweeping, ranked):
            values = [one.point.get(key) for key in sweeping.keys] + [one.mean]
            heights = [
                scale.place(value) for scale, value in zip(scales.values(), values, strict=True)
            ]
            low, high = SEEN
            colour = colours(low + (high - low) * heights[-1])
            axes.plot(range(len(heights)), heights, color=colour, linewidth=1.3, alpha=0.85)
        _label(axes, scales)
    return figure


def contour(sweeping: SweepResults, keys: Sequence[str]) -> "Figure | None":
    """Draw the metric over two numeric keys: the points, and between them what lies on triangles.

    None when fewer than four points have both, or when they lie on a line.
    """
    ranked = [
        one for one in sweeping.ranked() if all(_is_number(one.point.get(key)) for key in keys)
    ]
    if len(keys) < 2 or len(ranked) < LEAST_OF_MAP:
        return None
    names, (x, y) = [], ([float(one.point[key]) for one in ranked] for key in keys)
    for key, axis in zip(keys, (x, y), strict=True):
        is_log = _is_wide(axis)
        names.append(f"log10 {key}" if is_log else key)
        axis[:] = [math.log10(value) for value in axis] if is_log else axis
    return _map(x, y, [one.mean for one in ranked], names, sweeping.metric)


def _map(
    x: list[float], y: list[float], z: list[float], names: Sequence[str], metric: str
) -> "Figure | None":
    figure = new_figure(5.0, 3.6)
    with look():
        axes = figure.subplots()
        axes.grid(visible=False)
        try:
            drawn = axes.tricontourf(x, y, z, levels=12, cmap=COLOURS, alpha=0.8)
        except (ValueError, RuntimeError):  # all on one line
            return None
        # whole where they lie on the map's edge, and over its axes
        axes.scatter(x, y, c=z, cmap=COLOURS, edgecolors="white", linewidths=0.8, s=28,
                     vmin=min(z), vmax=max(z), clip_on=False, zorder=3)
        figure.colorbar(drawn, ax=axes, label=metric)
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1])
    return figure


def map_keys(sweeping: SweepResults, shares: Mapping[str, float]) -> list[str]:
    """Return the two numeric keys to draw a map over, those that mattered most first."""
    ranked = sweeping.ranked()
    numeric = [
        key for key in sweeping.keys
        if len({one.point.get(key) for one in ranked if _is_number(one.point.get(key))}) > 1
    ]
    return sorted(numeric, key=lambda key: -shares.get(key, 0.0))[:2]


class _Scale:
    """One axis of parallel coordinates: values of a key to heights 0..1."""

    def __init__(self, values: Sequence[Any]) -> None:
        there = [value for value in values if value is not None]
        self.is_numeric = bool(there) and all(map(_is_number, there))
        self.is_log = self.is_numeric and _is_wide(there)
        kinds = {json.dumps(value): value for value in there}
        if self.is_numeric:
            self.ticks: list[Any] = [min(there), max(there)]
        else:
            self.ticks = [kinds[name] for name in sorted(kinds)]

    def place(self, value: Any) -> float:
        """Return a value's height; NaN of a key that a point does not have."""
        if value is None:
            return math.nan
        if not self.is_numeric:
            return self.ticks.index(value) / max(1, len(self.ticks) - 1)
        low, high, at = (
            math.log(v) if self.is_log else float(v) for v in (*self.ticks, value)
        )
        return 0.5 if high == low else (at - low) / (high - low)


def _label(axes: Any, scales: Mapping[str, _Scale]) -> None:
    """Put each axis's name, and its least and largest value or its kinds, beside it."""
    for place, scale in enumerate(scales.values()):
        axes.axvline(place, color="#8a94a0", linewidth=0.8)
        for value in dict.fromkeys(map(json.dumps, scale.ticks)):
            value = json.loads(value)
            told = f"{value:.4g}" if isinstance(value, float) else str(value)
            axes.annotate(told, (place, scale.place(value)), xytext=(4, 0), fontsize=8,
                          textcoords="offset points", va="center")
    axes.set_xticks(range(len(scales)), list(scales), rotation=15)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(-0.15, len(scales) - 0.5)


def _worst_first(sweeping: SweepResults, ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return points so that the best is drawn over the others."""
    return sorted(ranked, key=lambda one: one.mean, reverse=sweeping.mode == "min")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= WIDE_RANGE
