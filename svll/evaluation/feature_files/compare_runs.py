"""Whether one set of runs ranks better than another, over seeds and query by query."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.units import counted
from harness.runs.run import Run
from harness.sweeps.outcomes import Ranked
from harness.sweeps.paired import Verdict, compare
from svll.evaluation.feature_files.scores import Extra, score
from svll.evaluation.feature_files.sources import open_source
from svll.features.files import features_file


@dataclass(frozen=True)
class Precisions:
    """What a run's test queries score."""

    protocol: str
    each: NDArray[np.float64]
    """[Q], average precision; under random_gallery, its mean over the draws."""


def precisions(runs: Sequence[Run]) -> list[Precisions]:
    """Return each test query's average precision in each run.

    Raises UserError for a run without features of its test set, and for runs of different queries
    or protocols.
    """
    found: list[Precisions] = []
    tested: list[tuple[Path, str, object]] = []
    for run in runs:
        path = features_file(run.folder)
        with open_source(path) as source:
            [scored] = score(source, [None], Extra())
            asking = source.asking
            tested.append((path, source.protocol, asking.paths or asking.identities.tolist()))
        found.append(Precisions(source.protocol, scored.result.mean_precision))
    first, protocol, queries = tested[0]
    for path, other, asked in tested[1:]:
        if asked != queries:
            raise UserError(f"{path}: has other queries than {first}")
        if other != protocol:
            raise UserError(f"{path}: is ranked by {other}, {first} by {protocol}; only runs of "
                            "one protocol can be compared")
    return found


def compare_queries(a: Sequence[Run], b: Sequence[Run]) -> tuple[str, Verdict]:
    """Test whether the test mAP of runs `a` differs from that of `b`, paired over queries.

    Of several runs on a side, of several seeds, each query's mean counts. Returns the protocol, and
    what the test says.
    """
    found = precisions([*a, *b])
    sides = [one.each for one in found[: len(a)]], [one.each for one in found[len(a) :]]
    return found[0].protocol, compare(*(np.mean(side, axis=0) for side in sides))


def compare_points(a: Ranked, b: Ranked, metric: str) -> tuple[int, dict[str, Verdict]]:
    """Test whether point A of a sweep differs from point B.

    Returns the number of seeds that both have, and what the test says of the metric over these
    seeds and of the average precision over the test queries (of all runs, where no seed is shared).
    Raises UserError as `compare_queries` does.
    """
    values = [{one.seed: one.value for one in point.outcomes} for point in (a, b)]
    seeds = sorted(values[0].keys() & values[1].keys())
    verdicts = {}
    if seeds:
        found = compare(*(np.array([one[seed] for seed in seeds], float) for one in values))
        verdicts[f"{metric} over {counted(found.pairs, 'seed')}"] = found
    runs = [[one.run for one in point.outcomes if one.seed in seeds or not seeds]
            for point in (a, b)]
    protocol, found = compare_queries(*runs)
    verdicts[f"test AP ({protocol}) over {counted(found.pairs, 'query', 'queries')}"] = found
    return len(seeds), verdicts
