"""Figures of verification: the ROC curve, and histograms of pairs' similarities."""

from typing import TYPE_CHECKING

import numpy as np

from harness.reporting.drawing import INK, LINES, look, new_figure
from svll.evaluation.engine.feature_rows import Floats
from svll.evaluation.engine.pair_histogram import EDGES
from svll.evaluation.verification import FALSE_RATES, Verification

if TYPE_CHECKING:  # matplotlib: a second
    from matplotlib.figure import Figure

BARS = 100  # most bars of a histogram


def draw_roc(pairs: Verification) -> "Figure":
    """Draw the ROC curve over a logarithmic FPR.

    Steps: at each FPR the largest TPR reached up to it, as in `tpr_at`. The height at the left end
    is the TPR at FPR 0, which has no place on the axis.
    """
    left = min(10.0 ** np.floor(np.log10(1.0 / pairs.impostor_pairs)), 0.1)
    rates = np.geomspace(left, 1.0, 200)
    figure = new_figure(7.0, 3.4)
    with look():
        axes = figure.subplots()
        fpr = np.maximum(pairs.roc.fpr, left)
        axes.step(fpr, pairs.roc.tpr, where="post", label="all pairs")
        axes.plot(rates, rates, linestyle=":", color=INK, linewidth=1.0, label="by chance")
        if pairs.eer > 0.0:
            axes.plot(pairs.eer, 1.0 - pairs.eer, "o", color=LINES[1], label="equal error rate")
        axes.set(xscale="log", xlim=(left, 1.0), ylim=(0.0, 1.02),
                 xlabel="impostor pairs accepted (FPR)", ylabel="genuine pairs accepted (TPR)")
        axes.legend(loc="best")
    return figure


def draw_similarities(pairs: Verification) -> "Figure":
    """Draw the histograms of genuine and impostor pairs' similarities, as shares of each."""
    (genuine, impostor), edges = bars(pairs)
    figure = new_figure(7.0, 3.0)
    with look():
        axes = figure.subplots()
        for values, name, colour, line in (
            (impostor, "impostor pairs", LINES[1], "--"), (genuine, "genuine pairs", LINES[0], "-"),
        ):
            axes.stairs(values, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(values, edges, color=colour, linestyle=line, label=name, linewidth=1.3)
        axes.axvline(pairs.eer_threshold, color=INK, linestyle=":", linewidth=1.0,
                     label="EER threshold")
        axes.set(xlabel="cosine similarity", ylabel="share of the pairs", ylim=(0.0, None))
        axes.legend(loc="best")
    return figure


def bars(pairs: Verification) -> tuple[Floats, Floats]:
    """Return the shares [2, b] of genuine and impostor pairs in b bars, and their edges [b + 1].

    Each bar joins the same number of neighbouring bins; the bars cover all pairs.
    """
    counts = np.stack([pairs.genuine, pairs.impostor])
    filled = np.flatnonzero(counts.sum(axis=0))
    first, last = int(filled[0]), int(filled[-1]) + 1
    width = -(-(last - first) // BARS)
    starts = np.arange(first, last, width)
    last = min(int(starts[-1]) + width, counts.shape[1])
    shares = np.add.reduceat(counts[:, :last], starts, axis=1) / counts.sum(axis=1, keepdims=True)
    return shares, EDGES[np.r_[starts, last]]


def in_words(pairs: Verification) -> str:
    """Return AUC, EER and the TPR at fixed FPRs, or why they cannot be measured."""
    parts = [f"AUC {pairs.auc:.4f}", f"EER {pairs.eer:.4f} at similarity {pairs.eer_threshold:.4f}"]
    for rate in FALSE_RATES:
        reached = pairs.tpr_at(rate)
        known = f"TPR {reached:.4f} at FPR {rate:g}" if reached is not None else ""
        parts.append(known or pairs.shortage(rate) or "")
    return "; ".join(parts)
