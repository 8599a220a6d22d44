"""What is shown of a run where many are: how it is called, its scores, and ranked images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageColor

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from harness.listing.notes import change_tags
from harness.runs.run import Run
from svll.config import RECIPES, Config
from svll.curves import about, final_scores, ranked_images
from tests.svll.reports.worlds import draw_images, plain_ranking, world, written


def config_of(recipe: str, *overrides: str) -> Config:
    settings = read_recipe(RECIPES / f"{recipe}.yaml", Config)
    return build(Config, [*settings, *parse_overrides(list(overrides))])


def test_a_trial_is_called_by_its_sweep_point_and_seed_and_tagged_with_recipe_and_dataset(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "loss_weights"
    folder.mkdir()
    point = {"recipe": "synthetic", "stage1.lr": 0.00123456789, "stage2.lr": 1e-5,
             "stage2.vss_weight": 1.0, "model.weights": None}
    (folder / "sweep.json").write_text(json.dumps({
        "recipes": ["synthetic", "synthetic_occluded"],
        "trials": [{"point": {}, "seed": 1, "signature": "a"},
                   {"point": point, "seed": 2, "signature": "0a1b2c3d4e5f"}],
    }))
    config = config_of("synthetic", "seed=2")
    found = about(Run(folder / "0a1b2c3d4e5f"), config)
    assert found.label == ("synthetic stage1.lr=0.001235 stage2.lr=1e-05 vss_weight=1 "
                           "weights=null seed=2")
    assert found.tags == ("loss_weights", "synthetic")
    assert found.config["stage2"]["vss_weight"] == config.stage2.vss_weight
    change_tags(folder, ["ablation", "synthetic"])
    (folder / "a").mkdir()
    change_tags(folder / "a", ["#best"])
    first = about(Run(folder / "a"), config)
    assert first.label == "seed=2"
    known = ("loss_weights", "synthetic", "synthetic_occluded", "ablation")
    assert first.tags == (*known, "best")
    (folder / "a/notes.json").write_text("{")
    assert about(Run(folder / "a"), config).tags == known


@pytest.mark.parametrize(("name", "recipe", "overrides", "label"), [
    ("synthetic", "synthetic", (), "seed=1234"),
    ("synthetic", "synthetic", ("stage2.vss_weight=0.5", "run.log_every=1", "seed=3"),
     "vss_weight=0.5 seed=3"),
    ("market1501", "market1501", ("data.root=/data", "stage1.lr=1e-3"), "lr=0.001 seed=1234"),
    ("of_my_own", "synthetic", ("stage2.vss_weight=0.5",), "seed=1234"),
])
def test_a_run_outside_of_a_sweep_is_called_by_what_differs_from_its_recipe(
    name: str, recipe: str, overrides: tuple[str, ...], label: str, tmp_path: Path
) -> None:
    found = about(Run(tmp_path / name / "0a1b2c3d4e5f"), config_of(recipe, *overrides))
    assert found.label == label
    assert found.tags[0] == name


@pytest.mark.parametrize("text", ["", "[]", '{"trials": 5}', '{"trials": [{"point": {}}]}'])
def test_a_damaged_sweep_json_costs_a_run_its_point_only(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert about(Run(tmp_path / "0a1b2c3d4e5f"), config_of("synthetic")).label == "seed=1234"


def test_the_scores_are_a_results_numbers_and_the_usual_ranks_of_cmc() -> None:
    result = {
        "mAP": 0.5, "cmc": {"1": 0.6, "2": 0.7, "5": 0.8}, "dataset": "d", "trained_on": ["d"],
        "tests": {"d": {"cmc": {"3": 0.7, "10": 0.9}}}, "reranked": {"mAP": 0.55},
    }
    assert final_scores(result) == {
        "result/mAP": 0.5, "result/cmc/1": 0.6, "result/cmc/5": 0.8,
        "result/tests/d/cmc/10": 0.9, "result/reranked/mAP": 0.55,
    }


def test_the_picture_shows_some_queries_and_their_nearest_images_as_a_plain_ranking_does(
    tmp_path: Path,
) -> None:
    source = world(folder=tmp_path / "images")
    draw_images(source)
    file = written(source, tmp_path / "world.h5")
    images = ranked_images(file, {}, 0.5)
    assert list(images) == ["result/ranked images of <world>"]
    [picture] = images.values()
    plain = plain_ranking(source)
    asked = [row for row, one in plain.items() if row in picture_rows(plain)]
    assert len(asked) == 8
    assert picture.shape == (16 + 8 * 122, 11 * 66, 3)
    for y, row in enumerate(asked):
        hits = zip(plain[row].rows[:10].tolist(), plain[row].matches[:10].tolist(), strict=True)
        cells = [(row, "#222222"),
                 *((near, "#1a9641" if match else "#d7191c") for near, match in hits)]
        for x, (number, colour) in enumerate(cells):
            frame, image = picture[16 + y * 122, x * 66], picture[16 + y * 122 + 25, x * 66 + 6]
            assert tuple(frame) == ImageColor.getrgb(colour)
            # images are (row, 99, 7), but for what JPEG changes
            assert np.abs(image.astype(int) - (number, 99, 7)).max() <= 3


def picture_rows(plain: dict) -> list[int]:  # type: ignore[type-arg]
    """Eight of the queries that are no junk, from the first to the last, evenly spread."""
    rows = sorted(plain)
    return [rows[round(place * (len(rows) - 1) / 7)] for place in range(8)]


def test_images_that_are_gone_are_grey_and_a_file_without_paths_is_refused(tmp_path: Path) -> None:
    source = world("random_gallery", folder=tmp_path / "images")
    same = type(source)(source.where, source.dataset, source.protocol, source.gallery,
                        source.gallery)
    [picture] = ranked_images(written(same, tmp_path / "a.h5"), {}, 2.0).values()
    assert tuple(picture[16 + 20, 20]) == ImageColor.getrgb("#cccccc")
    assert picture.shape[0] == 16 + 8 * 122
    with pytest.raises(UserError, match="has no paths of images"):
        ranked_images(written(world(), tmp_path / "b.h5"), {}, 0.5)
