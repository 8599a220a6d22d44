"""Same identity or not: how well one threshold on the similarity tells, over all pairs.

A pair is one query and one gallery image; it is accepted when its cosine similarity is at least the
threshold. Genuine pairs share their identity, impostor pairs do not. TPR is the share of genuine
pairs accepted, FPR that of impostor pairs. Thresholds are cosine similarities s; the same as a
Euclidean distance of unit rows is sqrt(2 - 2 s).

Pairs are counted in bins (see `engine.pair_histogram`), so every rate is exact, for thresholds that
are 1/2048 apart: 0.00049 in similarity, and about 0.00049 / d in distance at distance d. Counts of
several galleries, shards or ranks add.

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
from svll.evaluation.engine.ranks import Share
from svll.evaluation.pair import Pair, check_pair
from svll.evaluation.protocols import compared
from svll.evaluation.ranking import ONE_CAMERA

FALSE_RATES = (1e-1, 1e-2, 1e-3, 1e-4)
"""The FPRs at which TPR is reported."""


@dataclass(frozen=True)
class Rates:
    """What one threshold does."""

    threshold: float
    """The cosine similarity from which on pairs are accepted."""
    distance: float
    """The same as the Euclidean distance of unit rows."""
    tpr: float
    fpr: float
    precision: float | None
    """Share of genuine pairs among those accepted; None where none is."""
    accuracy: float
    """Share of all pairs told rightly: near one for any high threshold, as impostors abound."""
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
    """Counts of pairs by similarity, bin b from `pair_histogram.EDGES[b]` on; all else follows.

    Everything but the counts and their sum raises UserError without genuine or impostor pairs.
    """

    genuine: Integers
    """[BINS]"""
    impostor: Integers
    """[BINS]"""

    def __post_init__(self) -> None:
        assert self.genuine.shape == self.impostor.shape == (BINS,)

    def __add__(self, other: "Verification") -> "Verification":
        """The counts of two sets of pairs together."""
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
        """The points of the curve where it turns; what lies between is a straight line."""
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
        """The chance that a genuine pair is more alike than an impostor (half, in one bin)."""
        share = self.genuine / max(self.genuine_pairs, 1)
        middle = (self._fpr[1:] + self._fpr[:-1]) / 2
        return float(self._tpr[0] - (share * middle).sum())

    @property
    def eer(self) -> float:
        """Where FPR and 1 - TPR are equal, on the line between the two thresholds next to it."""
        return self._equal[0]

    @property
    def eer_threshold(self) -> float:
        """The threshold there; the middle one where the two rates are equal for a stretch."""
        return self._equal[1]

    @cached_property
    def _equal(self) -> tuple[float, float]:
        gap = self._fpr + self._tpr - 1.0  # FPR - FNR: from 1 down to -1
        equal = np.flatnonzero(gap == 0.0)
        if len(equal):
            return float(self._fpr[equal[0]]), float(EDGES[equal[[0, -1]]].mean())
        k = int(np.flatnonzero(gap > 0.0)[-1])
        part = gap[k] / (gap[k] - gap[k + 1])
        between = [line[k] + part * (line[k + 1] - line[k]) for line in (self._fpr, EDGES)]
        return float(between[0]), float(between[1])

    def tpr_at(self, fpr: float) -> float | None:
        """The largest TPR whose FPR is at most the given one; None where `shortage` says why."""
        threshold = self.threshold_at(fpr)
        return None if threshold is None else float(self._tpr[_edge(threshold)])

    def threshold(self, at_fpr: float | None = None) -> float:
        """The threshold of an FPR, by default where both error rates are equal.

        Raises UserError when there are too few impostor pairs for it.
        """
        if at_fpr is None:
            return self.eer_threshold
        found = self.threshold_at(at_fpr)
        if found is None:
            raise UserError(self.shortage(at_fpr))
        return found

    def threshold_at(self, fpr: float) -> float | None:
        """The lowest threshold whose FPR is at most the given one; None as for `tpr_at`."""
        if not 0.0 < fpr <= 1.0:
            raise UserError(f"an FPR of {fpr} was asked for; it is a share, above 0 and at most 1")
        if self.shortage(fpr):
            return None
        return float(EDGES[np.flatnonzero(self._fpr <= fpr)[0]])

    def shortage(self, fpr: float) -> str | None:
        """Why an FPR cannot be measured: one impostor pair is already more than it."""
        count = self.impostor_pairs
        if count * fpr >= 1.0 - 1e-9:
            return None
        return (
            f"FPR {fpr:g} needs at least {np.ceil(1 / fpr - 1e-9):,.0f} impostor pairs, there "
            f"{'is' if count == 1 else 'are'} {count:,}"
        )

    def at(self, threshold: float) -> Rates:
        """What a similarity threshold does here, wherever it was found.

        It is moved to the nearest of the T thresholds, by 1/4096 at most; those that this class
        returns are among them, save `eer_threshold`. UserError unless it is from -1 to 1.
        """
        if not abs(threshold) <= 1.0 + 1.0 / SCALE:
            raise UserError(
                f"{threshold} is no threshold: a cosine similarity from -1 to 1 is needed; "
                "a Euclidean distance d of unit rows is the similarity 1 - d * d / 2"
            )
        k = _edge(threshold)
        tpr, fpr = float(self._tpr[k]), float(self._fpr[k])
        hits, mistakes = int(self.genuine[k:].sum()), int(self.impostor[k:].sum())
        right = hits + self.impostor_pairs - mistakes
        return Rates(
            threshold=float(EDGES[k]),
            distance=distance(float(EDGES[k])),
            tpr=tpr,
            fpr=fpr,
            precision=hits / (hits + mistakes) if hits + mistakes else None,
            accuracy=right / (self.genuine_pairs + self.impostor_pairs),
            balanced_accuracy=(tpr + 1.0 - fpr) / 2.0,
        )

    def as_json(self, rates: tuple[float, ...] = FALSE_RATES) -> dict[str, Any]:
        """The headline numbers: plain, with None and a note for what cannot be measured."""
        at = {f"{rate:g}": self.threshold_at(rate) for rate in rates}
        return {
            "auc": self.auc,
            "eer": self.eer,
            "eer_threshold": {
                "similarity": self.eer_threshold, "distance": distance(self.eer_threshold)
            },
            "tpr_at_fpr": {key: None if t is None else asdict(self.at(t)) for key, t in at.items()},
            "genuine_pairs": self.genuine_pairs,
            "impostor_pairs": self.impostor_pairs,
            "notes": [note for rate in rates if (note := self.shortage(rate))],
        }  # fmt: skip


def verify(
    pair: Pair, *, protocol: str = "cross_camera", share: Share | None = None
) -> Verification:
    """Compare every query [Q, D] with every gallery image [G, D] by cosine similarity.

    Features are read block by block. Junk (-1) is in no pair, nor is what the protocol leaves out
    of a query's gallery. Raises UserError for shapes that do not fit, rows that are not finite, and
    without genuine or impostor pairs. The processes of a `share` call this together, and all get
    the result.
    """
    found = count_pairs(pair, protocol=protocol, share=share)
    q_ids, g_ids = pair.query.identities, pair.gallery.identities
    if not found.genuine_pairs:
        raise UserError(_no_genuine(q_ids[q_ids != JUNK], g_ids[g_ids != JUNK], protocol))
    if not found.impostor_pairs:
        raise UserError(
            "there are no impostor pairs: query and gallery hold one and the same identity "
            f"({q_ids[q_ids != JUNK][0]}); add images of others"
        )
    return found


def count_pairs(
    pair: Pair, *, protocol: str = "cross_camera", share: Share | None = None
) -> Verification:
    """Count the pairs of one shard of many: without genuine or impostor pairs it can be added."""
    check_pair(pair)
    queries, candidates = compared(protocol, pair).rows(unit=True)
    products = Products(pair.query.features, pair.gallery.features)
    counts = pair_counts(
        queries, candidates, products, hide=protocol == "other_cameras", share=share
    )
    return Verification(genuine=counts[0], impostor=counts[1])


def distance(similarity: float) -> float:
    """The Euclidean distance of unit rows with this cosine similarity."""
    return float(np.sqrt(max(0.0, 2.0 - 2.0 * similarity)))


def _edge(threshold: float) -> int:
    """The nearest of EDGES, by its place."""
    return int(np.clip(np.rint((threshold * SCALE) + SCALE + 0.5), 0, BINS))


def _shares(counts: Integers, kind: str) -> Floats:
    """[T]: share of the pairs in bin k or above."""
    total = counts.sum()
    if not total:
        raise UserError(f"there are no {kind} pairs, so there is no rate; add the other shards")
    return np.r_[np.cumsum(counts[::-1])[::-1], 0] / total


def _no_genuine(query: Integers, gallery: Integers, protocol: str) -> str:
    """Identities without junk: why no pair of them is genuine, and what helps."""
    for name, ids in (("query", query), ("gallery", gallery)):
        if not len(ids):
            return f"there are no pairs: every {name} image has identity {JUNK} (junk)"
    known, message = np.unique(query), "there are no genuine pairs: "
    shared = int(np.isin(known, gallery).sum())
    if shared and protocol != "all_gallery":
        return (
            f"{message}{shared} of {len(known)} query identities are in the gallery, all under the "
            f"query's own camera only; {ONE_CAMERA}"
        )
    if shared:
        return (
            f"{message}{shared} of {len(known)} query identities are in the gallery, all as the "
            "query's own image only; add further images"
        )
    return (
        f"{message}none of {len(known)} query identities is in the gallery; check that query and "
        "gallery are labelled by the same list of identities"
    )
