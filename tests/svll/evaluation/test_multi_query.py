"""Multi-query against a loop over identities and cameras."""

import numpy as np

from svll.base.feature_file import FeatureGroup
from svll.evaluation.multi_query import average_queries


def made(seed, count):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 5)).astype(np.float32)
    return features, rng.integers(-1, 4, count), rng.integers(0, 3, count)


def mean_of(features, ids, cams, identity, camera):
    rows = features[(ids == identity) & (cams == camera)].astype(float)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)


def test_images_of_one_identity_and_camera_become_their_mean():
    features, ids, cams = made(0, 40)
    query = average_queries(FeatureGroup(features, ids, cams))
    found, identities, cameras = query.features, query.identities, query.cameras
    wanted = sorted({(i, c) for i, c in zip(ids.tolist(), cams.tolist(), strict=True) if i != -1})
    assert list(zip(identities.tolist(), cameras.tolist(), strict=True)) == wanted
    for row, (identity, camera) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(row, mean_of(features, ids, cams, identity, camera), atol=1e-6)


def test_further_images_stand_in_for_the_queries_where_there_are_some():
    features, ids, cams = made(1, 20)
    more = made(2, 9)
    query = average_queries(FeatureGroup(features, ids, cams), FeatureGroup(*more))
    found, identities, cameras = query.features, query.identities, query.cameras
    replaced = 0
    for row, identity, camera in zip(found, identities, cameras, strict=True):
        there = ((more[1] == identity) & (more[2] == camera)).any()
        replaced += there
        source = more if there else (features, ids, cams)
        np.testing.assert_allclose(row, mean_of(*source, identity, camera), atol=1e-6)
    assert 0 < replaced < len(found)
