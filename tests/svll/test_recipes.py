"""The shipped recipes against the published hyperparameters, and against each other."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from harness.config.build import build
from harness.config.recipes import named_recipe, read_recipe
from harness.config.sources import parse_overrides
from harness.config.values import differences, value_at
from harness.sweeps.reading import read_sweep
from launch.slurm import METRICS
from svll.config import RECIPES, Config

PERSONS = ("market1501", "msmt17", "dukemtmc", "occluded_duke")
VEHICLES = ("veri776", "vehicleid")
EVERY = PERSONS + VEHICLES


@cache
def recipe(name: str, *overrides: str) -> Config:
    settings = named_recipe(name, Config, RECIPES)
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


COLUMNS = (
    "model.stride", "model.sie", "stage1.epochs", "stage1.batch", "stage2.epochs", "stage2.batch",
    "stage2.lr", "stage2.weight_decay", "stage2.warmup_factor", "stage2.id_weight",
    "stage2.i2t_weight", "stage2.label_smoothing",
)
CLIP_REID = {  # its configuration files, which have neither self-supervision
    ("persons", "clipreid"): (16, "none", 120, 64, 60, 64, 5e-6, 1e-4, 0.1, 0.25, 1.0, 0.1),
    ("veri776", "clipreid"): (16, "none", 60, 64, 60, 64, 5e-6, 1e-4, 0.1, 0.25, 1.0, 0.1),
    ("vehicleid", "clipreid"): (16, "none", 60, 256, 60, 64, 5e-5, 1e-4, 0.1, 0.25, 1.0, 0.1),
    ("persons", "clipreid+rn50"): (
        None, "none", 60, 64, 120, 64, 3.5e-4, 5e-4, 0.01, 1.0, 1.0, 0.1,
    ),
    ("veri776", "clipreid+rn50"): (
        None, "none", 60, 64, 120, 64, 3.5e-4, 5e-4, 0.01, 1.0, 1.0, 0.1,
    ),
    ("vehicleid", "clipreid+rn50"): (
        None, "none", 60, 256, 120, 64, 3.5e-4, 5e-4, 0.01, 1.0, 1.0, 0.0,
    ),
    # without a first stage; its batch is the benchmark's, and nobody's
    ("persons", "baseline"): (16, "none", 0, 256, 60, 64, 5e-6, 1e-4, 0.1, 1.0, 0.0, 0.1),
    ("veri776", "baseline"): (16, "none", 0, 64, 60, 64, 5e-6, 1e-4, 0.1, 1.0, 0.0, 0.1),
    ("vehicleid", "baseline"): (16, "none", 0, 64, 60, 64, 5e-5, 1e-4, 0.1, 1.0, 0.0, 0.0),
    ("persons", "baseline+rn50"): (
        None, "none", 0, 256, 120, 64, 3.5e-4, 5e-4, 0.01, 1.0, 0.0, 0.1,
    ),
    ("veri776", "baseline+rn50"): (
        None, "none", 0, 64, 120, 64, 3.5e-4, 5e-4, 0.01, 1.0, 0.0, 0.1,
    ),
    ("vehicleid", "baseline+rn50"): (
        None, "none", 0, 64, 120, 64, 3.5e-4, 5e-4, 0.01, 1.0, 0.0, 0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", ["clipreid", "clipreid+rn50", "baseline", "baseline+rn50"])
@pytest.mark.parametrize("name", EVERY)
def test_what_carries_clip_reids_name_has_its_settings(name: str, variant: str) -> None:
    config = recipe(f"{name}+{variant}")
    found = tuple(value_at(config, key) for key in COLUMNS)
    assert found == CLIP_REID["persons" if name in PERSONS else name, variant]
    assert (config.stage1.lss_weight, config.stage2.vss_weight) == (0.0, 0.0)
    others = {"stage1.lss_weight", "stage2.vss_weight"}
    if "rn50" in variant:
        assert config.model.name == "RN50-quickgelu"
        assert config.stage2.milestones == [40, 70]
        assert (config.data.mean, config.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        others |= {"model.name", "stage2.milestones", "data.mean", "data.std"}
    assert changed(f"{name}+{variant}", name).keys() <= {*COLUMNS, *others}


@pytest.mark.parametrize("name", EVERY)
def test_the_rows_sie_olp_are_the_words_that_the_recipe_says(name: str) -> None:
    text = (RECIPES / "parts" / "clipreid.yaml").read_text().replace("\n#", "")
    words = re.search(rf"of {'persons' if name in PERSONS else 'vehicles'}: (\S+ [^\s;]+)", text)
    assert words is not None
    model = recipe(f"{name}+clipreid", *words[1].rstrip(".").split()).model
    assert model == recipe(name).model


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("parts/*.yaml")))
def test_a_part_leaves_the_dataset_alone(name: str) -> None:
    found = {setting.key for setting in read_recipe(RECIPES / "parts" / f"{name}.yaml", Config)}
    assert not found & {"data.name", "data.root", "data.test", "data.width", "seed"}


def test_the_ablation_changes_nothing_but_the_published_weights_of_self_supervision() -> None:
    sweep = read_sweep(
        RECIPES.parents[1] / "sweeps" / "ablation.yaml", schema=Config, recipes=RECIPES,
        overrides=["data.root=/data"], metrics=METRICS,
    )
    found: dict[str, set[tuple[float, float]]] = {}
    for trial in sweep.trials:
        name = trial.point["recipe"]
        one, two = trial.config.stage1.lss_weight, trial.config.stage2.vss_weight
        found.setdefault(name, set()).add((one, two))
        rest = replace(
            trial.config, seed=1234, run=recipe(name).run,
            stage1=replace(trial.config.stage1, lss_weight=recipe(name).stage1.lss_weight),
            stage2=replace(trial.config.stage2, vss_weight=recipe(name).stage2.vss_weight),
        )
        assert rest == recipe(name)
    assert found.keys() == set(EVERY)
    for name, points in found.items():
        published = 2.0 if name == "veri776" else 0.8
        assert points == {(0.0, 0.0), (published, 0.0), (0.0, 0.8), (published, 0.8)}
    assert len(sweep.trials) == 6 * 4 * 3


def test_occluders_stand_before_queries_only() -> None:
    world = recipe("synthetic_occluded").data.world
    assert (world.occlusion, world.query_occlusion) == (0.0, 0.75)
    assert changed("synthetic_occluded", "synthetic").keys() == {
        "data.world.occlusion", "data.world.query_occlusion",
    }
