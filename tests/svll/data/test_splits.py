"""Selection sees identities that training never sees, drawn by seed; test is left alone."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.base.protocol_names import PROTOCOLS
from svll.base.records import Dataset, Records, Row
from svll.data.datasets import Datasets
from svll.data.side_labels import UNSEEN
from svll.data.splits import Splits, join, split
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


def of(*datasets: Dataset) -> Datasets:
    """Trained on and tested on the same."""
    return Datasets(datasets, datasets)


def parts(found: Splits) -> tuple[set[int], set[int]]:
    """Identities that are trained on, and those held out."""
    return set(found.train.identities.tolist()), set(found.validation.gallery.identities.tolist())


@pytest.mark.parametrize(("share", "held"), [(0.25, 3), (0.5, 6), (0.2, 2), (0.8, 10)])
def test_a_share_of_the_identities_is_held_out_with_all_their_images(
    share: float, held: int
) -> None:
    data = dataset()
    found = split(of(data), validation=share, seed=1)
    trained, validated = parts(found)
    assert len(validated) == held
    assert not trained & validated
    assert trained | validated == set(IDENTITIES)
    assert sorted([*found.train.paths, *found.validation.gallery.paths]) == sorted(data.train.paths)


def test_the_seed_decides_which_identities_are_held_out() -> None:
    def held(seed: int) -> tuple[int, ...]:
        return tuple(sorted(parts(split(of(dataset()), validation=0.25, seed=seed))[1]))

    assert held(1) == held(1)
    assert len({held(seed) for seed in range(40)}) > 30
    assert {identity for seed in range(40) for identity in held(seed)} == set(IDENTITIES)


def test_the_draw_depends_on_the_identities_and_not_on_the_order_of_files() -> None:
    data = dataset()
    order = np.random.default_rng(5).permutation(len(data.train))
    other = Dataset(data.name, data.protocol, data.train.take(order), data.query, data.gallery)
    assert parts(split(of(data), validation=0.25, seed=1)) == parts(
        split(of(other), validation=0.25, seed=1)
    )


@pytest.mark.parametrize("seed", range(6))
def test_queries_are_one_image_of_each_held_out_identity_and_camera(seed: int) -> None:
    found = split(of(dataset()), validation=0.5, seed=seed)
    query, gallery = found.validation.query, found.validation.gallery
    pairs = list(zip(query.identities.tolist(), query.cameras.tolist(), strict=True))
    every = set(zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == every
    assert set(query.paths) <= set(gallery.paths)


def test_another_seed_draws_other_query_images_of_the_same_identities() -> None:
    drawn: dict[frozenset[int], set[tuple[str, ...]]] = {}
    for seed in range(40):
        # all but two identities, so that some seeds agree on whom
        found = split(of(dataset()), validation=0.85, seed=seed)
        drawn.setdefault(frozenset(parts(found)[1]), set()).add(found.validation.query.paths)
    # one seed, one draw: 2 images of each of some 30 pairs never come out alike
    assert sum(map(len, drawn.values())) == 40
    assert len(drawn) < 40


@pytest.mark.parametrize("seed", range(8))
def test_a_validation_query_has_a_match_in_another_camera_or_is_skipped(seed: int) -> None:
    found = split(of(dataset()), validation=0.5, seed=seed)
    query, gallery = found.validation.query, found.validation.gallery
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
    found = split(of(dataset()), validation=0.25, seed=1)
    known = sorted(set(found.train.identities.tolist()))
    assert found.labels.tolist() == [known.index(i) for i in found.train.identities.tolist()]
    assert found.labels.dtype == np.int64
    assert found.identities == len(known) == 9


def test_a_share_of_0_holds_nothing_out() -> None:
    data = dataset()
    found = split(of(data), validation=0.0, seed=1)
    assert found.train.paths == data.train.paths
    assert len(found.validation.query) == len(found.validation.gallery) == 0
    assert found.identities == len(IDENTITIES)


def test_the_test_parts_are_passed_on_as_they_are() -> None:
    data = dataset()
    (test,) = split(of(data), validation=0.5, seed=1).tests
    assert test.query is data.query
    assert test.gallery is data.gallery
    assert (test.name, test.protocol) == ("made", "cross_camera")


def test_cameras_and_views_are_those_of_the_training_part() -> None:
    found = split(of(dataset()), validation=0.25, seed=1)
    assert found.side_labels.cameras == {"made": sorted(set(found.train.cameras.tolist()))}
    assert found.side_labels.views == {"made": sorted(set(found.train.views.tolist()))}


@pytest.mark.parametrize(("share", "held", "left"), [(0.05, 1, 11), (0.01, 0, 12), (0.95, 11, 1)])
def test_a_part_of_fewer_than_two_identities_is_refused(share: float, held: int, left: int) -> None:
    with pytest.raises(UserError) as caught:
        split(of(dataset()), validation=share, seed=1)
    message = str(caught.value)
    assert message.startswith(f"data.validation={share}: of 12 training identities")
    assert f"{held} would be held out and {left} trained on" in message
    words = re.search(r"; add data\.validation=0 or data\.validation=(0\.\d+)$", message)
    assert words is not None
    assert len(parts(split(of(dataset()), validation=float(words[1]), seed=1))[1]) == 2


# --- several sets ---


def small(name: str, cameras: list[int], protocol: str = "cross_camera") -> Dataset:
    """Two identities, 0 and 5, by the given cameras; the gallery has a camera more, 7.

    Its cameras are numbered from 1 in the dataset.
    """
    rows = [
        Row(f"{name}/{i}_{c}.jpg", i, c, view=i % 2) for i in (0, 5) for c in cameras
    ]
    test = Records.from_rows([Row(f"{name}/q.jpg", 1, cameras[0]), Row(f"{name}/g.jpg", 1, 7)])
    return Dataset(
        name, protocol, Records.from_rows(rows), test.take([0]), test.take([1]), first_camera=1
    )


def test_identities_and_cameras_of_several_sets_are_told_apart() -> None:
    a, b = small("a", [0, 1]), small("b", [0, 2])
    found = split(Datasets((a, b), (b,)), validation=0.0, seed=1)
    assert found.identities == 4
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found.train.paths == a.train.paths + b.train.paths
    # of a: 0, 1; its gallery has 7, so b begins at 8
    assert found.train.cameras.tolist() == [0, 1, 0, 1, 8, 10, 8, 10]
    assert found.side_labels.cameras == {"a": [1, 2], "b": [1, 3]}
    assert found.places(found.train)[0].tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert found.places(b.query, b)[0].tolist() == [2]
    assert found.places(b.gallery, b)[0].tolist() == [UNSEEN]


def test_a_view_of_one_set_is_not_that_of_another() -> None:
    a, b = small("a", [0, 1]), small("b", [0, 2])
    found = split(Datasets((a, b), (b,)), validation=0.0, seed=1)
    assert found.train.views.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert found.places(found.train)[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_validation_part_has_the_cameras_of_the_set_that_brings_it() -> None:
    first, other = small("a", [0, 1]), small("b", [0, 2])
    own = Records.from_rows([Row(f"v{i}_{c}.jpg", i, c) for i in (900, 901) for c in (0, 2)])
    other = replace(other, validation=own)
    found = split(Datasets((first, other), (other,)), validation=0.0, seed=1)
    part = found.validation
    # the cameras 1 and 3 of b, behind both of a
    assert found.places(part.gallery, part.dataset)[0].tolist() == [2, 3, 2, 3]


def test_the_order_of_the_sets_decides_the_labels_and_nothing_else_does() -> None:
    a, b = small("a", [0, 1]), small("b", [0, 2])
    one = split(Datasets((a, b), (a,)), validation=0.0, seed=1)
    two = split(Datasets((b, a), (a,)), validation=0.0, seed=1)
    assert dict(zip(one.train.paths, one.labels.tolist(), strict=True)) != dict(
        zip(two.train.paths, two.labels.tolist(), strict=True)
    )
    assert one.identities == two.identities


def test_cameras_of_a_set_that_was_not_trained_on_are_unseen() -> None:
    a, c = small("a", [0, 1]), small("c", [0, 1])
    found = split(Datasets((a,), (a, c)), validation=0.0, seed=1)
    own, other = found.tests
    assert found.places(own.query, own.dataset)[0].tolist() == [0]
    assert found.places(other.query, other.dataset)[0].tolist() == [UNSEEN]


def test_places_of_joined_images_are_those_of_their_own_sets() -> None:
    a, b = small("a", [0, 2, 5]), small("b", [1])
    found = split(Datasets((b, a), (a,)), validation=0.0, seed=1)
    asked = Records.from_rows([Row("x.jpg", 1, c) for c in (8 + 5, 8, 1, 8 + 2, 8 + 1, 0, 99)])
    camera, _ = found.places(asked)
    assert camera.tolist() == [3, 1, 0, 2, UNSEEN, UNSEEN, UNSEEN]
    assert camera.dtype == np.int64


# --- other protocols ---


def test_without_cameras_a_query_is_not_in_its_own_gallery() -> None:
    data = dataset()
    other = Dataset(data.name, "all_gallery", data.train, data.query, data.gallery)
    part = split(of(other), validation=0.5, seed=1).validation
    assert part.protocol == "all_gallery"
    assert not set(part.query.paths) & set(part.gallery.paths)
    assert sorted(part.query.identities.tolist()) == sorted(
        {*part.query.identities.tolist(), *part.gallery.identities.tolist()}
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_that_is_asked_for_is_that_of_validation_and_test(protocol: str) -> None:
    data = dataset()
    if protocol == "random_gallery":  # which needs one set
        data = replace(data, query=data.gallery)
    found = split(of(data), validation=0.5, seed=1, protocol=protocol)
    assert [part.protocol for part in (found.validation, *found.tests)] == [protocol] * 2
    # no query finds itself, which would come first
    part = found.validation
    every = dict.fromkeys(part.query.paths + part.gallery.paths)
    places = {path: n for n, path in enumerate(every)}
    codes = np.random.default_rng(0).normal(size=(len(places), 40))
    query, gallery = (
        np.array([codes[places[path]] for path in side.paths])
        for side in (part.query, part.gallery)
    )
    result = evaluate_ranking(
        query, gallery, part.query.identities, part.gallery.identities, part.query.cameras,
        part.gallery.cameras, protocol=protocol, query_images=part.query.paths,
        gallery_images=part.gallery.paths,
    )
    assert result.cmc[0] < 1.0


def test_a_random_gallery_is_drawn_from_all_held_out_images() -> None:
    data = dataset()
    other = Dataset(data.name, "random_gallery", data.train, data.query, data.gallery)
    part = split(of(other), validation=0.5, seed=1).validation
    assert part.query.paths == part.gallery.paths
    assert part.protocol == "random_gallery"


def test_a_datasets_own_validation_part_is_used_for_any_requested_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = dataset()
    own = Records.from_rows(
        [Row(f"v{i}_{c}.jpg", i, c) for i in (900, 901) for c in (0, 1)]
    )
    with_own = Dataset("list", "cross_camera", data.train, data.query, data.gallery, own)
    with caplog.at_level(logging.INFO):
        for share in (0.0, 0.5, 0.01):
            found = split(of(with_own), validation=share, seed=1)
            assert found.train.paths == data.train.paths
            assert found.validation.gallery.paths == own.paths
    assert [record.getMessage() for record in caplog.records] == [
        f"list has a validation part of 4 images, which is used: data.validation={share} holds no "
        "identities out" for share in (0.5, 0.01)
    ]


def test_a_test_set_of_query_and_gallery_is_not_drawn_from() -> None:
    data = small("market1501", [0, 1])
    with pytest.raises(UserError, match=r"market1501: the protocol random_gallery .* by cross"):
        split(of(data), validation=0.0, seed=1, protocol="random_gallery")
    one = replace(data, query=data.gallery)
    found = split(of(one), validation=0.0, seed=1, protocol="random_gallery")
    assert found.tests[0].protocol == "random_gallery"


def test_sets_of_different_protocols_have_no_common_validation_part() -> None:
    sets = (small("a", [0, 1]), small("b", [0], "random_gallery"))
    with pytest.raises(UserError, match=r"cannot be ranked together.*data\.validation=0"):
        split(Datasets(sets, sets), validation=0.5, seed=1)
    assert len(split(Datasets(sets, sets), validation=0.0, seed=1).validation.query) == 0
    named = split(Datasets(sets, sets), validation=0.5, seed=1, protocol="all_gallery")
    assert named.validation.protocol == "all_gallery"


def test_large_labels_are_joined_as_they_are() -> None:
    far = Records.from_rows([Row("a.jpg", 10**12, 70_000), Row("b.jpg", 10**18 - 1, 2**31)])
    near = Records.from_rows([Row("c.jpg", 0, 0), Row("d.jpg", 1, 1)])
    first, second = (
        Dataset(name, "cross_camera", part, Records.empty(), Records.empty())
        for name, part in (("list", far), ("folder", near))
    )
    whole, _ = join((first, second))
    assert whole.identities.tolist() == [10**12, 10**18 - 1, 10**18, 10**18 + 1]
    assert whole.cameras.tolist() == [70_000, 2**31, 2**31 + 1, 2**31 + 2]
    splits = split(Datasets((first, second), ()), validation=0.0, seed=1)
    assert splits.labels.tolist() == [0, 1, 2, 3]
    assert [place.tolist() for place in splits.places(splits.train)] == [[0, 1, 2, 3], [0, 0, 1, 1]]
