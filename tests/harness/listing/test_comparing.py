"""Runs that differ in their seed alone are found, and compared seed by seed."""

import pytest
import scipy.stats

from harness.base.errors import UserError
from harness.listing.comparing import compare_seeds, seeds_of, side, verdict_lines
from harness.listing.entries import Metric
from tests.harness.listing.conftest import MakeRun

SCORE = Metric("score")


def test_runs_are_compared_over_the_seeds_that_both_have(make_run: MakeRun) -> None:
    a = {seed: make_run(seed, value=0.5 + seed / 100, seed=seed) for seed in range(1, 8)}
    b = {seed: make_run(16 + seed, value=0.48 + seed**2 / 1000, seed=seed) for seed in range(2, 9)}
    for run in b.values():
        run.config_file.write_text(run.config_file.read_text().replace("0.1", "0.2"))
    make_run(99, "stopped", seed=9)
    assert seeds_of(a[3]) == {3: a[3], **{seed: run for seed, run in a.items() if seed != 3}}
    (one, key), (two, _) = side(a[1].folder, SCORE), side(b[2].folder, SCORE)
    seeds, verdicts = compare_seeds(one, two, key)
    differences = [0.02 + seed / 100 - seed**2 / 1000 for seed in range(2, 8)]
    found = verdicts["score over 6 seeds"]
    assert (seeds, found.mean) == (6, pytest.approx(sum(differences) / 6))
    reference = scipy.stats.permutation_test(
        (differences,), lambda x: x.mean(), permutation_type="samples", n_resamples=1000)
    assert found.p == pytest.approx(reference.pvalue)
    assert verdict_lines(seeds, verdicts) == [
        f"score over 6 seeds: A - B = {found.mean:+.4f}, higher 6 times, lower 0 times, "
        f"p = {found.p:.2g}: A and B differ"]


def test_a_run_that_is_not_complete_is_not_compared(make_run: MakeRun) -> None:
    run = make_run(1, "stopped")
    with pytest.raises(UserError, match="is stopped; only complete runs can be compared"):
        side(run.folder, SCORE)
