"""Which queries are looked at and what is in their lists, against rankings with a full matrix."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.evaluation.feature_files.ranked_lists import (
    TOP,
    Lists,
    Wanted,
    check_wanted,
    ranked_lists,
)
from svll.evaluation.feature_files.scores import score
from svll.evaluation.feature_files.sources import Source
from svll.evaluation.protocols import draw_labels
from svll.evaluation.ranking import Options
from tests.svll.reports.worlds import Plain, plain_ranking, world


def lists_of(source: Source, wanted: Wanted) -> Lists:
    [scored] = score(source, options=Options(top_k=TOP))
    return ranked_lists(source, scored.result, wanted)


def assert_as_plain(found: Lists, source: Source, plain: dict[int, Plain]) -> None:
    for one in found.shown:
        there = plain[one.row]
        assert [hit.row for hit in one.hits] == there.rows[:TOP].tolist()
        assert [hit.distance for hit in one.hits] == pytest.approx(there.distances[:TOP], abs=1e-6)
        assert [hit.is_match for hit in one.hits] == there.matches[:TOP].tolist()
        assert [(hit.identity, hit.camera) for hit in one.hits] == [
            (source.gallery.identities[row], source.gallery.cameras[row])
            for row in there.rows[:TOP]
        ]
        assert one.average_precision == pytest.approx(there.average_precision)
        assert one.first_rank == there.first_rank
        assert (one.identity, one.camera) == (
            source.asking.identities[one.row], source.asking.cameras[one.row]
        )


@pytest.mark.parametrize("protocol", ["cross_camera", "all_gallery"])
def test_the_worst_queries_come_first_and_their_lists_are_those_of_the_full_matrix(
    protocol: str
) -> None:
    source = world(protocol)
    plain = plain_ranking(source, own_camera=protocol == "all_gallery")
    found = lists_of(source, Wanted(count=12))
    worst = sorted(plain, key=lambda row: (plain[row].average_precision, row))
    assert [one.row for one in found.shown] == worst[:12]
    assert found.among == len(plain)
    assert_as_plain(found, source, plain)


def test_queries_without_a_match_are_not_among_the_worst_and_can_be_asked_for() -> None:
    source = world()
    alone = source.query.identities.copy()
    alone[[4, 5]] = 77, -1
    source = replace(source, query=replace(source.query, identities=alone))
    assert not {4, 5} & {one.row for one in lists_of(source, Wanted()).shown}
    stranger, junk = lists_of(source, Wanted(queries=["4", "5"])).shown
    assert (stranger.average_precision, stranger.first_rank, len(stranger.hits)) == (None, 0, TOP)
    assert not any(hit.is_match for hit in stranger.hits)
    assert (junk.average_precision, junk.hits) == (None, ())


def test_a_camera_pairs_queries_are_ranked_in_the_other_cameras_gallery_alone() -> None:
    source = world()
    plain = {
        row: one for row, one in plain_ranking(source, only_camera=2).items()
        if source.query.cameras[row] == 0 and one.first_rank
    }
    found = lists_of(source, Wanted(count=5, cameras=(0, 2)))
    worst = sorted(
        plain, key=lambda row: (-plain[row].first_rank, plain[row].average_precision, row)
    )
    assert [one.row for one in found.shown] == worst[:5]
    assert found.among == len(plain) > 5
    assert_as_plain(found, source, plain)


def test_under_random_gallery_lists_are_of_the_first_draw() -> None:
    source = world("random_gallery")
    asking, drawn = draw_labels(source.gallery.identities)
    as_pair = replace(
        source, query=replace(source.gallery, identities=asking),
        gallery=replace(source.gallery, identities=drawn),
    )
    plain = plain_ranking(as_pair, own_camera=True)
    found = lists_of(source, Wanted(count=8))
    worst = sorted(plain, key=lambda row: (plain[row].average_precision, row))
    assert [one.row for one in found.shown] == worst[:8]
    assert_as_plain(found, source, plain)
    with pytest.raises(UserError, match="has no cameras; leave out the camera pair"):
        lists_of(source, Wanted(cameras=(0, 1)))


def test_queries_are_found_by_row_path_and_end_of_path_in_the_order_asked(tmp_path: Path) -> None:
    source = world(folder=tmp_path)
    words = ["7", "20.jpg", f"{tmp_path}/query/9.jpg", "query/Größe 猫.jpg", "7"]
    found = lists_of(source, Wanted(count=1, queries=words))
    assert [one.row for one in found.shown] == [7, 20, 9, 2, 7]
    assert found.among == 30


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("30", "there is no query 30; rows are 0 to 29"),
        ("1" * 5000, f"there is no query {'1' * 5000}; rows are 0 to 29"),
        ("٣", "no query's path is or ends with '٣'; they look like a/0_b.jpg"),
        ("0.jpg", "no query's path is or ends with '0.jpg'; they look like a/0_b.jpg"),
        ("b.jpg", "2 queries' paths end with 'b.jpg'; give more of the path, as in c/b.jpg"),
    ],
)
def test_a_query_that_is_not_there_or_not_one_alone_is_refused(word: str, message: str) -> None:
    paths = ("a/0_b.jpg", "c/b.jpg", "d/b.jpg", *(f"{row}" for row in range(27)))
    source = world()
    source = replace(source, query=replace(source.query, paths=paths))
    with pytest.raises(UserError) as caught:
        check_wanted(source, Wanted(queries=[word]))
    assert str(caught.value) == f"world.h5: {message}"


def test_names_need_paths() -> None:
    with pytest.raises(UserError, match=r"no query 'a.jpg': the file has no paths; give rows, 0"):
        check_wanted(world(), Wanted(queries=["a.jpg"]))


def test_camera_pairs_that_cannot_be_are_refused() -> None:
    source = world()
    for cameras, message in [
        ((9, 1), "no query image under camera 9; cameras of the query are 0, 1, 2"),
        ((0, 8), "no gallery image under camera 8; cameras of the gallery are 0, 1, 2"),
        ((1, 1), "queries under camera 1 do not rank their identity under the same camera"),
    ]:
        with pytest.raises(UserError, match=message):
            check_wanted(source, Wanted(cameras=cameras))
    check_wanted(replace(source, protocol="all_gallery"), Wanted(cameras=(1, 1)))
    strangers = np.where(source.query.cameras == 0, 77, source.query.identities)
    source = replace(source, query=replace(source.query, identities=strangers))
    with pytest.raises(UserError, match="no identity of queries under camera 0 is in the gallery"):
        check_wanted(source, Wanted(cameras=(0, 1)))


def test_cameras_are_named_and_asked_for_as_the_dataset_numbers_them() -> None:
    source = world()
    moved = replace(source, first_camera=1)
    found, expected = (
        lists_of(one, Wanted(cameras=pair)) for one, pair in ((moved, (1, 3)), (source, (0, 2)))
    )
    assert [one.row for one in found.shown] == [one.row for one in expected.shown]
    assert {one.camera for one in found.shown} == {1}
    assert {hit.camera for one in found.shown for hit in one.hits} == {3}
    with pytest.raises(UserError, match="under camera 0; cameras of the query are 1, 2, 3"):
        check_wanted(moved, Wanted(cameras=(0, 1)))


def test_wanting_nothing_or_two_things_is_refused() -> None:
    with pytest.raises(UserError, match="0 queries were requested"):
        Wanted(count=0)
    with pytest.raises(UserError, match="choose one"):
        Wanted(cameras=(0, 1), queries=["3"])
