"""Files of other projects against the shipped recipes, which were written from the papers' code."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.recipes import named_recipe
from harness.config.signature import signature
from harness.config.sources import Setting
from svll.config import RECIPES, Config
from svll.migration.convert import PROJECTS
from svll.migration.page import PAGE, page
from svll.migration.recognition import read_foreign
from svll.migration.rows import literal

ADAM = {"OPTIMIZER_NAME": "Adam", "WARMUP_METHOD": "linear"}
STAGE1 = {**ADAM, "IMS_PER_BATCH": 64, "BASE_LR": 0.00035, "WARMUP_LR_INIT": 0.00001,
          "LR_MIN": "1e-6", "WEIGHT_DECAY": "1e-4", "WEIGHT_DECAY_BIAS": "1e-4", "MAX_EPOCHS": 120,
          "WARMUP_EPOCHS": 5, "CHECKPOINT_PERIOD": 120}
STAGE2 = {**ADAM, "IMS_PER_BATCH": 64, "BASE_LR": 0.000005, "WARMUP_ITERS": 10,
          "WARMUP_FACTOR": 0.1, "WEIGHT_DECAY": 0.0001, "WEIGHT_DECAY_BIAS": 0.0001,
          "LARGE_FC_LR": False, "MAX_EPOCHS": 60, "EVAL_PERIOD": 60, "BIAS_LR_FACTOR": 2,
          "STEPS": [30, 50], "GAMMA": 0.1}
MODEL = {"NAME": "ViT-B-16", "METRIC_LOSS_TYPE": "triplet", "IF_LABELSMOOTH": "on",
         "IF_WITH_CENTER": "no", "STRIDE_SIZE": [16, 16], "ID_LOSS_WEIGHT": 0.25,
         "TRIPLET_LOSS_WEIGHT": 1.0, "I2T_LOSS_WEIGHT": 1.0}
INPUT = {"SIZE_TRAIN": [256, 128], "SIZE_TEST": [256, 128], "PROB": 0.5, "RE_PROB": 0.5,
         "PADDING": 10, "PIXEL_MEAN": [0.5, 0.5, 0.5], "PIXEL_STD": [0.5, 0.5, 0.5]}
SQUARE = {"SIZE_TRAIN": [256, 256], "SIZE_TEST": [256, 256]}
REST = {"DATALOADER": {"SAMPLER": "softmax_triplet", "NUM_INSTANCE": 4, "NUM_WORKERS": 8},
        "TEST": {"EVAL": True, "IMS_PER_BATCH": 64, "NECK_FEAT": "before", "FEAT_NORM": "yes"}}


def clip_reid(
    name: str = "market1501", *, model: Any = (), pixels: Any = (), one: Any = (), two: Any = ()
) -> dict[str, Any]:
    """Return a configuration of CLIP-ReID for persons, with changes."""
    return {"MODEL": {**MODEL, **dict(model)}, "INPUT": {**INPUT, **dict(pixels)}, **REST,
            "SOLVER": {"STAGE1": {**STAGE1, **dict(one)}, "STAGE2": {**STAGE2, **dict(two)}},
            "DATASETS": {"NAMES": f"('{name}')", "ROOT_DIR": "('')"}}


def written(folder: Path, value: dict[str, Any]) -> Path:
    file = folder / "theirs.yml"
    file.write_text(yaml.safe_dump(value))
    return file


def built(recipe: str, *settings: tuple[str, Any]) -> Config:
    given = [Setting("data.root", "/data", "test"),
             *(Setting(key, value, "test") for key, value in settings)]
    return build(Config, [*named_recipe(recipe, Config, RECIPES), *given])


RESNET = {"NAME": "RN50", "ID_LOSS_WEIGHT": 1.0}
IMAGENET = {"PIXEL_MEAN": [0.485, 0.456, 0.406], "PIXEL_STD": [0.229, 0.224, 0.225]}
RN_STAGE2 = {"BASE_LR": 0.00035, "WARMUP_FACTOR": 0.01, "WEIGHT_DECAY": 0.0005,
             "WEIGHT_DECAY_BIAS": 0.0005, "MAX_EPOCHS": 120, "STEPS": [40, 70]}
CAMERAS = {"STRIDE_SIZE": [12, 12], "SIE_CAMERA": True, "SIE_COE": 1.0}
SSL = {"SSL_LOSS_WEIGHT": 0.8}
AUGMENTED = {"PROMPT_AUG_SCALE": 0.5, "PROMPT_AUG_METHOD": "mask"}
DROP = ("data.unlisted_views", "drop")  # as VeRi's reader there does


@pytest.mark.parametrize(
    ("theirs", "recipe", "more"),
    [
        (clip_reid(), "market1501+clipreid", ()),
        (clip_reid("occ_duke", model=CAMERAS), "occluded_duke+clipreid",
         (("model.sie", "camera"), ("model.stride", 12))),
        (clip_reid("msmt17", model=RESNET, pixels=IMAGENET, one={"MAX_EPOCHS": 60}, two=RN_STAGE2),
         "msmt17+clipreid+rn50", ()),
        (clip_reid("veri", pixels=SQUARE, one={"MAX_EPOCHS": 60}), "veri776+clipreid", (DROP,)),
        (clip_reid("VehicleID", pixels=SQUARE, one={"MAX_EPOCHS": 60, "IMS_PER_BATCH": 256},
                   two={"BASE_LR": 0.00005}), "vehicleid+clipreid", (("data.test", []),)),
        # SVLL-ReID's own
        (clip_reid("dukemtmc", model={**CAMERAS, "USE_SSL": True, "SSL_TYPE": "SIMCLR"},
                   one={"IMS_PER_BATCH": 256, **SSL, **AUGMENTED}, two=SSL), "dukemtmc", ()),
        (clip_reid("veri", model={**CAMERAS, "SIE_VIEW": True, "USE_SSL": True}, pixels=SQUARE,
                   one={"MAX_EPOCHS": 60, "SSL_LOSS_WEIGHT": 2.0, **AUGMENTED},
                   two={"IMS_PER_BATCH": 32, **SSL}), "veri776", (DROP,)),
        # the baseline: one stage
        ({**clip_reid(model={"ID_LOSS_WEIGHT": 1.0}), "SOLVER": STAGE2}, "market1501+baseline", ()),
    ],
)
def test_their_files_are_the_runs_of_the_shipped_recipes(
    theirs: dict[str, Any], recipe: str, more: tuple[Any, ...], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert signature(built(str(written(tmp_path, theirs)))) == signature(built(recipe, *more))
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_key_that_is_left_out_has_their_default(tmp_path: Path) -> None:
    config = built(str(written(tmp_path, {"MODEL": {"NAME": "ViT-B-16"},
                                          "SOLVER": {"STAGE1": None, "STAGE2": {"GAMMA": 0.5}},
                                          "DATASETS": None})))
    assert (config.data.height, config.data.width, config.stage2.instances) == (384, 128, 16)
    assert (config.stage1.epochs, config.stage2.lr, config.stage2.gamma) == (100, 3e-4, 0.5)
    assert (config.model.sie, config.data.name) == ("none", "market1501")


def test_what_cannot_be_kept_is_a_warning_with_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "theirs.yml"
    file.write_text("MODEL:\n  NAME: 'ViT-B-16'\n  IF_WITH_CENTER: 'yes'\nSOLVER:\n  STAGE2:\n"
                    "    WEIGHT_DECAY: 1e-4\n    WEIGHT_DECAY_BIAS: 0\n    BASE_LRR: 1.\n"
                    "    OPTIMIZER_NAME: SGD\n    BASE_LR: 0.008\n"
                    "TEST: {NECK_FEAT: before}\nDATALOADER: {SAMPLER: softmax_triplet}\n")
    config = built(str(file))
    assert config.stage2.lr == Config().stage2.lr  # not SGD's
    told = [one.getMessage().removeprefix(f"the result will differ from CLIP-ReID: {file}, ")
            for one in caplog.records if one.levelno == logging.WARNING]
    assert told == [
        "line 3: MODEL.IF_WITH_CENTER: 'yes' has no counterpart: there is no centre loss",
        "line 7: SOLVER.STAGE2.WEIGHT_DECAY_BIAS: 0 has no counterpart: stage2.weight_decay holds "
        "for all parameters",
        "line 8: SOLVER.STAGE2.BASE_LRR: 1.0 has no counterpart: CLIP-ReID has no such key; did "
        "you mean SOLVER.STAGE2.BASE_LR?",
        "line 9: SOLVER.STAGE2.OPTIMIZER_NAME: SGD has no counterpart: Adam with L2 weight decay "
        "trains here",
        "line 10: SOLVER.STAGE2.BASE_LR: 0.008 has no counterpart: a rate of SGD; Adam trains "
        "here: set stage2.lr",
    ]


def test_wrong_values_are_reported_with_file_line_and_both_keys(tmp_path: Path) -> None:
    file = tmp_path / "theirs.yml"
    file.write_text("MODEL: {NAME: RN50}\nSOLVER:\n  STAGE2:\n    BASE_LR: fast\n    GAMMA: 0.1\n")
    with pytest.raises(UserError) as caught:
        built(str(file))
    assert str(caught.value) == (f"{file}, line 4: SOLVER.STAGE2.BASE_LR: stage2.lr: expected a "
                                 "number, found 'fast'")
    file.write_text("MODEL: {NAME: RN50}\nINPUT: {SIZE_TRAIN: 256}\n")
    with pytest.raises(UserError, match=r"line 2: INPUT\.SIZE_TRAIN: 256 is not a valid value"):
        built(str(file))


def test_transreid_is_converted_and_says_what_it_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = built(str(written(tmp_path, {
        "MODEL": {"NAME": "transformer", "TRANSFORMER_TYPE": "vit_base_patch16_224_TransReID",
                  "NO_MARGIN": True, "IF_LABELSMOOTH": "off", "STRIDE_SIZE": [12, 12],
                  "SIE_CAMERA": True, "SIE_COE": 3.0, "JPM": True},
        "INPUT": INPUT, **REST, "DATASETS": {"NAMES": "('occ_duke')", "ROOT_DIR": "('../data')"},
        "SOLVER": {"OPTIMIZER_NAME": "SGD", "MAX_EPOCHS": 120, "BASE_LR": 0.008},
    })))
    two, model = config.stage2, config.model
    assert (config.data.name, two.epochs, two.margin, two.label_smoothing) == (
        "occluded_duke", 120, None, 0.0)
    assert (model.sie, model.sie_weight, model.stride) == ("camera", 3.0, 12)
    assert (config.stage1.epochs, two.i2t_weight, two.vss_weight) == (0, 0.0, 0.0)
    for words in ("MODEL.JPM: true", "along a cosine", "OPTIMIZER_NAME: SGD", "from ImageNet's"):
        assert words in caplog.text


def test_fast_reid_is_converted_with_the_file_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "Base.yml").write_text(
        "MODEL:\n  BACKBONE: {NAME: build_resnet_backbone, DEPTH: 50x}\n"
        "  LOSSES:\n    NAME: (\"CrossEntropyLoss\", \"TripletLoss\",)\n"
        "    CE: {EPSILON: 0.1, SCALE: 1.}\n    TRI: {MARGIN: 0.0, SCALE: 0.5}\n"
        "INPUT:\n  REA: {ENABLED: True, PROB: 0.4}\n  FLIP: {ENABLED: True}\n"
        "SOLVER: {AMP: {ENABLED: False}, MAX_EPOCH: 60, STEPS: [40, 90], WARMUP_ITERS: 2000}\n")
    file = tmp_path / "own.yml"
    file.write_text("_BASE_: Base.yml\nMODEL:\n  PIXEL_MEAN: [127.5, 127.5, 127.5]\n"
                    "SOLVER: {MAX_EPOCH: 120}\nDATASETS:\n"
                    "  NAMES: (\"Market1501\", \"DukeMTMC\",)\n  TESTS: (\"MSMT17\",)\n"
                    "TEST: {RERANK: {ENABLED: True, K1: 30}}\n")
    config = built(str(file))
    data, two = config.data, config.stage2
    assert (data.name, data.train, data.test) == (
        "market1501", ["market1501", "dukemtmc"], ["msmt17"])
    assert (two.epochs, two.milestones, two.margin, two.triplet_weight) == (
        120, [40, 90], None, 0.5)
    assert (two.erase, two.flip, two.pad) == (0.4, 0.5, 0)  # padding is off there
    assert (config.model.name, config.model.stride) == ("RN50-quickgelu", None)
    assert (data.mean, config.engine.precision) == ((0.5, 0.5, 0.5), "fp32")
    assert (config.evaluation.k1, config.evaluation.weight) == (30, 0.3)
    shown = read_foreign(file)
    assert shown is not None
    assert any("WARMUP_ITERS: 2000 has no counterpart: steps there" in one for one in shown.loud)
    assert any(one.startswith(f"{tmp_path}/Base.yml, line 10: ") for one in shown.loud)


@pytest.mark.parametrize(("depth", "is_loud"), [("base", False), ("small", True), (None, False)])
def test_a_transformer_of_fast_reid_that_is_no_base_is_reported(
    depth: str | None, is_loud: bool, tmp_path: Path
) -> None:
    backbone = {"NAME": "build_vit_backbone", **({"DEPTH": depth} if depth else {})}
    shown = read_foreign(written(tmp_path, {
        "MODEL": {"BACKBONE": backbone}, "SOLVER": {"AMP": {"ENABLED": False}, "MAX_EPOCH": 60},
    }))
    assert shown is not None
    assert any("of depth small" in one for one in shown.loud) is is_loud


def test_torchreid_is_converted(tmp_path: Path) -> None:
    config = built(str(written(tmp_path, {
        "model": {"name": "resnet50"},
        "data": {"sources": ["market1501"], "targets": ["dukemtmcreid"], "height": 256,
                 "width": 128, "transforms": ["random_flip", "random_erase"]},
        "loss": {"name": "triplet", "triplet": {"weight_x": 0.5}, "softmax":
                 {"label_smooth": False}},
        "sampler": {"train_sampler": "RandomIdentitySampler"},
        "train": {"lr": 0.0003, "max_epoch": 60, "batch_size": 32, "stepsize": [20]},
    })))
    data, two = config.data, config.stage2
    assert (data.name, data.test, two.batch, two.milestones) == (
        "market1501", ["dukemtmc"], 32, [20, 40])
    assert (two.id_weight, two.triplet_weight, two.label_smoothing) == (0.5, 1.0, 0.0)
    assert (two.erase, two.warmup_epochs, config.seed) == (0.5, 0, 1)


def test_a_recipe_of_ours_is_not_taken_for_theirs(tmp_path: Path) -> None:
    for value in ({"train": {"lr": 1}}, {"model": {"name": "x"}, "data": {"name": "folder"}}):
        assert read_foreign(written(tmp_path, value)) is None
    assert [read_foreign(file) for file in RECIPES.rglob("*.yaml") if read_foreign(file)] == []


def test_a_recipe_of_ours_may_extend_theirs(tmp_path: Path) -> None:
    written(tmp_path, clip_reid())
    (tmp_path / "mine.yaml").write_text("extends: theirs.yml\nstage2: {lr: 1.0e-5}\n")
    config = built(str(tmp_path / "mine.yaml"))
    assert (config.stage2.lr, config.stage1.batch) == (1e-5, 64)


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_their_defaults_make_a_configuration_of_ours(project: Any, tmp_path: Path) -> None:
    keys = [row.key for row in project.rows]
    assert len(keys) == len(set(keys))
    theirs = project.defaults
    settings = {ours: value for key, value in theirs.items() if (row := project.row(key))
                for ours, value in row.make(value, theirs).settings.items()}
    pairs = [Setting(key, value, "test") for key, value in {**settings, **project.base}.items()]
    assert build(Config, [Setting("data.root", "/data", "test"), *pairs])
    for row in project.rows:  # what the page promises
        for ours in filter(None, (one.strip() for one in row.ours.split(","))):
            assert any(key.endswith(ours) for key in named), ours


named = [f"{section}.{key}" for section, part in vars(Config()).items() if hasattr(part, "__dict__")
         for key in vars(part)] + ["seed"]


def test_the_page_is_that_of_the_tables() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m svll.migration.page"


@pytest.mark.parametrize(("text", "value"), [
    ("('market1501')", "market1501"), ("(30, 50)", [30, 50]), ("1e-6", 1e-6), ("'0'", "0"),
    ("50x", "50x"), ("__import__('os')", "__import__('os')"), ("[12, 12]", [12, 12]),
])
def test_texts_are_read_as_yacs_reads_them_and_never_executed(text: str, value: Any) -> None:
    assert literal(text) == value
