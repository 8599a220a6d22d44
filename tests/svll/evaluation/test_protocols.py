"""Each protocol against its rule written plainly."""

import numpy as np
import pytest

from harness.base.errors import UserError
from harness.base.rng import generator
from svll.base.protocol_names import PROTOCOLS
from svll.evaluation import KReciprocal, evaluate_ranking
from svll.evaluation.protocols import DRAWS, evaluate_draws


def made(count: int = 60, identities: int = 12, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre per identity, so that ranking is neither perfect nor random."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, identities, count)
    centres = rng.normal(size=(identities, width))
    return (centres[labels] + rng.normal(size=(count, width))).astype(np.float32), labels


def plain_draw(features: np.ndarray, labels: np.ndarray, gallery: list[int]) -> tuple[float, float]:
    """mAP and rank-1 when the given rows are the gallery and all others queries."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    places = []
    for row in range(len(labels)):
        if row in gallery:
            continue
        order = sorted(gallery, key=lambda g: float(np.linalg.norm(unit[row] - unit[g])))
        places.append([labels[g] for g in order].index(labels[row]) + 1)
    return float(np.mean([1 / p for p in places])), float(np.mean([p == 1 for p in places]))


def test_the_gallery_has_one_image_of_each_identity_and_the_draws_are_averaged() -> None:
    features, labels = made()
    expected = []
    for draw in range(DRAWS):
        order = generator(0, draw, 5).permutation(len(labels))
        first: dict[int, int] = {}
        for row in order.tolist():
            first.setdefault(int(labels[row]), row)
        expected.append(plain_draw(features, labels, sorted(first.values())))
    result = evaluate_draws(features, labels)[0]
    assert result.mAP == pytest.approx(np.mean([m for m, _ in expected]), abs=1e-6)
    assert result.cmc[0] == pytest.approx(np.mean([r for _, r in expected]), abs=1e-6)
    assert result.mINP == pytest.approx(result.mAP)
    assert result.queries == len(labels) - len(set(labels.tolist()))
    assert np.isnan(result.average_precision).sum() == len(set(labels.tolist()))
    assert np.array_equal(np.isnan(result.average_precision), result.first_rank == 0)


def test_draws_are_seeded_and_differ() -> None:
    features, labels = made()
    assert evaluate_draws(features, labels)[0].mAP == evaluate_draws(features, labels)[0].mAP
    first = evaluate_draws(features, labels)[0]
    assert evaluate_draws(features, labels, seed=1)[0].mAP != first.mAP
    alone = [evaluate_draws(features, labels, draws=n)[0].mAP for n in (1, 2, 10)]
    assert len(set(alone)) == 3


def test_a_drawn_gallery_needs_no_query() -> None:
    query, gallery, q_ids, g_ids, *cameras = parts()
    with_query = evaluate_ranking(
        query, gallery, q_ids, g_ids, *cameras, protocol="random_gallery"
    )
    without = evaluate_ranking(None, gallery, None, g_ids, protocol="random_gallery")
    assert without.as_json() == with_query.as_json()


def test_junk_is_no_query_and_not_in_the_gallery() -> None:
    features, labels = made()
    junk = np.concatenate([labels, np.full(5, -1)])
    more = np.concatenate([features, features[:5]])
    assert evaluate_draws(more, junk)[0].queries == evaluate_draws(features, labels)[0].queries


def test_identities_of_single_images_alone_are_refused() -> None:
    with pytest.raises(UserError, match="no identity has two images"):
        evaluate_draws(np.eye(4, dtype=np.float32), np.arange(4))


def parts() -> tuple:
    features, labels = made()
    cameras = np.random.default_rng(1).integers(0, 3, len(labels))
    q, g = slice(0, 15), slice(15, None)
    return features[q], features[g], labels[q], labels[g], cameras[q], cameras[g]


def plain_map(protocol: str, query, gallery, q_ids, g_ids, q_cams, g_cams, own=None) -> float:
    """mAP by a full sort; own [Q]: the gallery row that is the query's own image."""
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery)]
    found = []
    for q, row in enumerate(((unit[0][:, None] - unit[1]) ** 2).sum(axis=2)):
        same, near = g_ids == q_ids[q], g_cams == q_cams[q]
        out = {"cross_camera": same & near, "other_cameras": near}.get(protocol, same & False)
        if own is not None and protocol == "all_gallery" and own[q] >= 0:
            out = np.arange(len(g_ids)) == own[q]
        hits = same[[g for g in np.argsort(row, kind="stable") if not out[g]]]
        if hits.any():
            places = np.flatnonzero(hits) + 1
            found.append(np.mean(np.arange(1, len(places) + 1) / places))
    return float(np.mean(found))


def test_each_protocol_leaves_out_what_it_says() -> None:
    found = {name: evaluate_ranking(*parts(), protocol=name).mAP for name in PROTOCOLS}
    for name in ("cross_camera", "other_cameras", "all_gallery"):
        assert found[name] == pytest.approx(plain_map(name, *parts()), abs=1e-6)
    assert len(set(found.values())) == 4
    assert evaluate_ranking(*parts()).mAP == found["cross_camera"]
    assert evaluate_ranking(*parts()[:4]).mAP == found["all_gallery"]  # no cameras are known


def test_under_all_gallery_random_features_of_queries_in_their_own_gallery_score_like_chance() -> (
    None
):
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(120, 8)).astype(np.float32), np.arange(120) // 4
    itself = features, features, labels, labels
    paths = [f"{n}.jpg" for n in range(120)]
    named = evaluate_ranking(*itself, query_images=paths, gallery_images=paths)
    assert named.cmc[0] < 0.2
    by_features = evaluate_ranking(*itself)
    assert (named.mAP, named.cmc.tolist()) == (by_features.mAP, by_features.cmc.tolist())
    columns = np.zeros(120, int), np.zeros(120, int)
    expected = plain_map("all_gallery", *itself, *columns, own=np.arange(120))
    assert named.mAP == pytest.approx(expected, abs=1e-6)


def test_an_own_image_is_found_by_name_and_else_by_labels_and_features() -> None:
    query, gallery, q_ids, g_ids, q_cams, g_cams = parts()
    gallery, g_ids, g_cams = (np.concatenate(both) for both in (
        (gallery, query[:5]), (g_ids, q_ids[:5]), (g_cams, q_cams[:5])
    ))
    g_cams[-1] = 9  # the fifth is of another camera, so it is another image, unless names say so
    given = query, gallery, q_ids, g_ids, q_cams, g_cams
    own = np.full(15, -1)
    own[:4] = np.arange(45, 49)
    result = evaluate_ranking(*given, protocol="all_gallery")
    assert result.mAP == pytest.approx(plain_map("all_gallery", *given, own=own), abs=1e-6)
    names = [f"g{n}" for n in range(50)]
    names[49], names[7] = "q4", "q6"
    own[[4, 6]] = 49, 7 if g_ids[7] == q_ids[6] else -1
    named = evaluate_ranking(
        *given, protocol="all_gallery", query_images=[f"q{n}" for n in range(15)],
        gallery_images=names,
    )
    assert named.mAP == pytest.approx(plain_map("all_gallery", *given, own=own), abs=1e-6)


def test_re_ranking_goes_with_every_protocol() -> None:
    for protocol in PROTOCOLS:
        plain = evaluate_ranking(*parts(), protocol=protocol)
        reranked = evaluate_ranking(*parts(), protocol=protocol, rerank=KReciprocal(k1=5, k2=2))
        assert reranked.mAP != plain.mAP


def test_arguments_that_cannot_be_are_named_with_what_is_meant() -> None:
    same = evaluate_ranking(*parts(), rerank=KReciprocal()).mAP
    assert evaluate_ranking(*parts(), rerank=True).mAP == same
    assert evaluate_ranking(*parts(), rerank=False).mAP == evaluate_ranking(*parts()).mAP
    for more, message in (
        ({"protocol": "best"}, "no protocol 'best'; choose one of cross_camera, other_cameras"),
        ({"rerank": 20}, "rerank is 20; give True for the usual settings"),
        ({"expand": 5}, "expand is 5; give QueryExpansion"),
        ({"top_k": "3"}, "top_k is '3'; an integer of at least 0 is needed"),
        ({"top_k": True}, "top_k is True; an integer of at least 0 is needed"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_ranking(*parts(), **more)
    query, gallery, q_ids, g_ids, q_cams, g_cams = parts()
    for more, message in (
        ({"query_cameras": q_cams}, "query_cameras are given without gallery_cameras; give both"),
        ({"gallery_cameras": g_cams}, "gallery_cameras are given without query_cameras"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_ranking(query, gallery, q_ids, g_ids, **more)
    with pytest.raises(UserError, match="query features are of type list; give an array or tensor"):
        evaluate_ranking(query.tolist(), gallery, q_ids, g_ids)
    with pytest.raises(UserError, match="cross_camera compares cameras; give query_cameras and"):
        evaluate_ranking(*parts()[:4], protocol="cross_camera")
    with pytest.raises(TypeError, match=r"evaluate_ranking\(\) has no argument 'topk'; did you mean"
                       " top_k"):
        evaluate_ranking(*parts(), topk=3)


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("query_identities", np.array([1, -1]).astype(np.uint8), "number 1 is 255; the largest"),
        ("gallery_identities", np.array([1, 200]).astype(np.int8), "number 1 is -56; labels are"),
        ("gallery_cameras", np.array([1, 2**63], np.uint64), "number 1 is 9223372036854775808"),
    ],
)  # fmt: skip
def test_labels_that_their_type_changed_are_refused(name, values, reason):
    labels = {"query_identities": [1, 2], "gallery_identities": [1, 2], "query_cameras": [0, 0],
              "gallery_cameras": [1, 1], name: values}
    with pytest.raises(UserError, match=f"{name}: {reason}"):
        evaluate_ranking(np.eye(2), np.eye(2), **labels)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_features_of_zeros_are_reported_once_with_their_rows(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    query, gallery, *labels = parts()
    query[3], gallery[[1, 4, 5, 6, 8, 9]] = 0.0, 0.0
    evaluate_ranking(query, gallery, *labels, protocol=protocol)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    if protocol != "random_gallery":  # of the first draw
        assert said[0].startswith("query features: only zeros in 1 row (3), which say nothing")
        assert said[1].startswith("gallery features: only zeros in 6 rows (1, 4, 5, 6, 8, ...), ")
