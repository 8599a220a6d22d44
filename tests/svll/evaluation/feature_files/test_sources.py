"""Sources are ranked by the protocol asked for, where their query and gallery allow it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup, read_features, write_features
from svll.evaluation.feature_files.sources import open_source
from tests.launch.made_features import group


def test_a_gallery_is_drawn_where_query_and_gallery_are_one_set_alone(tmp_path: Path) -> None:
    side = FeatureGroup(np.ones((4, 2), np.float32), np.array([1, 1, 2, 2]), np.zeros(4, int))
    other = replace(side, identities=np.array([1, 2, 2, 2]))
    for name, query in (("one", side), ("two", other)):
        groups = {"query": query, "gallery": side}
        write_features(tmp_path / f"{name}.h5", groups, dataset="toy", model="m")
    with open_source(tmp_path / "one.h5", protocol="random_gallery") as source:
        assert source.protocol == "random_gallery"
    with (
        pytest.raises(UserError, match=r"two\.h5: the protocol random_gallery draws .* by cross_"),
        open_source(tmp_path / "two.h5", protocol="random_gallery"),
    ):
        pass


def test_shards_of_another_model_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = {"query": group(5, 1), "gallery": group(9, 2)}
    for name, model in (("a", "m1"), ("b", "m1"), ("c", "m2"), ("d", "")):
        write_features(tmp_path / f"{name}.h5", parts, dataset="toy", model=model)
    for shard, said in (("b", ""), ("d", ""), ("c", "name several models: m1, m2; only features")):
        caplog.clear()
        with open_source(tmp_path / "a.h5", shards=[tmp_path / f"{shard}.h5"]) as source:
            assert said in caplog.text
            assert bool(caplog.text) == bool(said)
            source.save(tmp_path / "whole.h5")
        assert read_features(tmp_path / "whole.h5").model == "m1"
