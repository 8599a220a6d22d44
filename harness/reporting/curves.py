"""Curves of runs while they train: one panel per logged number, one line per run."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.base.mappings import numeric_leaves
from harness.reporting.drawing import LINES, look, new_figure
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


def stages_of(runs: Sequence[LabelledRun]) -> list[str]:
    """Return the stages that any of the runs has logged, in order."""
    lines = (line for one in runs for line in one.run.metrics())
    return list(dict.fromkeys(line["stage"] for line in lines if "stage" in line))


def loss_curves(runs: Sequence[LabelledRun], stage: str) -> "Figure | None":
    """Draw the trained loss of a stage and each of its terms; None when nothing was logged."""
    return _panels(runs, stage, lambda logged: [
        key for key in logged if key == "loss" or key.startswith("losses.")
    ])


def metric_curves(
    runs: Sequence[LabelledRun], stage: str, metrics: Sequence[str]
) -> "Figure | None":
    """Draw some metrics, learning rate, throughput and memory; None when nothing was logged."""
    wanted = (*metrics, "lr", "images_per_s", "memory_gb")
    return _panels(runs, stage, lambda logged: [key for key in wanted if key in logged])


def _panels(
    runs: Sequence[LabelledRun], stage: str, select: Callable[[Mapping[str, None]], list[str]]
) -> "Figure | None":
    """Draw a panel for each of the keys that `select` takes from those logged at epochs' ends."""
    logs = [[numeric_leaves(line) for line in epoch_lines(one.run) if line.get("stage") == stage]
            for one in runs]
    keys = select(dict.fromkeys(key for log in logs for line in log for key in line))
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
