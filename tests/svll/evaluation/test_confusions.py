"""Identities taken for others, against a count with loops over plain rankings."""

from collections import Counter

import pytest

from svll.evaluation.confusions import hardest_confusions
from svll.evaluation.feature_files.ranked_lists import TOP
from svll.evaluation.feature_files.scores import score
from svll.evaluation.ranking import Options
from tests.svll.reports.worlds import plain_ranking, world


def test_confusions_are_those_of_a_plain_count() -> None:
    source = world()
    q_ids, g_ids = source.query.identities, source.gallery.identities
    q_ids[3] = 77  # nobody in the gallery: must not count
    ahead, images, asked = Counter(), Counter(), Counter()
    nearest: dict[tuple[int, int], tuple[bool, float, int, int]] = {}
    for row, one in plain_ranking(source).items():
        if not one.first_rank:
            continue
        asked[q_ids[row]] += 1
        before = set()
        for place in range(TOP):
            near = int(one.rows[place])
            pair = (int(q_ids[row]), int(g_ids[near]))
            if one.matches[place]:
                continue
            images[pair] += 1
            is_late = place > one.first_rank - 1
            example = (is_late, float(one.distances[place]), row, near)
            nearest[pair] = min(nearest.get(pair, example), example)
            if not is_late:
                before.add(pair)
        ahead.update(before)
    [scored] = score(source, options=Options(top_k=TOP))
    found = hardest_confusions(scored.result, q_ids, g_ids, count=1000)
    wanted = sorted(images, key=lambda pair: (-ahead[pair], -images[pair], pair))
    assert [(one.identity, one.wrong) for one in found] == wanted
    assert max(ahead.values()) > 1
    assert 0 in [ahead[pair] for pair in wanted]
    for one in found:
        pair = one.identity, one.wrong
        assert (one.queries, one.images, one.asked) == (ahead[pair], images[pair], asked[pair[0]])
        assert (one.query, one.gallery) == nearest[pair][2:]
        assert one.distance == pytest.approx(nearest[pair][1], abs=1e-6)
    assert hardest_confusions(scored.result, q_ids, g_ids, count=3) == found[:3]


def test_a_model_that_makes_no_mistake_has_no_confusions() -> None:
    source = world()
    [scored] = score(source, options=Options(top_k=TOP))
    assert hardest_confusions(scored.result, source.query.identities * 0,
                              source.gallery.identities * 0) == []
