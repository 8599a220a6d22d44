"""The defaults are the method's, and what cannot work is refused with its place and a way out."""

import os
import typing
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness.base.errors import UserError
from harness.cluster.causes import with_next_step
from harness.config.build import build
from harness.config.casts import type_words
from harness.config.fields import field_types
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.config.values import to_mapping, to_yaml
from harness.runs.failures import one_line
from launch.slurm import METRICS
from svll.base.protocol_names import PROTOCOLS
from svll.config import RECIPES, Config
from svll.evaluation import KReciprocal


def config_of(*overrides: str) -> Config:
    return build(Config, parse_overrides(overrides))


def faults_of(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        config_of(*overrides)
    return str(caught.value).splitlines()


# --- defaults ---

METHOD: dict[str, Any] = {  # CLIP-ReID's and SVLL-ReID's numbers for persons
    "seed": 1234,
    "data.height": 256, "data.width": 128,
    "model.name": "ViT-B-16-quickgelu", "model.weights": "openai", "model.stride": 12,
    "model.prompt_tokens": 4, "model.noun": "person", "model.sie": "camera",
    "model.sie_weight": 1.0, "model.sie_unseen": "none", "model.predictor_hidden": 512,
    "stage1.lss_loss": "ntxent", "stage2.vss_loss": "ntxent",
    "model.head_hidden": 4096, "model.head_out": 256, "model.image_head_init": "released",
    "stage1.epochs": 120, "stage1.batch": 256, "stage1.lr": 3.5e-4, "stage1.lr_min": 1e-6,
    "stage1.warmup_epochs": 5, "stage1.warmup_lr": 1e-5, "stage1.weight_decay": 1e-4,
    "stage1.lss_weight": 0.8, "stage1.lss_temperature": 0.1, "stage1.augment": "mask",
    "stage1.augment_scale": 0.5, "stage1.augment_tokens": "all", "stage1.train_head": False,
    "stage2.epochs": 60, "stage2.batch": 64, "stage2.instances": 4, "stage2.lr": 5e-6,
    "stage2.bias_lr_factor": 2.0, "stage2.weight_decay": 1e-4, "stage2.warmup_epochs": 10,
    "stage2.warmup_factor": 0.1, "stage2.milestones": [30, 50], "stage2.gamma": 0.1,
    "stage2.id_weight": 0.25, "stage2.triplet_weight": 1.0, "stage2.i2t_weight": 1.0,
    "stage2.vss_weight": 0.8, "stage2.vss_temperature": 0.1, "stage2.sampled_classes": 0,
    "stage2.margin": 0.3,
    "stage2.label_smoothing": 0.1, "stage2.flip": 0.5, "stage2.pad": 10, "stage2.erase": 0.5,
    "stage2.erase_area": [0.02, 1 / 3], "stage2.vss_erase_area": [0.33, 1 / 3],
    "model.fingerprint": "",
    "engine.precision": "bf16", "engine.clipping": 0.0, "engine.accumulation": 1,
}  # fmt: skip


@pytest.mark.parametrize(("key", "expected"), METHOD.items())
def test_defaults_are_the_methods_for_persons(key: str, expected: Any) -> None:
    value: Any = config_of()
    for part in key.split("."):
        value = getattr(value, part)
    assert (list(value) if isinstance(value, tuple) else value) == expected


def test_every_key_of_both_stages_has_a_default_that_is_checked_here() -> None:
    keys = {k for k in field_types(Config) if k.startswith(("stage1.", "stage2.", "model."))}
    assert keys == {k for k in METHOD if k.startswith(("stage1.", "stage2.", "model."))}


# --- faults ---

FAULTY = {
    "seed=-1": "not negative, found -1",
    "data.validation=1.0": "less than 1, found 1.0",
    "data.validation=-0.1": "at least 0",
    "data.height=7": "between 8 and 4096, found 7",
    "data.width=9000000000000000000": "between 8 and 4096",
    "data.threads=-1": "between 0 and 1024",
    "stage2.pad=5000": "between 0 and 4096",
    "engine.timeout=1e300": "between 1e-06 and 525600, found 1e+300",
    "data.world.train_identities=1": "at least 2 identities",
    "data.world.shots=0": "at least 1",
    "data.world.occlusion=1.5": "between 0 and 1, found 1.5",
    "model.stride=0": "at least 1 pixel",
    "model.stride=17": "17 is larger than the patch of ViT-B-16-quickgelu (16)",
    "model.prompt_tokens=0": "between 1 and 16, found 0",
    "model.prompt_tokens=17": "between 1 and 16, found 17",
    "model.head_out=0": "between 1 and 16384, found 0",
    "model.head_hidden=100000": "between 1 and 16384",
    "stage1.epochs=-1": "not negative, found -1",
    "stage1.batch=0": "at least 1, found 0",
    "stage2.lr=-1": "finite and not negative, found -1",
    "stage1.lr=0": "greater than 0, found 0",
    "stage1.warmup_epochs=-1": "not negative",
    "stage1.lss_weight=-0.1": "not negative",
    "stage1.lss_temperature=.nan": "found nan",
    "stage1.lss_temperature=0": "greater than 0",
    "stage1.augment_scale=1.1": "between 0 and 1, found 1.1",
    "stage2.batch=62": "62 is not a multiple of stage2.instances=4",
    "stage2.batch=4": "at least 2 identities",
    "stage2.instances=0": "at least 1, found 0",
    "stage2.milestones=[20, 50, 40]": "must rise, found [20, 50, 40]",
    "stage2.vss_temperature=0": "greater than 0",
    "stage2.label_smoothing=2": "between 0 and 1, found 2",
    "stage2.flip=-1": "between 0 and 1",
    "data.unlisted_views=drop": "only veri776 has viewpoint lists, not synthetic",
    "data.name=cuhk": "no dataset 'cuhk'; choose one of synthetic, market1501",
    "stage2.erase=1.2": "between 0 and 1",
    "stage2.erase_area=[0.5, 0.2]": "two rising shares between 0 and 1, found [0.5, 0.2]",
    "stage2.erase_area=[0, 0.2]": "two rising shares",
    "stage2.vss_weight=-1": "not negative",
    "stage2.lr=.nan": "found nan",
    "stage1.augment_scale=.nan": "found nan",
    "stage2.weight_decay=.inf": "found inf",
    "engine.accumulation=0": "at least 1",
    "engine.clipping=-1": "not negative",
    "evaluation.every=-1": "not negative",
    "evaluation.batch=0": "at least 1",
    "run.log_every=0": "at least 1",
}


@pytest.mark.parametrize(("override", "reason"), FAULTY.items())
def test_an_impossible_value_is_refused_by_its_key(override: str, reason: str) -> None:
    (fault,) = faults_of(override)
    assert fault.startswith(f"command line, override 1: {override.partition('=')[0]}")
    assert reason in fault


TOGETHER = {
    ("engine.precision=fp16", "engine.zero=1"): "fp16 does not go with engine.zero=1",
    ("stage1.epochs=0",): "without prompts there is no text for stage2.i2t_weight=1.0",
    ("model.name=RN50-quickgelu", "model.sie=none"): "RN50-quickgelu has no patches",
    ("model.name=RN50-quickgelu", "model.stride=null"): "no class token to add it to",
    ("model.name=RN50-quickgelu", "model.stride=null", "model.sie=none", "engine.recompute=true"):
        "RN50-quickgelu has no blocks",
    ("data.train=[market1501, market1501]",): "has a dataset twice",
    ("data.test=[market]",): "no dataset 'market'; choose one of synthetic, market1501",
    ("data.roots={vehicleid: /data}",): "no dataset 'vehicleid'; choose one of synthetic",
    ("data.std=[0.5, 0.0, 0.5]",): "must be greater than 0",
    ("data.mean=[123.7, 116.3, 103.5]",): "between 0 and 1, found [123.7, 116.3, 103.5]",
    ("run.runs=''",): "is empty; name a file or folder",
    ("model.weights=''",): "is empty; name a file or folder",
    ("seed=18446744073709551616",): "expected an integer of 64 bits, found 18446744073709551616",
    ("data.world.query_occlusion=1.5",): "between 0 and 1",
    ("run.wandb=team/project",): "none of /",
}


@pytest.mark.parametrize(("overrides", "reason"), TOGETHER.items())
def test_values_that_do_not_go_together_are_refused(
    overrides: tuple[str, ...], reason: str
) -> None:
    (fault,) = faults_of(*overrides)
    assert reason in fault


def test_the_fine_tuned_baseline_needs_no_prompts() -> None:
    config = config_of("stage1.epochs=0", "stage2.i2t_weight=0")
    assert config.stage1.epochs == 0


def test_where_a_dataset_lies_and_how_its_moments_are_split_do_not_name_a_run() -> None:
    here = config_of("data.name=market1501", "data.root=/here", "engine.zero=2")
    there = config_of("data.name=market1501", "data.roots={market1501: /there}")
    assert signature(here) == signature(there)
    assert signature(here) != signature(config_of("data.name=market1501", "data.fingerprint=ab"))


WRONG_TYPES = {
    "stage1.augment=blur": "one of mask, swap, swap_prompt, mix, found 'blur'",
    "engine.zero=3": "one of 0, 1, 2, found 3",
    "engine.precision=fp8": "one of bf16, fp16, fp32",
    "model.sie=lens": "one of none, camera, view, camera_view",
    "stage1.epochs=many": "expected an integer, found 'many'",
    "stage1.epochs=1.5": "expected an integer, found 1.5",
    "stage1.lr=fast": "expected a number",
    "stage1.train_head=maybe": "expected true or false, found 'maybe'",
    "stage2.milestones=30": "expected a list",
    "stage2.erase_area=0.3": "expected a list",
    "stage2.erase_area=[0.1]": "a list of 2 numbers, found [0.1]",
    "stage2.vss_erase_area=[0.1, 0.2, 0.3]": "a list of 2 numbers",
    "stage1.lr=null": "expected a number, found None",
}


@pytest.mark.parametrize(("override", "reason"), WRONG_TYPES.items())
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(
    override: str, reason: str
) -> None:
    (fault,) = faults_of(override)
    assert override.partition("=")[0] in fault
    assert reason in fault


@pytest.mark.parametrize(
    ("name", "stride", "patch"),
    [("ViT-B-32", 33, 32), ("ViT-L-14-336-quickgelu", 15, 14), ("svll-tiny", 9, 8)],
)
def test_a_stride_that_leaves_gaps_between_patches_is_refused(
    name: str, stride: int, patch: int
) -> None:
    overrides = (f"model.name={name}", f"model.stride={stride}")
    (fault,) = faults_of(*overrides)
    assert f"({patch})" in fault
    assert config_of(overrides[0], f"model.stride={patch}").model.stride == patch
    assert config_of(overrides[0], "model.stride=null").model.stride is None


def test_all_faults_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "stage1:\n  lss_wieght: 0.5\n  epochs: many\nstage2:\n  batch: 62\n  flip: 2\nmodel: 5\n"
    )
    with pytest.raises(UserError) as caught:
        build(Config, read_recipe(recipe, Config))
    faults = str(caught.value).splitlines()
    assert len(faults) == 5
    for line, words in {
        2: "no key stage1.lss_wieght; did you mean stage1.lss_weight?",
        3: "stage1.epochs: expected an integer",
        5: "62 is not a multiple",
        6: "stage2.flip",
        7: "model is a section",
    }.items():
        (fault,) = [f for f in faults if f.startswith(f"{recipe}, line {line}: ")]
        assert words in fault


@pytest.mark.parametrize(
    "override",
    [
        "stage2.margin=null", "stage2.instances=1", "stage2.milestones=[]", "model.weights=null",
        "stage2.warmup_epochs=0", "stage1.warmup_epochs=0", "stage1.augment_scale=0",
        "stage2.erase_area=[0.2, 0.2]", "data.validation=0.5", "engine.zero=2", "stage1.lr_min=0",
        "stage2.vss_weight=0", "stage1.lss_weight=0", "evaluation.every=0",
    ],
)
def test_values_at_the_edge_of_what_works_are_taken(override: str) -> None:
    config_of(override)


# --- what the harness uses ---


def test_sweeps_are_ranked_by_a_metric_that_results_have() -> None:
    assert Config.experiment.metric == "validation.mAP"
    assert {Config.experiment.metric, *Config.experiment.columns.values()} <= set(METRICS)


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate", "out of memory"])
def test_a_gpu_without_memory_names_the_key_of_the_batch(message: str) -> None:
    line = one_line(torch.OutOfMemoryError(message))
    assert with_next_step(line, Config.experiment.advice) == (
        f"{line}; the GPU's memory is too small: lower stage2.batch, or use engine.precision=bf16"
    )


# --- signature and recipes ---


@pytest.mark.parametrize(
    "override",
    [
        "data.check=false", "data.threads=3", "data.device=cpu", "engine.compile=null",
        "evaluation.batch=7", "run.runs=elsewhere",
        "run.name=x", "run.experiment=a.b", "run.log_every=1", "run.tensorboard=false",
        "run.wandb=a project", "run.keep_checkpoints=true",
    ],
)
def test_where_and_how_fast_a_run_runs_is_not_part_of_what_it_is(override: str) -> None:
    assert signature(config_of(override)) == signature(config_of())


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "data.fingerprint=ab12", "data.world.seed=2", "data.validation=0.25",
        "model.stride=16",
        "stage1.lss_weight=0", "stage1.augment=mix", "stage2.vss_weight=0", "stage2.margin=null",
        "stage2.erase_area=[0.02, 0.4]", "engine.precision=fp32", "evaluation.rerank=true",
    ],
)
def test_what_can_change_a_result_is_part_of_the_signature(override: str) -> None:
    assert signature(config_of(override)) != signature(config_of())


def test_the_start_of_the_image_head_names_a_run_only_where_there_is_one_as_released() -> None:
    def signed(*words: str) -> bool:
        mapping = to_mapping(config_of(*words), with_runtime=False)
        return "image_head_init" in mapping["model"]

    torchs = "model.image_head_init=torch"  # the way of runs that were made before there was a key
    for words in (["stage2.vss_weight=0"], ["stage2.vss_loss=simsiam"], [torchs]):
        assert not signed(*words)
    assert signed()
    assert signature(config_of(torchs)) != signature(config_of())
    assert signature(config_of(torchs, "stage2.vss_weight=0")) == (
        signature(config_of("stage2.vss_weight=0"))
    )


def test_the_configuration_of_a_run_means_what_it_meant_when_it_was_written(
    tmp_path: Path,
) -> None:
    whole = to_mapping(config_of())
    del whole["model"]["image_head_init"], whole["evaluation"]["protocol"]
    whole["evaluation"]["camera_filter"] = False
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
    found = build(Config, read_recipe(tmp_path / "config.yaml", Config))
    assert found.model.image_head_init == "torch"
    assert found.evaluation.protocol == "all_gallery"
    (tmp_path / "recipe.yaml").write_text("model: {noun: vehicle}\n")  # not a whole tree
    found = build(Config, read_recipe(tmp_path / "recipe.yaml", Config))
    assert found.model.image_head_init == "released"


def test_runs_made_with_the_camera_filter_load_and_keep_their_names() -> None:
    hashed = to_mapping(Config(), with_runtime=False)["evaluation"]
    assert hashed == {  # as before evaluation.protocol took its place
        "every": 1, "camera_filter": True, "rerank": False, "feature_dtype": "float32",
    }
    assert signature(config_of("evaluation.camera_filter=true")) == signature(config_of())
    with pytest.raises(UserError, match=r"evaluation\.camera_filter: was removed; evaluation\."
                       "protocol=all_gallery"):
        config_of("evaluation.camera_filter=false")
    named = {signature(config_of(f"evaluation.protocol={name}")) for name in PROTOCOLS}
    assert len(named | {signature(config_of())}) == 5


def test_re_ranking_has_the_same_defaults_everywhere_and_needs_to_be_asked_for() -> None:
    used = Config().evaluation
    assert (used.k1, used.k2, used.weight) == astuple(KReciprocal())
    again = config_of("evaluation.rerank=true", "evaluation.k1=20", "evaluation.weight=0.3")
    assert signature(again) == signature(config_of("evaluation.rerank=true"))
    assert signature(config_of("evaluation.rerank=true", "evaluation.k2=5")) != signature(again)
    for key, message in {
        "k1=5": r"rerank: evaluation\.k1, k2 and weight have no effect without it",
        "weight=2": "weight: must lie between 0 and 1, found 2",
        "k2=0": "k2: must be at least 1, found 0",
    }.items():
        with pytest.raises(UserError, match=message):
            config_of(f"evaluation.{key}")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_being_written(recipe: Path, tmp_path: Path) -> None:
    settings = read_recipe(recipe, Config)
    if not any(s.key == "data.root" for s in settings):
        settings += parse_overrides(["data.root=/data"])
    config = build(Config, settings)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = build(Config, read_recipe(tmp_path / "config.yaml", Config))
    assert signature(again) == signature(config)
    assert again == config


def test_every_recipe_says_how_it_is_run() -> None:
    for recipe in RECIPES.glob("*.yaml"):
        assert f"--recipe {recipe.stem}" in recipe.read_text()
        assert yaml.safe_load(recipe.read_text())


# --- paths ---


def test_home_and_variables_are_expanded_alike_in_every_key_of_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISK", str(tmp_path))
    words = ("data.root={}", "run.runs={}", "model.weights={}", 'data.roots={{msmt17: "{}"}}')
    for place in ("~/x", "$HOME/x", "$DISK/x", "${DISK}/x"):
        config = config_of(*(word.format(place) for word in words))
        assert {config.data.root, config.run.runs, config.model.weights,
                *config.data.roots.values()} == {str(tmp_path / "x")}
    assert signature(config_of("model.weights=~/x")) == (
        signature(config_of(f"model.weights={tmp_path}/x"))
    )
    for stage in ("$DISK", "${DISK}/x"):  # that of each node
        config = config_of(f"data.stage={stage}")
        assert config.data.stage == stage
        assert yaml.safe_load(to_yaml(config))["data"]["stage"] == stage
    monkeypatch.delenv("DISK")
    assert faults_of("data.root=$DISK/x", "run.runs=$DISK", "model.weights=~nobody-here/x") == [
        "command line, override 1: data.root: $DISK/x: $DISK is not known on this machine",
        "command line, override 3: model.weights: ~nobody-here/x: ~nobody-here is not known on "
        "this machine",
        "command line, override 2: run.runs: $DISK: $DISK is not known on this machine",
    ]


def test_names_that_no_folder_can_have_are_refused() -> None:
    assert faults_of("run.name=a/b") == [
        "command line, override 1: run.name: 'a/b' must be the name of a folder in run.runs, not a "
        "path"
    ]
    for word in ("run.name=..", 'run.name="a\\0"', 'data.root="a\\0"', 'data.stage="a\\0"',
                 'run.runs="~\\0"'):
        assert len(faults_of(word)) == 1


def test_a_folder_that_is_not_utf_8_is_kept_in_the_configuration(tmp_path: Path) -> None:
    root = os.fsdecode(b"/data/\xb2\xe2")
    text = to_yaml(config_of(f"data.root={root}"))
    text.encode()  # the file is UTF-8
    (tmp_path / "config.yaml").write_text(text)
    assert build(Config, read_recipe(tmp_path / "config.yaml", Config)).data.root == root


NUMBERS = [key for key, kind in field_types(Config).items() if "number" in type_words(kind)]


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_may_be_infinite_or_none_at_all(key: str) -> None:
    for value in (".nan", ".inf", "-.inf", "1e400", "nan", "1_0", "0.1.2"):
        is_list = type_words(field_types(Config)[key]).startswith("a list")
        count = len(typing.get_args(field_types(Config)[key]))
        text = f"[{', '.join([value] * count)}]" if is_list else value
        [fault] = faults_of(f"{key}={text}")
        assert fault.startswith(f"command line, override 1: {key}: expected ")
    assert len(NUMBERS) > 30
