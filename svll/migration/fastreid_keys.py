"""Keys of fast-reid, with its defaults, and those of its first versions."""

from typing import Any

from svll.migration.rows import (
    Made,
    Project,
    Row,
    Theirs,
    by,
    listed,
    only,
    same,
    size,
    tested_on,
    trained_on,
    triple,
    truth,
    unused,
)
from svll.migration.yacs_keys import AFTER_RUN, WITHOUT_PROMPTS, like_weights, of_adam

LOSSES = {"CrossEntropyLoss": "stage2.id_weight", "TripletLoss": "stage2.triplet_weight"}


def _encoder(value: Any, theirs: Theirs) -> Made:
    depth = str(theirs.get("MODEL.BACKBONE.DEPTH", "")).removesuffix("x")
    if "vit" in str(value).lower():
        other = f"of depth {depth}" if depth not in ("", "base") else ""
        return Made({"model.name": "ViT-B-16-quickgelu"}, other, is_loud=bool(other))
    name = {"50": "RN50-quickgelu", "101": "RN101-quickgelu"}.get(depth)
    if "resnet" not in str(value).lower() or name is None:
        return Made(note="not an encoder of CLIP; see model.name", is_loud=True)
    return Made({"model.name": name, "model.stride": None, "model.sie": "none"})


def _stride(value: Any, theirs: Theirs) -> dict[str, Any]:
    is_vit = "vit" in str(theirs.get("MODEL.BACKBONE.NAME")).lower()
    return {"model.stride": value[0], "model.sie": "none"} if is_vit else {}


def _losses(value: Any, theirs: Theirs) -> Made:
    names = listed(value)
    others = [name for name in names if name not in LOSSES]
    scales = {"CrossEntropyLoss": "CE", "TripletLoss": "TRI"}
    weights = {ours: theirs.get(f"MODEL.LOSSES.{scales[name]}.SCALE", 1.0) if name in names else 0.0
               for name, ours in LOSSES.items()}
    return Made(weights, f"{', '.join(map(str, others))}: not computed here" if others else "",
                bool(others))


def _where(switch: str, ours: str) -> Any:
    """Return a function for a number that is 0 where its switch is off."""
    return lambda value, theirs: {ours: value if truth(theirs[switch]) else type(value)(0)}


def _precision(value: Any, _: Theirs) -> dict[str, Any]:
    return {} if truth(value) else {"engine.precision": "fp32"}


def _smoothing(value: Any, _: Theirs) -> Made:
    if value < 0:
        return Made(note="adaptive smoothing is not computed here", is_loud=True)
    return Made({"stage2.label_smoothing": value})


def _filled(_: Any, theirs: Theirs) -> Made:
    return Made(note="erased areas are filled with noise",
                is_loud=truth(theirs["INPUT.REA.ENABLED"]))


def _reranking(ours: str) -> Any:
    return lambda value, theirs: {ours: value} if truth(theirs["TEST.RERANK.ENABLED"]) else {}


OFF = {
    "MODEL.BACKBONE.WITH_IBN": "instance normalisation", "MODEL.BACKBONE.WITH_SE": "squeeze and "
    "excitation", "MODEL.BACKBONE.WITH_NL": "non-local blocks", "INPUT.AUTOAUG.ENABLED":
    "AutoAugment", "INPUT.AUGMIX.ENABLED": "AugMix", "INPUT.CJ.ENABLED": "colour jitter",
    "INPUT.RPT.ENABLED": "random patches", "INPUT.AFFINE.ENABLED": "affine augmentation",
    "INPUT.DO_AUTOAUG": "AutoAugment", "INPUT.DO_AUGMIX": "AugMix", "INPUT.DO_CJ": "colour jitter",
    "INPUT.DO_AFFINE": "affine augmentation", "MODEL.LOSSES.TRI.NORM_FEAT": "normalisation before "
    "the triplet loss", "SOLVER.SWA.ENABLED": "stochastic weight averaging",
    "DATASETS.COMBINEALL": "training on test images", "TEST.PRECISE_BN.ENABLED": "precise BN",
    "TEST.FLIP.ENABLED": "features of flipped images", "SOLVER.CLIP_GRADIENTS.ENABLED":
    "clipping for each parameter; engine.clipping limits the norm of all",
}
"""What would have to be switched on, and is not here."""
FAST_REID = Project("fast-reid", (
    only("MODEL.META_ARCHITECTURE", ("Baseline",), "one encoder and its classifiers", "Baseline"),
    Row("MODEL.BACKBONE.NAME", "model.name", _encoder, "build_resnet_backbone",
        "with `MODEL.BACKBONE.DEPTH`; CLIP's encoder of this size"),
    unused("MODEL.BACKBONE.DEPTH", "in `model.name`", "50x"),
    by("MODEL.BACKBONE.STRIDE_SIZE", "model.stride", _stride, [16, 16], "of a ViT"),
    only("MODEL.BACKBONE.LAST_STRIDE", (1,), "the last block of a ResNet has stride 1", 1),
    only("MODEL.BACKBONE.NORM", ("BN", "syncBN"), "batch normalisation over all ranks"),
    only("MODEL.BACKBONE.PRETRAIN", (True,), "training starts from CLIP's weights"),
    unused("MODEL.BACKBONE.PRETRAIN_PATH", "CLIP's weights from a file: model.weights=FILE"),
    unused("MODEL.BACKBONE.FEAT_DIM", "the encoder has it"),
    *(only(f"MODEL.BACKBONE.{key}", (0.0,), "nothing is dropped in the encoder")
      for key in ("DROP_PATH_RATIO", "DROP_RATIO", "ATT_DROP_RATE")),
    only("MODEL.HEADS.NAME", ("EmbeddingHead", "BNneckHead"), "batch normalisation and a linear "
         "classifier"),
    only("MODEL.HEADS.NORM", ("BN", "syncBN"), "batch normalisation over all ranks"),
    only("MODEL.HEADS.WITH_BNNECK", (True,), "batch normalisation before classifiers", False),
    only("MODEL.HEADS.NECK_FEAT", ("before",), "features are those before batch normalisation",
         "before"),
    only("MODEL.HEADS.POOL_LAYER", ("GlobalAvgPool", "Identity", "avgpool"), "CLIP's own pooling",
         "GlobalAvgPool"),
    only("MODEL.HEADS.CLS_LAYER", ("Linear",), "classifiers are linear", "Linear"),
    only("MODEL.HEADS.EMBEDDING_DIM", (0,), "features have the encoder's width", 0),
    *(unused(f"MODEL.HEADS.{key}", why) for key, why in {
        "NUM_CLASSES": "counted from the images", "SCALE": "of margin classifiers",
        "MARGIN": "of margin classifiers"}.items()),
    Row("MODEL.LOSSES.NAME", "stage2.id_weight, stage2.triplet_weight", _losses,
        ["CrossEntropyLoss"], "0 for those left out, else `CE.SCALE` and `TRI.SCALE`"),
    Row("MODEL.LOSSES.CE.EPSILON", "stage2.label_smoothing", _smoothing, 0.0, "not adaptive (-1)"),
    unused("MODEL.LOSSES.CE.ALPHA", "of adaptive smoothing"),
    unused("MODEL.LOSSES.CE.SCALE", "in `stage2.id_weight`"),
    by("MODEL.LOSSES.TRI.MARGIN", "stage2.margin",
       lambda value, _: {"stage2.margin": value if value > 0 else None}, 0.3, "0 is null: soft"),
    only("MODEL.LOSSES.TRI.HARD_MINING", (True,), "the hardest in the batch are compared", False),
    unused("MODEL.LOSSES.TRI.SCALE", "in `stage2.triplet_weight`"),
    only("MODEL.WEIGHTS", ("",), "svll.load and launch/evaluate.py --weights read weights"),
    unused("MODEL.DEVICE", "a GPU where there is one; CUDA_VISIBLE_DEVICES= is the CPU"),
    by("MODEL.PIXEL_MEAN", "data.mean", triple("data.mean", 255), [123.675, 116.28, 103.53],
       "divided by 255"),
    by("MODEL.PIXEL_STD", "data.std", triple("data.std", 255), [58.395, 57.12, 57.375],
       "divided by 255"),
    by("INPUT.SIZE_TRAIN", "data.height, data.width", size, [256, 128]),
    Row("INPUT.SIZE_TEST", "", lambda value, theirs: Made(
        note="one size for training and test (data.height, data.width)",
        is_loud=list(value) != list(theirs["INPUT.SIZE_TRAIN"])), [256, 128], "that of training"),
    unused("INPUT.FLIP.ENABLED", "in `stage2.flip`", False),
    by("INPUT.FLIP.PROB", "stage2.flip", _where("INPUT.FLIP.ENABLED", "stage2.flip"), 0.5,
       "0 unless `INPUT.FLIP.ENABLED`"),
    unused("INPUT.PADDING.ENABLED", "in `stage2.pad`", False),
    by("INPUT.PADDING.SIZE", "stage2.pad", _where("INPUT.PADDING.ENABLED", "stage2.pad"), 10,
       "0 unless `INPUT.PADDING.ENABLED`"),
    only("INPUT.PADDING.MODE", ("constant",), "black pixels", "constant"),
    unused("INPUT.REA.ENABLED", "in `stage2.erase`", False),
    by("INPUT.REA.PROB", "stage2.erase", _where("INPUT.REA.ENABLED", "stage2.erase"), 0.5,
       "0 unless `INPUT.REA.ENABLED`"),
    Row("INPUT.REA.VALUE", "", _filled, [123.675, 116.28, 103.53],
        "erased areas are filled with noise, there with this colour"),
    by("DATASETS.NAMES", "data.name, data.train", trained_on, ["Market1501"]),
    by("DATASETS.TESTS", "data.test", tested_on, remark="where they are others than trained on"),
    only("DATALOADER.SAMPLER_TRAIN", ("NaiveIdentitySampler",), "batches hold K images of each "
         "identity", "TrainingSampler"),
    same("DATALOADER.NUM_INSTANCE", "stage2.instances", 4),
    unused("DATALOADER.NUM_WORKERS", "data.threads, by default all cores"),
    by("SOLVER.AMP.ENABLED", "engine.precision", _precision, False, "false is fp32; true is the "
       "default, bf16"),
    only("SOLVER.OPT", ("Adam",), "Adam with L2 weight decay trains here", "Adam"),
    of_adam("SOLVER.BASE_LR", "stage2.lr", 3e-4, "SOLVER.OPT"),
    same("SOLVER.MAX_EPOCH", "stage2.epochs", 120),
    same("SOLVER.BIAS_LR_FACTOR", "stage2.bias_lr_factor", 1.0),
    only("SOLVER.HEADS_LR_FACTOR", (1.0,), "classifiers have the rate of all weights", 1.0),
    same("SOLVER.WEIGHT_DECAY", "stage2.weight_decay", 0.0005),
    like_weights("SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.WEIGHT_DECAY"),
    like_weights("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.WEIGHT_DECAY"),
    only("SOLVER.SCHED", ("MultiStepLR",), "the rate falls at stage2.milestones", "MultiStepLR"),
    same("SOLVER.STEPS", "stage2.milestones", [30, 55]),
    same("SOLVER.GAMMA", "stage2.gamma", 0.1),
    *(unused(f"SOLVER.{key}", "of the cosine schedule") for key in ("ETA_MIN_LR", "DELAY_EPOCHS")),
    same("SOLVER.WARMUP_FACTOR", "stage2.warmup_factor", 0.1),
    only("SOLVER.WARMUP_ITERS", (0,), "steps there; set stage2.warmup_epochs", 1000),
    only("SOLVER.WARMUP_METHOD", ("linear",), "the warm-up is linear", "linear"),
    only("SOLVER.FREEZE_ITERS", (0,), "all layers train from the first step", 0),
    only("SOLVER.MAX_ITER", (), "of first versions, in steps; set stage2.epochs"),
    same("SOLVER.IMS_PER_BATCH", "stage2.batch", 64, "over all GPUs, as here"),
    *(unused(f"SOLVER.{key}", why) for key, why in {
        "MOMENTUM": "of SGD", "NESTEROV": "of SGD", "CHECKPOINT_PERIOD": "a checkpoint after each "
        "epoch and every ten minutes (run.save_every)", "LOG_PERIOD": "lines of the metric log: "
        "run.log_every", "CLIP_GRADIENTS.CLIP_TYPE": "see ENABLED",
        "CLIP_GRADIENTS.CLIP_VALUE": "see ENABLED", "CLIP_GRADIENTS.NORM_TYPE": "see ENABLED"
    }.items()),
    *(only(key, (False,), f"not here: {what}") for key, what in OFF.items()),
    unused("TEST.EVAL_PERIOD", "the test set is used once, at the end; validation: "
           "data.validation and evaluation.every"),
    same("TEST.IMS_PER_BATCH", "evaluation.batch", 64),
    only("TEST.METRIC", ("cosine",), "features are L2-normalised", "cosine"),
    only("TEST.AQE.ENABLED", (False,), "launch/evaluate.py FILE --expand N --alpha A", False),
    *(unused(f"TEST.AQE.{key}", "see ENABLED") for key in ("ALPHA", "QE_TIME", "QE_K")),
    by("TEST.RERANK.ENABLED", "evaluation.rerank",
       lambda value, _: {"evaluation.rerank": truth(value)}, False),
    by("TEST.RERANK.K1", "evaluation.k1", _reranking("evaluation.k1"), 20, "with re-ranking"),
    by("TEST.RERANK.K2", "evaluation.k2", _reranking("evaluation.k2"), 6, "with re-ranking"),
    by("TEST.RERANK.LAMBDA", "evaluation.weight", _reranking("evaluation.weight"), 0.3,
       "with re-ranking"),
    unused("TEST.ROC.ENABLED", "launch/verify.py FILE"),
    unused("OUTPUT_DIR", "runs lie in runs/NAME/ID; elsewhere: run.runs=FOLDER"),
    unused("CUDNN_BENCHMARK", "changes no result"),
    unused("VIS_PERIOD", AFTER_RUN),
), WITHOUT_PROMPTS, ("training starts from CLIP's weights, there from ImageNet's",))
