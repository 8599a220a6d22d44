"""The shipped recipes against the published hyperparameters, and against each other."""

from typing import Any

import pytest

from harness.config import build, differences, parse_overrides, read_recipe
from svll.config import RECIPES, Config

PERSONS = ("market1501", "msmt17", "dukemtmc", "occluded_duke")
VEHICLES = ("veri776", "vehicleid")
EVERY = PERSONS + VEHICLES


def recipe(name: str, *overrides: str) -> Config:
    settings = read_recipe(RECIPES / f"{name}.yaml", Config)
    return build(Config, [*settings, *parse_overrides(["data.root=/data", *overrides])])


def changed(name: str, base: str) -> dict[str, Any]:
    """What a recipe has otherwise than another."""
    return {key: b for key, (_, b) in differences(recipe(base), recipe(name)).items()}


@pytest.mark.parametrize("name", PERSONS)
def test_persons_are_trained_by_the_defaults(name: str) -> None:
    config = recipe(name)
    assert differences(build(Config, []), config).keys() <= {"data.name", "data.root"}
    assert config.data.name == name
    one, two = config.stage1, config.stage2
    assert (one.lr, one.weight_decay, one.epochs, one.batch) == (3.5e-4, 1e-4, 120, 256)
    assert (one.warmup_epochs, one.warmup_lr, one.lr_min) == (5, 1e-5, 1e-6)
    assert (two.lr, two.weight_decay, two.epochs, two.batch, two.instances) == (
        5e-6, 1e-4, 60, 64, 4,
    )
    assert (two.warmup_epochs, two.warmup_factor, two.milestones, two.gamma) == (
        10, 0.1, [30, 50], 0.1,
    )
    assert (two.bias_lr_factor, two.id_weight, two.triplet_weight, two.i2t_weight) == (
        2.0, 0.25, 1.0, 1.0,
    )
    assert (one.lss_weight, two.vss_weight) == (0.8, 0.8)
    assert (config.model.sie, config.model.stride, config.model.noun) == ("camera", 12, "person")
    assert (config.data.height, config.data.width) == (256, 128)
    assert (config.engine.precision, config.seed) == ("bf16", 1234)


def test_vehicles_differ_as_published() -> None:
    veri, vehicle = recipe("veri776"), recipe("vehicleid")
    for config in (veri, vehicle):
        assert (config.stage1.epochs, config.stage1.batch, config.stage2.batch) == (60, 64, 32)
        assert (config.model.sie, config.model.noun) == ("camera_view", "vehicle")
        assert (config.data.height, config.data.width) == (256, 256)
    assert (veri.stage1.lss_weight, veri.stage2.vss_weight, veri.stage2.lr) == (2.0, 0.8, 5e-6)
    assert (vehicle.stage1.lss_weight, vehicle.stage2.vss_weight) == (0.8, 0.8)
    assert vehicle.stage2.lr == 5e-5
    assert vehicle.data.test == ["vehicleid_800", "vehicleid_1600", "vehicleid_2400"]


@pytest.mark.parametrize("name", EVERY)
def test_clip_reid_is_the_same_recipe_with_both_weights_at_zero(name: str) -> None:
    assert changed(f"{name}_clipreid", name) == {
        "stage1.lss_weight": 0.0, "stage2.vss_weight": 0.0,
    }


@pytest.mark.parametrize("name", EVERY)
def test_the_baseline_learns_no_prompts(name: str) -> None:
    config = recipe(f"{name}_baseline")
    assert config.stage1.epochs == 0
    assert (config.stage2.i2t_weight, config.stage2.vss_weight) == (0.0, 0.0)
    assert (config.stage2.id_weight, config.stage2.triplet_weight) == (1.0, 1.0)
    assert config.stage2.label_smoothing == (0.0 if name == "vehicleid" else 0.1)


@pytest.mark.parametrize("variant", ["clipreid", "baseline"])
@pytest.mark.parametrize("name", EVERY)
def test_the_resnet_is_trained_as_clip_reid_trains_it(name: str, variant: str) -> None:
    config = recipe(f"{name}_{variant}_rn50")
    stage = config.stage2
    assert (config.model.name, config.model.stride, config.model.sie) == (
        "RN50-quickgelu", None, "none",
    )
    assert (stage.lr, stage.weight_decay, stage.warmup_factor) == (3.5e-4, 5e-4, 0.01)
    assert (stage.epochs, stage.milestones, stage.batch) == (120, [40, 70], 64)
    assert (stage.id_weight, stage.vss_weight) == (1.0, 0.0)
    assert config.data.mean == (0.485, 0.456, 0.406)
    assert config.data.name == recipe(name).data.name


def test_occluders_stand_before_queries_only() -> None:
    world = recipe("synthetic_occluded").data.world
    assert (world.occlusion, world.query_occlusion) == (0.0, 0.75)
    assert changed("synthetic_occluded", "synthetic").keys() == {
        "data.world.occlusion", "data.world.query_occlusion",
    }
