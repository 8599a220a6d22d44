"""What a run would cost: sizes without drawing, the groups as trained, costs that scale."""

from pathlib import Path

import pytest

from harness.config import build, parse_overrides, read_recipe
from harness.errors import UserError
from svll.config import RECIPES, Config
from svll.data.datasets import load_datasets
from svll.data.splits import split
from svll.estimate import Size, estimate, size_of

SMALL = Size(images=320, identities=20, cameras=6, views=1)


def config_of(name: str, *overrides: str) -> Config:
    settings = read_recipe(RECIPES / f"{name}.yaml", Config)
    return build(Config, [*settings, *parse_overrides(overrides)])


def test_a_world_is_counted_as_it_will_be_drawn(tmp_path: Path) -> None:
    config = config_of("synthetic_tiny", "data.validation=0")
    size, source = size_of(config)
    assert source == "to be drawn"
    drawn = split(load_datasets(config.data, tmp_path), validation=0.0, seed=1)
    labels = drawn.side_labels
    assert size == Size(
        len(drawn.train), drawn.identities, labels.camera_count, labels.view_count
    )


def test_files_are_counted_where_there_are_any(tmp_path: Path) -> None:
    config = config_of("synthetic_tiny", "data.validation=0")
    (dataset,) = load_datasets(config.data, tmp_path).train
    root = Path(dataset.train.paths[0]).parent.parent
    found, source = size_of(config_of("synthetic_tiny", "data.name=folder", f"data.root={root}"))
    assert source == "as found"
    # a quarter of the 8 identities is held back
    assert found.identities == 6
    assert found.images < len(dataset.train)


def test_a_benchmark_that_is_not_there_is_as_published() -> None:
    size, source = size_of(config_of("market1501"))
    assert source == "as published"
    assert size == Size(images=12_936, identities=751, cameras=6, views=1)
    with pytest.raises(UserError, match=r"the list's file is needed: data\.root=FILE\.csv"):
        size_of(config_of("synthetic_tiny", "data.name=list"))
    with pytest.raises(UserError, match=r"the folder of your images is needed: data\.root=DIR"):
        size_of(config_of("synthetic_tiny", "data.name=folder"))


def test_groups_have_the_learning_rates_of_the_schedule() -> None:
    # the published rates on the tiny model
    config = config_of(
        "synthetic_tiny", "stage1.epochs=120", "stage1.lr=3.5e-4", "stage1.warmup_epochs=5",
        "stage2.epochs=60", "stage2.lr=5e-6", "stage2.warmup_epochs=10",
    )
    prompts, weights, biases = estimate(config, SMALL).groups
    assert (prompts.stage, prompts.what, prompts.parameters) == ("stage1", "prompts", 20 * 4 * 128)
    assert prompts.lr_first == pytest.approx(7.8e-5)
    assert (weights.lr, weights.lr_first) == pytest.approx((5e-6, 9.5e-7))
    assert (biases.lr, biases.lr_first) == pytest.approx((1e-5, 1.9e-6))
    assert {group.weight_decay for group in (prompts, weights, biases)} == {1e-4}


def test_steps_are_those_of_both_stages() -> None:
    one, two = estimate(config_of("synthetic_tiny"), SMALL).costs
    # 320 images: 10 batches of 32, 20 of 16, two epochs of each
    assert (one.steps, two.steps) == (20, 40)
    assert one.hours == pytest.approx((one.before_s + 20 * one.step_s) / 3600)


def test_memory_grows_by_what_each_image_keeps() -> None:
    def memory(batch: int, *overrides: str) -> float:
        config = config_of("synthetic_tiny", f"stage2.batch={batch}", *overrides)
        return estimate(config, SMALL).costs[-1].memory_gb

    few, more, most = memory(16), memory(32), memory(64)
    assert (most - more) == pytest.approx(2 * (more - few), rel=1e-3)
    assert memory(16, "stage2.vss_weight=0") < few


def test_the_baseline_has_no_first_stage() -> None:
    found = estimate(config_of("synthetic_tiny", "stage1.epochs=0", "stage2.i2t_weight=0"), SMALL)
    assert {group.stage for group in found.groups} == {"stage2"}
    assert [cost.stage for cost in found.costs] == ["stage2"]
