"""A run's signature names its folder: it must not change when the code does."""

import pytest

from harness.sweeps.reading import Trial, read_sweep
from svll.config import RECIPES, Config


def trial_of(recipe: str, *words: str) -> Trial:
    """The one trial of a recipe, as both launchers name it."""
    (trial,) = read_sweep(recipe, schema=Config, recipes=RECIPES, overrides=words).trials
    return trial


VARIED: list[tuple[str, tuple[str, ...], str]] = [  # from before pydantic and composed recipes
    ("market1501", (), "c644c8501872"),
    ("market1501_clipreid", ("seed=7",), "b4f292c8992a"),
    ("msmt17_baseline_rn50", ("stage2.lr=1e-5", "stage2.warmup_factor=1E-2"), "065159224cbb"),
    ("veri776_clipreid_rn50", ("stage2.margin=null", "data.unlisted_views=drop"), "998749d7204e"),
    (
        "vehicleid_baseline",
        ("data.test=[vehicleid_800]",
         "stage2.milestones=[20, 40]"),
        "5de26bd83520",
    ),
    (
        "synthetic",
        ("stage1.lss_weight=0", "stage1.augment=swap_prompt",
         "model.weights=null"),
        "f9bedf9a7a22",
    ),
    (
        "synthetic",
        ("stage1.lss_weight=0.0", "stage1.augment=swap_prompt",
         "model.weights=~"),
        "f9bedf9a7a22",
    ),
    (
        "synthetic_tiny",
        ("data.world.query_occlusion=0.5",
         "data.world.kind=vehicle"),
        "b1183e3098ad",
    ),
    (
        "synthetic_tiny",
        ("run.runs=/elsewhere", "name=mine", "data.threads=3", "engine.zero=2",
         "engine.timeout=1", "data.root=/data", "run.tensorboard=no"),
        "df04291f1b1a",
    ),
    ("synthetic_tiny", (), "df04291f1b1a"),
    (
        "synthetic_occluded",
        ("engine.precision=bf16",
         "stage2.erase_area=[1e-2, 0.5]"),
        "230d890175d1",
    ),
    (
        "occluded_duke_clipreid",
        ("model.sie=camera", "model.stride=12",
         "evaluation.rerank=true", "evaluation.k1=25"),
        "e6a23c292f50",
    ),
    (
        "dukemtmc",
        ("evaluation.protocol=all_gallery", "stage1.train_head=on",
         "data.mean=[0, 0.5, 1]"),
        "2abaa4330ac4",
    ),
    ("vehicleid", ("stage2.vss_weight=0", "model.image_head_init=torch"), "d55d39008594"),
    (
        "market1501",
        ("stage2.vss_loss=simsiam", "evaluation.camera_filter=true",
         "stage1.lr=2"),
        "872861f63f3e",
    ),
]  # fmt: skip
CROSSED = {  # recipes of one benchmark and one or two parts, each once a file
    "dukemtmc_baseline": "7709757228fa",
    "dukemtmc_baseline_rn50": "e49f234a1b1c",
    "dukemtmc_clipreid": "f2da38fcbbfe",
    "dukemtmc_clipreid_rn50": "26800570a414",
    "market1501_baseline": "0ded3c2caefd",
    "market1501_baseline_rn50": "0d909e52e958",
    "market1501_clipreid": "d0983757125a",
    "market1501_clipreid_rn50": "e71cb4133d53",
    "msmt17_baseline": "a89cc7cfaef6",
    "msmt17_baseline_rn50": "77b54119899d",
    "msmt17_clipreid": "56f2f7bf16a5",
    "msmt17_clipreid_rn50": "f3dcff5829a4",
    "occluded_duke_baseline": "22877074fdf5",
    "occluded_duke_baseline_rn50": "6e5f31b22aad",
    "occluded_duke_clipreid": "eaf9a0565420",
    "occluded_duke_clipreid_rn50": "ec0e6ef2c412",
    "vehicleid_baseline": "7977f8004a50",
    "vehicleid_baseline_rn50": "260f3d9b1c38",
    "vehicleid_clipreid": "53b3c89021e9",
    "vehicleid_clipreid_rn50": "7ec23ada51f5",
    "veri776_baseline": "64566d5f36b9",
    "veri776_baseline_rn50": "deb2fc3a5972",
    "veri776_clipreid": "f7b631f361c5",
    "veri776_clipreid_rn50": "2f5b08c99c66",
}


@pytest.mark.parametrize(("recipe", "words", "signature"), VARIED)
def test_a_configuration_keeps_its_signature(
    recipe: str, words: tuple[str, ...], signature: str
) -> None:
    assert trial_of(recipe, *words).signature == signature


@pytest.mark.parametrize(("recipe", "signature"), CROSSED.items())
def test_a_recipe_keeps_its_signature_and_its_runs_folder(recipe: str, signature: str) -> None:
    trial = trial_of(recipe)
    assert (trial.signature, str(trial.run.folder)) == (signature, f"runs/{recipe}/{signature}")


def test_where_a_run_runs_is_no_part_of_its_signature() -> None:
    words = ["run.runs=/elsewhere", "name=mine", "data.threads=3", "engine.zero=2", "run.wandb=a"]
    assert trial_of("synthetic", *words).signature == trial_of("synthetic").signature
