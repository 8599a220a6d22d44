"""Curves of runs while they train: one panel per logged number, one line per run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.base.mappings import numeric_leaves
from harness.reporting import page
from harness.reporting.drawing import LINES, look, new_figure
from harness.reporting.plots import plain, plot
from harness.runs.run import Run, epoch_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LINES = len(LINES)  # a panel has no more lines: each has its own colour
ACROSS = 4  # panels in a row
PANEL = 2.3, 1.7  # width and height in inches
LEGEND_LINE = 0.22  # height of a run's line in the legend, in inches


class LabelledRun(NamedTuple):
    """A run and its name in tables and legends."""

    label: str
    run: Run


class Logged(NamedTuple):
    """A run and the numbers, by dotted key, that it logged at the ends of epochs."""

    label: str
    signature: str
    lines: Sequence[tuple[str, Mapping[str, float]]]
    """Of each epoch: the stage, and the numbers."""

    def of(self, stage: str) -> list[Mapping[str, float]]:
        return [numbers for name, numbers in self.lines if name == stage]


Select = Callable[[Mapping[str, None]], list[str]]


def logged(one: LabelledRun) -> Logged:
    """Read what a run has logged. Raises UserError for a damaged log."""
    lines = [(line.get("stage", ""), numeric_leaves(line)) for line in epoch_lines(one.run)]
    return Logged(one.label, one.run.signature, lines)


def stages_of(runs: Sequence[Logged]) -> list[str]:
    """Return the stages that any of the runs has logged, in order."""
    return list(dict.fromkeys(stage for one in runs for stage, _ in one.lines))


def losses(keys: Mapping[str, None]) -> list[str]:
    """Return the trained loss and each of its terms."""
    return [key for key in keys if key == "loss" or key.startswith("losses.")]


def metrics_of(names: Sequence[str]) -> Select:
    """Return what selects some metrics, learning rate, throughput and memory."""
    wanted = (*names, "lr", "images_per_s", "memory_gb")
    return lambda keys: [key for key in wanted if key in keys]


def _keys(runs: Sequence[Logged], stage: str, select: Select) -> list[str]:
    return select(dict.fromkeys(key for one in runs for line in one.of(stage) for key in line))


def curve_plots(runs: Sequence[Logged], stage: str, select: Select, folder: Path) -> page.Html:
    """Return a plot for each of the selected keys, for a page in `folder`; "" for none."""
    import plotly.graph_objects as go

    keys = _keys(runs, stage, select)
    panels = []
    for key in keys:
        traces = []
        for colour, one in zip(LINES, runs, strict=False):
            lines = [line for line in one.of(stage) if key in line and "epoch" in line]
            traces.append(go.Scatter(
                x=[line["epoch"] for line in lines], y=[line[key] for line in lines],
                name=plain(one.label), meta=one.signature, line={"color": colour, "width": 1.8},
                mode="lines+markers" if len(lines) < 3 else "lines",
                hovertemplate="%{fullData.name}<br>epoch %{x}: %{y:.4~g}<extra></extra>",
            ))
        name = plain(key.removeprefix("losses."))
        layout = {"title": {"text": name, "font": {"size": 13}}, "xaxis": {"title": "epoch"}}
        panels.append(plot(go.Figure(traces, layout), f"{stage}-{key}", None, folder))
    return page.element("div", *panels, class_="curves") if panels else page.Html("")


def draw_curves(runs: Sequence[Logged], stage: str, select: Select) -> "Figure | None":
    """Draw a panel for each of the selected keys; None when nothing was logged."""
    keys, logs = _keys(runs, stage, select), [one.of(stage) for one in runs]
    if not keys:
        return None
    rows, (width, height) = -(-len(keys) // ACROSS), PANEL
    figure = new_figure(ACROSS * width, rows * height + LEGEND_LINE * len(runs) + 0.2)
    with look():
        panels = figure.subplots(rows, ACROSS, squeeze=False).ravel()
        for axes, key in zip(panels, keys, strict=False):
            for colour, one, log in zip(LINES, runs, logs, strict=False):
                lines = [line for line in log if key in line and "epoch" in line]
                axes.plot(
                    [line["epoch"] for line in lines], [line[key] for line in lines], color=colour,
                    label=one.label, linewidth=1.2, marker="." if len(lines) < 3 else None,
                )
            axes.set_title(key.removeprefix("losses."), fontsize=9)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_xlabel("epoch")
        for axes in panels[len(keys):]:
            axes.axis("off")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=1)
    return figure
