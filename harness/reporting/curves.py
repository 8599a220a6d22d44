"""Runs while they train: one panel for each number of their epochs, one line for each run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.base.mappings import numeric_leaves
from harness.reporting.drawing import LINES, look, new_figure
from harness.runs.run import Run, epoch_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LINES = len(LINES)
"""More runs are not told apart."""
ACROSS = 4
"""Panels in a row."""
PANEL = 2.3, 1.7
"""Inches."""
LEGEND_LINE = 0.22
"""Inches of a run in the legend."""


@dataclass(frozen=True)
class Shown:
    """A run under the name by which a reader knows it."""

    label: str
    run: Run


def epochs_of(run: Run, stage: str) -> list[dict[str, float]]:
    """Return the numbers of a stage's epochs, by dotted key."""
    return [numeric_leaves(line) for line in epoch_lines(run) if line.get("stage") == stage]


def stages_of(shown: Sequence[Shown]) -> list[str]:
    """Return the stages that any of the runs has logged, in order."""
    return list(dict.fromkeys(
        line["stage"] for one in shown for line in one.run.metrics() if "stage" in line
    ))


def loss_curves(shown: Sequence[Shown], stage: str) -> "Figure | None":
    """Draw the trained loss of a stage and each of its terms; None when nothing was logged."""
    logs = [epochs_of(one.run, stage) for one in shown]
    keys = dict.fromkeys(key for log in logs for line in log for key in line)
    return _panels(shown, logs, [k for k in keys if k == "loss" or k.startswith("losses.")])


def course_curves(shown: Sequence[Shown], stage: str, metrics: Sequence[str]) -> "Figure | None":
    """Draw what else a stage's epochs tell: some metrics, learning rate, throughput, memory."""
    logs = [epochs_of(one.run, stage) for one in shown]
    there = {key for log in logs for line in log for key in line}
    wanted = (*metrics, "lr", "images_per_s", "memory_gb")
    return _panels(shown, logs, [key for key in wanted if key in there])


def _panels(
    shown: Sequence[Shown], logs: Sequence[list[dict[str, float]]], keys: Sequence[str]
) -> "Figure | None":
    """Draw one panel for each key; `logs` are the numbers of the runs' epochs."""
    if not keys:
        return None
    rows = -(-len(keys) // ACROSS)
    width, height = PANEL
    figure = new_figure(ACROSS * width, rows * height + LEGEND_LINE * len(shown) + 0.2)
    with look():
        grid = figure.subplots(rows, ACROSS, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(keys):
                axes.axis("off")
                continue
            _draw(axes, keys[place], shown, logs)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=1)
    return figure


def _draw(
    axes: Any, key: str, shown: Sequence[Shown], logs: Sequence[list[dict[str, float]]]
) -> None:
    for colour, one, log in zip(LINES, shown, logs, strict=False):
        points = [(line["epoch"], line[key]) for line in log if key in line]
        axes.plot(
            [epoch for epoch, _ in points], [value for _, value in points], color=colour,
            label=one.label, linewidth=1.2, marker="." if len(points) < 3 else None,
        )
    axes.set_title(key.removeprefix("losses."), fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
