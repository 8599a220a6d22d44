"""Test images that are counted: each once, and only of identities that a query asks for."""

from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import UserError
from svll.base.feature_file import FeatureGroup, write_features
from svll.evaluation.engine.feature_rows import JUNK
from svll.reports.figures.side_by_side import check_same, open_test_images


def group(
    identities: list[int], paths: list[str] | None = None, *, first: float = 0.0
) -> FeatureGroup:
    count = len(identities)
    features = np.arange(first, first + 2 * count, dtype=np.float32).reshape(count, 2) + 1
    return FeatureGroup(features, np.array(identities), np.arange(count), paths=paths)


def written(folder: Path, query: FeatureGroup, gallery: FeatureGroup) -> Path:
    write_features(
        folder / "features.h5", {"query": query, "gallery": gallery}, dataset="ours", model="m"
    )
    return folder


def test_junk_distractors_and_queries_of_the_gallery_are_not_counted(tmp_path: Path) -> None:
    query = group([7, 9, JUNK], ["a", "b", "c"], first=100)
    gallery = group([9, JUNK, 7, 0, 9], ["b", "j", "d", "x", "e"])
    with open_test_images(written(tmp_path, query, gallery)) as images:
        assert images.dataset == "ours"
        assert images.identities.tolist() == [9, JUNK, 7, JUNK, 9, 7, JUNK, JUNK]
        rows = images.rows()
        assert rows.identities.tolist() == [9, 7, 9, 7]
        assert rows.cameras.tolist() == [0, 2, 4, 0]
        expected = np.array([[1, 2], [5, 6], [9, 10], [101, 102]], np.float64)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.allclose(rows.block(0, 4).features, expected, atol=1e-6)
        one = images.rows(images.cameras == 0)
        assert one.identities.tolist() == [9, 7]


def test_without_paths_every_image_is_one_of_its_own(tmp_path: Path) -> None:
    with open_test_images(written(tmp_path, group([7]), group([7, 7]))) as images:
        assert len(images.rows()) == 3


def test_a_run_without_features_is_told_how_to_make_them(tmp_path: Path) -> None:
    told = f"{tmp_path}/features.h5: is missing; python launch/features.py {tmp_path} makes"
    with pytest.raises(UserError, match=told), open_test_images(tmp_path):
        pass


def test_runs_of_different_test_images_are_refused() -> None:
    labels = {Path("a"): (np.arange(3), np.zeros(3)), Path("b"): (np.arange(3), np.zeros(3))}
    check_same(labels)
    labels[Path("c")] = (np.arange(3), np.ones(3))
    with pytest.raises(UserError, match=r"^c: was tested on other images than a; only runs of one"):
        check_same(labels)
