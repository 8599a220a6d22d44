"""Whether one set of runs ranks better than another, over seeds and query by query."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.units import counted
from harness.runs.run import Run
from harness.sweeps.paired_test import Verdict, compare
from harness.sweeps.sweep_results import Ranked
from svll.evaluation.feature_files.scores import score
from svll.evaluation.feature_files.sources import open_source
from svll.features.files import features_file


def precisions(runs: Sequence[Run]) -> tuple[str, list[NDArray[np.float64]]]:
    """Return the protocol, and each test query's average precision [Q] in each run.

    Under random_gallery, that is its mean over the draws. Raises UserError for a run without
    features of its test set, and for runs of different queries or protocols.
    """
    found: list[NDArray[np.float64]] = []
    first = features_file(runs[0].folder)
    for run in runs:
        path = features_file(run.folder)
        with open_source(path) as source:
            [scored] = score(source)
            queries = source.asking.paths or source.asking.identities.tolist()
        if not found:
            protocol, expected = source.protocol, queries
        if queries != expected:
            raise UserError(f"{path}: its queries differ from those of {first}")
        if source.protocol != protocol:
            raise UserError(f"{path}: is ranked by {source.protocol}, {first} by {protocol}; only "
                            "runs of one protocol can be compared")
        found.append(scored.result.mean_precision)
    return protocol, found


def compare_points(a: Ranked, b: Ranked, metric: str) -> tuple[int, dict[str, Verdict]]:
    """Test whether point A of a sweep differs from point B.

    Returns the number of seeds that both have, and the verdicts on the metric over these seeds and
    on the average precision over the test queries, paired: each query's mean over these seeds (over
    all runs if no seed is shared). Raises UserError as `precisions` does.
    """
    values = [{one.seed: one.value for one in point.outcomes} for point in (a, b)]
    seeds = sorted(values[0].keys() & values[1].keys())
    verdicts = {}
    if seeds:
        found = compare(*(np.array([one[seed] for seed in seeds], float) for one in values))
        verdicts[f"{metric} over {counted(found.pairs, 'seed')}"] = found
    runs_a, runs_b = ([one.run for one in point.outcomes if one.seed in seeds or not seeds]
                      for point in (a, b))
    protocol, of_runs = precisions([*runs_a, *runs_b])
    sides = of_runs[: len(runs_a)], of_runs[len(runs_a) :]
    found = compare(*(np.mean(side, axis=0) for side in sides))
    verdicts[f"test AP ({protocol}) over {counted(found.pairs, 'query', 'queries')}"] = found
    return len(seeds), verdicts
