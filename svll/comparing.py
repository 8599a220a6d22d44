"""Whether one set of runs ranks better than another, query by query."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.paired import Verdict, compare
from harness.runs import Run
from svll.evaluation.scores import Extra, score
from svll.evaluation.sources import open_source
from svll.run_features import features_file


def precisions(runs: Sequence[Run]) -> list[NDArray[np.float64]]:
    """Return each test query's average precision [Q] in each run.

    Raises UserError for a run without features of its test set, and for runs of different queries.
    """
    found: list[NDArray[np.float64]] = []
    queries: list[tuple[Path, object]] = []
    for run in runs:
        path = features_file(run.folder)
        with open_source(path) as source:
            [scored] = score(source, [None], Extra())
            asking = source.asking
            queries.append((path, asking.paths or asking.identities.tolist()))
        found.append(scored.result.average_precision)
    for path, other in queries[1:]:
        if other != queries[0][1]:
            raise UserError(f"{path}: has other queries than {queries[0][0]}")
    return found


def compare_queries(a: Sequence[Run], b: Sequence[Run]) -> Verdict:
    """Test whether the test mAP of runs `a` differs from that of `b`, paired over queries.

    Of several runs on a side, of several seeds, each query's mean counts.
    """
    found = precisions([*a, *b])
    return compare(np.mean(found[: len(a)], axis=0), np.mean(found[len(a) :], axis=0))
