"""What the tests of several commands begin with."""

import pytest

from svll.base.feature_file import write_features
from tests.launch.made_features import group


@pytest.fixture
def parts():
    return {"query": group(20, 1), "gallery": group(80, 2)}


@pytest.fixture
def file(tmp_path, parts):
    write_features(tmp_path / "features.h5", parts, dataset="toy", model="m")
    return tmp_path / "features.h5"
