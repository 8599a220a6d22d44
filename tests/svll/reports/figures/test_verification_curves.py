"""The curves against plain counts of the pairs' similarities."""

import warnings

import numpy as np
import pytest

from svll.evaluation.engine.pair_histogram import EDGES
from svll.evaluation.feature_files.scores import verify_source
from svll.evaluation.verification import Verification, verify
from svll.reports.figures.verification_curves import (
    BARS,
    bars,
    draw_roc,
    draw_similarities,
    in_words,
)
from tests.svll.evaluation.pairs import pair_of
from tests.svll.reports.worlds import world


def similarities() -> tuple[np.ndarray, np.ndarray, Verification]:
    """Similarities of genuine and impostor pairs, and the verification of the same pairs."""
    source = world("all_gallery")
    query, gallery = source.query, source.gallery
    a, b = (x.features / np.linalg.norm(x.features, axis=1, keepdims=True)
            for x in (query, gallery))
    alike = a.astype(float) @ b.T.astype(float)
    here = (query.identities != -1)[:, None] & (gallery.identities != -1)
    same = query.identities[:, None] == gallery.identities
    return alike[here & same], alike[here & ~same], verify_source(source)


def test_bars_hold_the_shares_of_the_pairs_between_their_edges() -> None:
    genuine, impostor, found = similarities()
    shares, edges = bars(found)
    assert shares.shape == (2, len(edges) - 1)
    assert BARS // 2 < shares.shape[1] <= BARS
    assert np.isin(edges, EDGES).all()
    for values, share in ((genuine, shares[0]), (impostor, shares[1])):
        assert share.sum() == pytest.approx(1.0)
        # a pair that is as near an edge as float32 tells may lie in either bar
        assert share == pytest.approx(np.histogram(values, edges)[0] / len(values), abs=0.005)


def test_bars_reach_to_similarity_1_where_bins_do_not_divide_evenly() -> None:
    counts = np.zeros((2, len(EDGES) - 1), np.int64)
    counts[0, -1], counts[1, 0], counts[1, 5] = 3, 1, 1
    shares, edges = bars(Verification(*counts))
    assert (shares[0, -1], shares[1, 0]) == (1.0, 1.0)
    assert (edges[0], edges[-1]) == (EDGES[0], EDGES[-1])
    assert len(edges) - 1 <= BARS


def test_the_drawn_curve_is_the_largest_tpr_at_each_fpr() -> None:
    genuine, impostor, found = similarities()
    axes = draw_roc(found).axes[0]
    drawn = axes.lines[0]
    fpr, tpr = np.asarray(drawn.get_xdata()), np.asarray(drawn.get_ydata())
    assert drawn.get_drawstyle() == "steps-post"
    assert axes.get_xscale() == "log"
    for rate in (0.002, 0.01, 0.1, 0.5):
        height = tpr[np.searchsorted(fpr, rate, "right") - 1]
        accepted = max(
            ((genuine >= edge).mean() for edge in EDGES if (impostor >= edge).mean() <= rate),
        )
        assert height == pytest.approx(accepted, abs=0.01)
        assert height == found.tpr_at(rate)


def test_the_caption_has_auc_eer_and_what_cannot_be_measured() -> None:
    genuine, impostor, found = similarities()
    words = in_words(found)
    auc = (genuine[:, None] > impostor).mean()
    assert float(words.split()[1].rstrip(";")) == pytest.approx(auc, abs=2e-3)
    assert f"EER {found.eer:.4f} at similarity" in words
    assert f"TPR {found.tpr_at(0.1):.4f} at FPR 0.1;" in words
    assert "FPR 0.0001 needs at least 10,000 impostor pairs, there are 1," in words


def test_a_perfect_model_and_a_single_impostor_pair_are_drawn_without_warning() -> None:
    found = verify(pair_of(np.eye(2)[:1], np.eye(2), [1], [1, 2], [0], [1, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (draw_roc(found), draw_similarities(found)):
            figure.canvas.draw()
    assert found.impostor_pairs == 1
