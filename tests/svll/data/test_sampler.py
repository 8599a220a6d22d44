"""An epoch's order is one for all ranks, new in each epoch, and the same for the same key."""

from collections import Counter

import numpy as np
import pytest

from harness.base.rng import generator
from harness.training import ranks
from svll.data.sampler import identity_batches, shuffled_batches

COUNTS = {3: 9, 7: 4, 8: 1, 20: 3, 21: 16, 22: 5, 40: 8, 41: 4, 42: 11, 50: 6}
"""Images of each identity: more than K, K, fewer, one; no multiple of K; labels with gaps."""


def identities(counts: dict[int, int] = COUNTS) -> np.ndarray:
    labels = np.repeat(list(counts), list(counts.values())).astype(np.int64)
    return np.random.default_rng(0).permutation(labels)


def epoch_of(
    epoch: int = 1, seed: int = 5, *, batch: int = 12, instances: int = 4
) -> list[np.ndarray]:
    return identity_batches(
        identities(), batch=batch, instances=instances, seed=seed, epoch=epoch
    )


@pytest.mark.parametrize(("batch", "instances"), [(12, 4), (8, 2), (16, 4), (6, 1), (10, 5)])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_batch_is_p_identities_of_k_images_each(batch: int, instances: int, epoch: int) -> None:
    labels = identities()
    batches = epoch_of(epoch, batch=batch, instances=instances)
    assert batches
    for rows in batches:
        assert rows.dtype == np.int64
        counts = Counter(labels[rows].tolist())
        assert len(counts) == batch // instances
        assert set(counts.values()) == {instances}


@pytest.mark.parametrize("epoch", range(1, 6))
def test_a_row_comes_once_at_most_unless_its_identity_has_too_few(epoch: int) -> None:
    labels = identities()
    for row, times in Counter(np.concatenate(epoch_of(epoch)).tolist()).items():
        assert times == 1 or COUNTS[int(labels[row])] < 4


def test_an_identity_with_too_few_images_fills_its_group_by_repetition() -> None:
    labels = identities()
    seen: dict[int, set[int]] = {8: set(), 20: set()}
    for epoch in range(1, 30):
        rows = np.concatenate(epoch_of(epoch))
        for label in seen:
            own = rows[labels[rows] == label]
            assert len(own) in (0, 4)
            seen[label] |= set(own.tolist())
    for label, found in seen.items():
        assert found == set(np.flatnonzero(labels == label).tolist())


def test_groups_are_drawn_until_fewer_than_p_identities_have_one_left() -> None:
    groups = {label: max(1, count // 4) for label, count in COUNTS.items()}
    labels = identities()
    for epoch in range(1, 10):
        left = dict(groups)
        batches = epoch_of(epoch)
        for rows in batches:
            for label in set(labels[rows].tolist()):
                left[label] -= 1
        assert min(left.values()) >= 0
        assert sum(count > 0 for count in left.values()) < 3


def test_rows_left_out_of_one_epoch_come_in_another() -> None:
    seen: set[int] = set()
    for epoch in range(1, 40):
        seen |= set(np.concatenate(epoch_of(epoch)).tolist())
    assert seen == set(range(len(identities())))


def test_identities_meet_others_in_other_epochs() -> None:
    labels = identities()
    first = [
        tuple(sorted(set(labels[epoch_of(epoch)[0]].tolist()))) for epoch in range(1, 40)
    ]
    assert len(set(first)) > 20
    assert set().union(*first) == set(COUNTS)


def test_fewer_identities_than_a_batch_wants_give_no_batch() -> None:
    labels = identities({1: 8, 2: 8})
    assert identity_batches(labels, batch=12, instances=4, seed=0, epoch=1) == []


def listed_anew(
    labels: np.ndarray, *, batch: int, instances: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The batches of an epoch, by listing for each batch the identities that have groups left."""
    rng = generator(seed, epoch, 1)
    images: dict[int, list[int]] = {label: [] for label in sorted(set(labels.tolist()))}
    for row, label in enumerate(labels.tolist()):
        images[label].append(row)
    groups = {}
    for label, own in images.items():
        rows = np.array(own)
        if len(rows) < instances:
            rows = rng.choice(rows, size=instances, replace=True)
        rows = rng.permutation(rows)
        groups[label] = [
            rows[start : start + instances]
            for start in range(0, len(rows) - instances + 1, instances)
        ]
    batches = []
    while len(left := [label for label, of in groups.items() if of]) >= batch // instances:
        chosen = rng.choice(np.array(left), size=batch // instances, replace=False)
        batches.append(np.concatenate([groups[label].pop() for label in chosen.tolist()]))
    return batches


@pytest.mark.parametrize(
    ("count", "batch", "instances"),
    [(10, 12, 4), (1, 2, 2), (16, 8, 2), (300, 64, 4), (10_001, 402, 2)],
)
def test_batches_are_those_of_listing_the_identities_anew_for_each(
    count: int, batch: int, instances: int
) -> None:
    numbers = np.random.default_rng(count)
    names = numbers.choice(10 * count, size=count, replace=False)
    most = 9 if count < 1000 else 2
    labels = numbers.permutation(np.repeat(names, numbers.integers(1, most + 1, size=count)))
    found, expected = (
        way(labels, batch=batch, instances=instances, seed=7, epoch=2)
        for way in (identity_batches, listed_anew)
    )
    assert as_lists(found) == as_lists(expected)


def as_lists(batches: list[np.ndarray]) -> list[list[int]]:
    return [rows.tolist() for rows in batches]


def test_the_same_key_gives_the_same_order_and_any_other_another() -> None:
    def random_order(epoch: int, seed: int) -> list[list[int]]:
        return as_lists(shuffled_batches(67, batch=12, seed=seed, epoch=epoch))

    for draw in (lambda epoch, seed: as_lists(epoch_of(epoch, seed)), random_order):
        assert draw(1, 5) == draw(1, 5)
        orders = [draw(epoch, seed) for epoch in (1, 2, 3) for seed in (5, 6)]
        assert all(orders.count(order) == 1 for order in orders)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    np.random.seed(0)  # noqa: NPY002
    first = as_lists(epoch_of())
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert as_lists(epoch_of()) == first
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize(("count", "batch"), [(67, 12), (24, 12), (5, 12), (1, 1)])
def test_stage_1_takes_every_row_once_with_a_smaller_last_batch(count: int, batch: int) -> None:
    batches = shuffled_batches(count, batch=batch, seed=0, epoch=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    sizes = [len(rows) for rows in batches]
    assert sizes == [batch] * (count // batch) + [count % batch] * (count % batch > 0)


def test_the_first_place_of_a_random_order_is_any_row_equally_often() -> None:
    first = [shuffled_batches(10, batch=10, seed=3, epoch=e)[0][0] for e in range(1, 2001)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 9 + 4 * np.sqrt(18)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_take_the_slices_of_one_batch_in_order(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: world)
    for rows in epoch_of():
        parts = []
        for rank in range(world):
            monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
            parts.append(rows[ranks.shard(len(rows))])
        assert {len(part) for part in parts} == {12 // world}
        assert np.concatenate(parts).tolist() == rows.tolist()
