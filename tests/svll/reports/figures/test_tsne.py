"""Pictures by t-SNE: the same each time, of the same images in all runs, with what they are of."""

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from harness.base.errors import UserError
from harness.reporting.drawing import as_svg
from svll.base.feature_file import read_features, write_features
from svll.evaluation.engine.feature_rows import JUNK
from svll.reports.figures import tsne as embedding
from svll.reports.figures.tsne import image_figure, layout, most_seen, text_figure
from tests.harness.reporting.test_drawing import without_ids
from tests.svll.reports.conftest import MakeRun
from tests.svll.reports.figures.test_text_features import encoded


@pytest.fixture(scope="module")
def other(make_run: MakeRun) -> Path:
    """A run whose features are less good."""
    return make_run("seed=2", spread=1.5)


def words(figure_svg: str) -> str:
    return " ".join(ElementTree.fromstring(figure_svg).itertext())


def test_neighbours_stay_neighbours() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8))
    labels = np.repeat(np.arange(4), 10)
    rows = centres[labels] + 0.05 * rng.normal(size=(40, 8))
    places = layout(rows / np.linalg.norm(rows, axis=1, keepdims=True), seed=3)
    assert places.shape == (40, 2)
    nearest = np.linalg.norm(places[:, None] - places, axis=2) + 1e9 * np.eye(40)
    assert (labels[nearest.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize("points", [4, 7])
def test_a_picture_of_few_points_has_a_smaller_perplexity(points: int) -> None:
    assert np.isfinite(layout(np.eye(points), seed=0)).all()


def test_too_few_points_are_an_error() -> None:
    with pytest.raises(UserError, match="3 points are too few for a picture by t-SNE: at least 4"):
        layout(np.eye(3), seed=0)


def test_identities_with_most_images_are_shown_and_the_seed_says_which_of_equals() -> None:
    labels = np.repeat([JUNK, 1, 2, 3, 4, 5], [50, 2, 9, 2, 2, 7])
    assert most_seen(labels, 2, 0).tolist() == [2, 5]
    thirds = {most_seen(labels, 3, seed).tolist()[2] for seed in range(30)}
    assert thirds == {1, 3, 4}
    assert len(most_seen(labels, 20, 0)) == 5


def test_a_figure_of_images_is_the_same_each_time_and_tells_its_numbers(
    run: Path, other: Path
) -> None:
    runs = {"baseline": other, "SVLL-ReID $x$": run}
    first, second = (image_figure(runs, identities=5, seed=4) for _ in range(2))
    assert without_ids(as_svg(first.figure)) == without_ids(as_svg(second.figure))
    shown = words(as_svg(first.figure))
    for title, numbers in first.numbers.items():
        assert title in shown
        assert f"silhouette {numbers['silhouette']:.3f}" in re.sub(r"\s+", " ", shown)
        assert numbers["ratio"] == numbers["between"] / numbers["within"]
    assert first.numbers["SVLL-ReID $x$"]["ratio"] > first.numbers["baseline"]["ratio"] > 1
    assert [len(axes.collections) for axes in first.figure.axes] == [6, 6]  # cameras
    named = [n for n in range(9) if f"camera {n}" in shown]
    assert named == [1, 2, 3, 4, 5, 6]  # as the dataset numbers them


def test_the_numbers_are_of_all_images_and_the_caption_says_of_how_many(run: Path) -> None:
    drawn = image_figure({"run": run}, identities=3)
    groups = read_features(run / "features.h5").groups.values()
    features = np.concatenate([group.features for group in groups])
    labels = np.concatenate([group.identities for group in groups])
    kept = labels > 0  # the drawn world's distractors are identity 0, its junk is -1
    expected = silhouette_score(features[kept], labels[kept], metric="cosine")
    assert drawn.numbers["run"]["silhouette"] == pytest.approx(expected, abs=1e-6)
    identities, counts = np.unique(labels[kept], return_counts=True)
    shown = np.sort(counts)[-3:].sum()
    assert f": {shown} images of the 3 identities with most images, of synthetic's" in drawn.caption
    assert f"all {kept.sum()} images of the {len(identities)} queried identities" in drawn.caption


def test_of_an_identity_with_many_images_some_are_drawn(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "IMAGES", 4)
    drawn = image_figure({"run": run}, identities=3)
    assert ": 12 images of the 3 identities with most images, at most 4 of each" in drawn.caption


def test_runs_of_other_test_images_are_not_shown_side_by_side(run: Path, tmp_path: Path) -> None:
    file = read_features(run / "features.h5")
    groups = {**file.groups, "query": file.groups["gallery"]}
    write_features(tmp_path / "features.h5", groups, dataset="synthetic", model="")
    with pytest.raises(UserError, match=f"{tmp_path}: was tested on other images than {run}"):
        image_figure({"a": run, "b": tmp_path})


def test_texts_are_joined_to_mean_images_where_these_are_there(make_run: MakeRun) -> None:
    run = make_run("seed=6")
    encoded(run)
    first, second = (text_figure({"run": run}) for _ in range(2))
    assert without_ids(as_svg(first.figure)) == without_ids(as_svg(second.figure))
    [axes] = first.figure.axes
    assert len(axes.lines) == 6  # identities that are trained on, of 8
    assert len(axes.collections) == 2
    assert "(6 of 6 shown)" in first.caption
    assert "joins each to the mean image" in first.caption
    own = first.numbers["run"]["to own images"]
    assert f"distance to own images {own:.3f}" in words(as_svg(first.figure))


def test_texts_stand_alone_where_image_features_are_gone(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "name" / run.name)
    drawn = text_figure({"run": folder})
    [axes] = drawn.figure.axes
    assert (len(axes.lines), len(axes.collections)) == (0, 1)
    assert "run: texts only: " in drawn.caption
    assert "there are no image features of any stage 1" in drawn.caption
    assert "joins" not in drawn.caption
    assert set(drawn.numbers["run"]) == {"between texts"}
