"""Verification: how well one similarity threshold separates genuine from impostor pairs.

A pair is one query and one gallery image; it is accepted if its cosine similarity is at least the
threshold. Genuine pairs share their identity, impostor pairs do not. TPR is the share of genuine
pairs accepted, FPR that of impostor pairs. Thresholds are cosine similarities s; the Euclidean
distance of unit rows is then sqrt(2 - 2 s).

Pairs are counted in bins (see `engine.pair_histogram`), so every rate is exact, for thresholds that
are 1/2048 apart: 0.00049 in similarity, and about 0.00049 / d in distance at distance d. Counts of
several galleries, shards or ranks can be added.

Letters: Q queries, G gallery images, D width, T = 4,098 thresholds, k points of a curve.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.base.errors import UserError
from svll.evaluation.engine.feature_rows import JUNK, Floats, Integers
from svll.evaluation.engine.pair_histogram import BINS, EDGES, SCALE, pair_counts
from svll.evaluation.engine.products import Products
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.pair import Pair, check_pair, why_no_match
from svll.evaluation.protocols import protocol_pair

FALSE_RATES = (1e-1, 1e-2, 1e-3, 1e-4)  # FPRs at which TPR is reported


@dataclass(frozen=True)
class Rates:
    """The rates of one threshold."""

    threshold: float
    """The lowest cosine similarity of accepted pairs."""
    distance: float
    """The Euclidean distance of unit rows with this similarity."""
    tpr: float
    fpr: float
    precision: float | None
    """Share of genuine pairs among those accepted; None if none is accepted."""
    accuracy: float
    """Share of all pairs judged correctly: near 1 for any high threshold, as most are impostors."""
    balanced_accuracy: float
    """(TPR + 1 - FPR) / 2."""


@dataclass(frozen=True)
class Roc:
    """The ROC curve, from accepting nothing to accepting all: [k] each."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


@dataclass(frozen=True, eq=False)
class Verification:
    """Counts of pairs [BINS] by similarity, bin b from `pair_histogram.EDGES[b]` on, and rates.

    All rates raise UserError without genuine or impostor pairs.
    """

    genuine: Integers
    impostor: Integers

    def __add__(self, other: "Verification") -> "Verification":
        """Return the counts of two sets of pairs together."""
        return Verification(self.genuine + other.genuine, self.impostor + other.impostor)

    @property
    def genuine_pairs(self) -> int:
        return int(self.genuine.sum())

    @property
    def impostor_pairs(self) -> int:
        return int(self.impostor.sum())

    @cached_property
    def _tpr(self) -> Floats:
        """[T], for the thresholds EDGES, ascending."""
        return _shares(self.genuine, "genuine")

    @cached_property
    def _fpr(self) -> Floats:
        return _shares(self.impostor, "impostor")

    @cached_property
    def roc(self) -> Roc:
        """The points where the curve turns; between them it is straight."""
        filled = np.flatnonzero(self.genuine + self.impostor)
        # nothing accepted, then one bin more at a time: the threshold is the bin's lower edge
        edges = np.r_[filled[-1:] + 1, filled[::-1]]
        fpr, tpr = self._fpr[edges], self._tpr[edges]
        still = (np.diff(fpr) == 0), (np.diff(tpr) == 0)
        inside = [np.r_[False, s[1:] & s[:-1], False] for s in still]
        keep = ~(inside[0] | inside[1])
        return Roc(fpr[keep], tpr[keep], EDGES[edges[keep]])

    @property
    def auc(self) -> float:
        """Chance that a genuine pair is more similar than an impostor; a tie in a bin is half."""
        share = self.genuine / max(self.genuine_pairs, 1)
        middle = (self._fpr[1:] + self._fpr[:-1]) / 2
        return float(self._tpr[0] - (share * middle).sum())

    @property
    def eer(self) -> float:
        """The equal error rate (FPR = 1 - TPR), on the line between its neighbouring thresholds."""
        return self._equal[0]

    @property
    def eer_threshold(self) -> float:
        """Its threshold; the middle one where both rates are equal over several thresholds."""
        return self._equal[1]

    @cached_property
    def _equal(self) -> tuple[float, float]:
        gap = self._fpr + self._tpr - 1.0  # FPR - FNR: from 1 down to -1
        equal = np.flatnonzero(gap == 0.0)
        if len(equal):
            return float(self._fpr[equal[0]]), float(EDGES[equal[[0, -1]]].mean())
        k = int(np.flatnonzero(gap > 0.0)[-1])
        part = gap[k] / (gap[k] - gap[k + 1])
        rate, edge = (line[k] + part * (line[k + 1] - line[k]) for line in (self._fpr, EDGES))
        return float(rate), float(edge)

    def tpr_at(self, fpr: float) -> float | None:
        """Return the largest TPR with at most the given FPR; None where there is a `shortage`."""
        threshold = self.threshold_at(fpr)
        return None if threshold is None else self.at(threshold).tpr

    def threshold(self, at_fpr: float | None = None) -> float:
        """Return the threshold of an FPR, by default the EER's; UserError for a `shortage`."""
        if at_fpr is None:
            return self.eer_threshold
        if (threshold := self.threshold_at(at_fpr)) is None:
            raise UserError(self.shortage(at_fpr))
        return threshold

    def threshold_at(self, fpr: float) -> float | None:
        """Return the lowest threshold with at most the given FPR; None as for `tpr_at`."""
        if not 0.0 < fpr <= 1.0:
            raise UserError(f"the FPR is {fpr}; it must be a share above 0 and at most 1")
        if self.shortage(fpr):
            return None
        return float(EDGES[np.flatnonzero(self._fpr <= fpr)[0]])

    def shortage(self, fpr: float) -> str | None:
        """Say why an FPR cannot be measured: one impostor pair is already a larger share."""
        count = self.impostor_pairs
        if count * fpr >= 1.0 - 1e-9:
            return None
        return (f"FPR {fpr:g} needs at least {np.ceil(1 / fpr - 1e-9):,.0f} impostor pairs, there "
                f"{'is' if count == 1 else 'are'} {count:,}")

    def at(self, threshold: float) -> Rates:
        """Return the rates of any similarity threshold; UserError unless it is from -1 to 1.

        It is moved to the nearest of the T thresholds, by 1/4096 at most; thresholds that this
        class returns are among them, except `eer_threshold`.
        """
        if not abs(threshold) <= 1.0 + 1.0 / SCALE:
            raise UserError(f"threshold {threshold}: a cosine similarity from -1 to 1 is needed; a "
                            "Euclidean distance d of unit rows is the similarity 1 - d * d / 2")
        k = int(np.clip(np.rint((threshold * SCALE) + SCALE + 0.5), 0, BINS))
        tpr, fpr = float(self._tpr[k]), float(self._fpr[k])
        hits, mistakes = int(self.genuine[k:].sum()), int(self.impostor[k:].sum())
        right = hits + self.impostor_pairs - mistakes
        return Rates(threshold=float(EDGES[k]), distance=distance(float(EDGES[k])), tpr=tpr,
                     fpr=fpr, precision=hits / (hits + mistakes) if hits + mistakes else None,
                     accuracy=right / (self.genuine_pairs + self.impostor_pairs),
                     balanced_accuracy=(tpr + 1.0 - fpr) / 2.0)

    def as_json(self, rates: tuple[float, ...] = FALSE_RATES) -> dict[str, Any]:
        """Return the headline numbers, with None and a note for rates that cannot be measured."""
        at = {f"{rate:g}": self.threshold_at(rate) for rate in rates}
        return {
            "auc": self.auc, "eer": self.eer,
            "eer_threshold": {"similarity": self.eer_threshold,
                              "distance": distance(self.eer_threshold)},
            "tpr_at_fpr": {key: None if t is None else asdict(self.at(t)) for key, t in at.items()},
            "genuine_pairs": self.genuine_pairs, "impostor_pairs": self.impostor_pairs,
            "notes": [note for rate in rates if (note := self.shortage(rate))],
        }


def verify(
    pair: Pair, *, protocol: str = "cross_camera", share: Share | None = None
) -> Verification:
    """Compare every query [Q, D] with every gallery image [G, D] by cosine similarity.

    Features are read block by block. Junk (-1) and images that the protocol leaves out are in no
    pair. Raises UserError for shapes that do not fit, rows that are not finite, and without genuine
    or impostor pairs. The processes of a `share` call this together, and all get the result.
    """
    counts = count_pairs(pair, protocol=protocol, share=share)
    q_ids, g_ids = pair.query.identities, pair.gallery.identities
    if not counts.genuine_pairs:
        raise UserError(f"there are no genuine pairs: {why_no_match(q_ids, g_ids, protocol)}")
    if not counts.impostor_pairs:
        raise UserError("there are no impostor pairs: query and gallery hold one and the same "
                        f"identity ({q_ids[q_ids != JUNK][0]}); add images of others")
    return counts


def count_pairs(
    pair: Pair, *, protocol: str = "cross_camera", share: Share | None = None
) -> Verification:
    """Count the pairs of one shard of many, which may lack genuine or impostor pairs."""
    check_pair(pair)
    queries, gallery = protocol_pair(protocol, pair).rows(unit=True)
    products = Products(pair.query.features, pair.gallery.features)
    hide = protocol == "other_cameras"
    return Verification(*pair_counts(queries, gallery, products, hide=hide, share=share))


def distance(similarity: float) -> float:
    """Return the Euclidean distance of unit rows with this cosine similarity."""
    return float(np.sqrt(max(0.0, 2.0 - 2.0 * similarity)))


def _shares(counts: Integers, kind: str) -> Floats:
    """Return the share of the pairs in bin k or above [T]."""
    total = counts.sum()
    if not total:
        raise UserError(f"there are no {kind} pairs, so there is no rate; add the other shards")
    return np.r_[np.cumsum(counts[::-1])[::-1], 0] / total
