"""Selection sees identities that training never sees, drawn by seed; test is left alone."""

import numpy as np
import pytest

from harness.errors import UserError
from svll.data.records import Dataset, Records, Row
from svll.data.splits import Splits, camera_index, split
from svll.evaluation import evaluate_ranking

IDENTITIES = [3, 8, 15, 16, 23, 42, 108, 111, 200, 201, 202, 305]


def dataset(cameras: int = 4, shots: int = 2) -> Dataset:
    """Every identity by all cameras but one; identity 305 by a single one. Order is shuffled."""
    rows = [
        Row(f"{identity}_{camera}_{shot}.jpg", identity, camera, view=camera % 3)
        for place, identity in enumerate(IDENTITIES)
        for camera in (range(cameras) if identity != 305 else [1])
        for shot in range(shots)
        if camera != place % cameras or identity == 305
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    test = Records.from_rows([Row("q.jpg", 1, 0), Row("g.jpg", 1, 1)])
    return Dataset(
        name="made", protocol="cross_camera", train=Records.from_rows(rows).take(order),
        query=test.take([0]), gallery=test.take([1]),
    )


def parts(found: Splits) -> tuple[set[int], set[int]]:
    """Identities that are trained on, and those held back."""
    return set(found.train.identities.tolist()), set(found.validation_gallery.identities.tolist())


@pytest.mark.parametrize(("share", "held"), [(0.25, 3), (0.5, 6), (0.2, 2), (0.8, 10)])
def test_a_share_of_the_identities_is_held_back_with_all_their_images(
    share: float, held: int
) -> None:
    data = dataset()
    found = split(data, validation=share, seed=1)
    trained, validated = parts(found)
    assert len(validated) == held
    assert not trained & validated
    assert trained | validated == set(IDENTITIES)
    assert sorted([*found.train.paths, *found.validation_gallery.paths]) == sorted(data.train.paths)


def test_the_seed_decides_who_is_held_back() -> None:
    def held(seed: int) -> tuple[int, ...]:
        return tuple(sorted(parts(split(dataset(), validation=0.25, seed=seed))[1]))

    assert held(1) == held(1)
    assert len({held(seed) for seed in range(40)}) > 30
    assert {identity for seed in range(40) for identity in held(seed)} == set(IDENTITIES)


def test_the_draw_depends_on_the_identities_and_not_on_the_order_of_files() -> None:
    data = dataset()
    order = np.random.default_rng(5).permutation(len(data.train))
    other = Dataset(data.name, data.protocol, data.train.take(order), data.query, data.gallery)
    assert parts(split(data, validation=0.25, seed=1)) == parts(
        split(other, validation=0.25, seed=1)
    )


@pytest.mark.parametrize("seed", range(6))
def test_queries_are_one_image_of_each_held_back_identity_and_camera(seed: int) -> None:
    found = split(dataset(), validation=0.5, seed=seed)
    query, gallery = found.validation_query, found.validation_gallery
    pairs = list(zip(query.identities.tolist(), query.cameras.tolist(), strict=True))
    every = set(zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == every
    assert set(query.paths) <= set(gallery.paths)


def test_another_seed_draws_other_query_images_of_the_same_identities() -> None:
    drawn: dict[frozenset[int], set[tuple[str, ...]]] = {}
    for seed in range(40):
        # all but two identities, so that some seeds agree on whom
        found = split(dataset(), validation=0.85, seed=seed)
        drawn.setdefault(frozenset(parts(found)[1]), set()).add(found.validation_query.paths)
    # one seed, one draw: 2 images of each of some 30 pairs never come out alike
    assert sum(map(len, drawn.values())) == 40
    assert len(drawn) < 40


@pytest.mark.parametrize("seed", range(8))
def test_a_validation_query_has_a_match_in_another_camera_or_is_skipped(seed: int) -> None:
    found = split(dataset(), validation=0.5, seed=seed)
    query, gallery = found.validation_query, found.validation_gallery
    matched = [
        any((gallery.identities == identity) & (gallery.cameras != camera))
        for identity, camera in zip(query.identities, query.cameras, strict=True)
    ]
    assert [i for i, ok in zip(query.identities.tolist(), matched, strict=True) if not ok] == (
        [305] if 305 in query.identities else []
    )
    # a ranking by identity finds every match first; the query's own image is never one
    codes = np.eye(500, dtype=np.float32)
    result = evaluate_ranking(
        codes[query.identities], codes[gallery.identities], query.identities,
        gallery.identities, query.cameras, gallery.cameras,
    )
    assert result.mAP == pytest.approx(1.0)
    assert result.cmc[0] == 1.0


def test_labels_count_the_identities_in_sorted_order() -> None:
    found = split(dataset(), validation=0.25, seed=1)
    known = sorted(set(found.train.identities.tolist()))
    assert found.labels.tolist() == [known.index(i) for i in found.train.identities.tolist()]
    assert found.labels.dtype == np.int64
    assert found.identities == len(known) == 9


def test_nothing_is_held_back_unless_asked() -> None:
    data = dataset()
    found = split(data, validation=0.0, seed=1)
    assert found.train.paths == data.train.paths
    assert len(found.validation_query) == len(found.validation_gallery) == 0
    assert found.identities == len(IDENTITIES)


def test_the_test_parts_are_passed_on_as_they_are() -> None:
    data = dataset()
    found = split(data, validation=0.5, seed=1)
    assert found.query is data.query
    assert found.gallery is data.gallery


def test_cameras_and_views_are_those_of_the_training_part() -> None:
    found = split(dataset(), validation=0.25, seed=1)
    assert found.cameras.tolist() == sorted(set(found.train.cameras.tolist()))
    assert found.views == max(found.train.views.tolist()) + 1


@pytest.mark.parametrize(("share", "held", "left"), [(0.05, 1, 11), (0.01, 0, 12), (0.95, 11, 1)])
def test_a_part_of_fewer_than_two_identities_is_refused(share: float, held: int, left: int) -> None:
    with pytest.raises(UserError) as caught:
        split(dataset(), validation=share, seed=1)
    message = str(caught.value)
    assert message.startswith(f"data.validation={share}: of 12 training identities")
    assert f"{held} would be held back and {left} trained on" in message


def test_a_camera_is_known_by_its_place_among_the_training_cameras() -> None:
    known = np.array([0, 2, 5], dtype=np.int64)
    found = camera_index(np.array([5, 0, 2, 5], dtype=np.int64), known)
    assert found.tolist() == [2, 0, 1, 2]
    assert found.dtype == np.int64


def test_an_unseen_camera_is_refused_by_the_number_in_its_file_names() -> None:
    known = np.array([0, 2, 5], dtype=np.int64)
    with pytest.raises(UserError, match=r"cameras \[2, 7\].*model.sie=none"):
        camera_index(np.array([0, 6, 1], dtype=np.int64), known)
