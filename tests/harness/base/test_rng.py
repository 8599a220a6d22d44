"""The draws are a pure function of their key, and look random along each part of it."""

import numpy as np
import pytest
import torch

from harness.base import rng


def positions(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64)


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations chi-square lies above what equally likely cells would give."""
    expected = counts.sum() / counts.size
    degrees = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


def test_mixing_gives_the_published_splitmix64_sequence() -> None:
    # The first five outputs of the reference implementation, started with 1234567.
    states = [(1234567 + step * rng.GOLDEN) % 2**64 for step in range(1, 6)]
    assert rng.mix(np.array(states, dtype=np.uint64)).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]


def test_a_samples_numbers_do_not_depend_on_its_batch_or_on_how_many_are_asked_for() -> None:
    whole = rng.uniform(7, 3, positions(64), 1, 9)
    assert whole.shape == (64, 9)
    np.testing.assert_array_equal(rng.uniform(7, 3, positions(64)[40:50], 1, 4), whole[40:50, :4])
    np.testing.assert_array_equal(rng.uniform(7, 3, positions(64)[::-1], 1, 9), whole[::-1])


def test_every_part_of_the_key_changes_all_numbers() -> None:
    draws = [
        rng.uniform(seed, epoch, positions(50), view, 4)
        for seed in (-1, 0, 1, 2**63) for epoch in (0, 1, 2) for view in (0, 1)
    ]
    assert np.unique(draws).size == np.size(draws)


def test_order_and_number_of_the_keys_parts_count() -> None:
    parts = [(1, 2), (2, 1), (1,), (1, 2, 0), (0, 1, 2), ()]
    made = [rng.hash_words(*part).item() for part in parts]
    assert len(set(made)) == len(made)


def test_numbers_are_uniform() -> None:
    draws = rng.uniform(1234, 1, positions(20_000), 0, 5)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(chi_square(np.histogram(draws, bins=100, range=(0, 1))[0])) < 4


@pytest.mark.parametrize("neighbour", ["seed", "epoch", "position", "view", "number"])
def test_neighbouring_draws_are_independent(neighbour: str) -> None:
    count = 20_000
    key = {"seed": 5, "epoch": 2, "view": 0}
    draws = rng.uniform(**key, positions=positions(count + 1), count=2)
    first, second = draws[:-1, 0], draws[1:, 0]
    if neighbour == "number":
        second = draws[:-1, 1]
    elif neighbour != "position":
        key[neighbour] += 1
        second = rng.uniform(**key, positions=positions(count), count=1)[:, 0]
    pairs = np.histogram2d(first, second, bins=10, range=[(0, 1), (0, 1)])[0]
    assert abs(chi_square(pairs)) < 4


def test_whole_numbers_reach_both_ends_equally_often() -> None:
    drawn = rng.below(rng.uniform(0, 0, positions(21_000), 0, 1), 21)
    counts = np.bincount(drawn.ravel(), minlength=21)
    assert counts.size == 21
    assert abs(chi_square(counts)) < 4
    assert rng.below(np.array([0.0, np.nextafter(1, 0)]), 21).tolist() == [0, 20]


def test_generators_repeat_for_their_key_and_differ_for_any_other() -> None:
    keys = [(1, 2), (2, 1), (12,), (1, 2, 0), (-1, 2), (2**70, 2)]
    draws = [rng.generator(*key).permutation(1000).tolist() for key in keys]
    assert draws == [rng.generator(*key).permutation(1000).tolist() for key in keys]
    assert len({tuple(draw) for draw in draws}) == len(keys)
    assert len({rng.torch_seed(*key) for key in keys}) == len(keys)


def test_torch_takes_the_seed() -> None:
    seeds = [rng.torch_seed(1234, epoch) for epoch in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    torch.Generator().manual_seed(max(seeds))
