"""Keys of CLIP-ReID, SVLL-ReID and TransReID, which share their names."""

from typing import Any

from svll.migration.rows import (
    Made,
    Project,
    Row,
    Theirs,
    by,
    only,
    root,
    same,
    size,
    trained_on,
    triple,
    truth,
    unused,
)

ENCODERS = {"vit-b-16": "ViT-B-16-quickgelu", "vit-b/16": "ViT-B-16-quickgelu",
            "rn50": "RN50-quickgelu", "transformer": "ViT-B-16-quickgelu",
            "resnet50": "RN50-quickgelu"}
EVALUATE = "a separate command: launch/evaluate.py --weights FILE --recipe NAME"
AFTER_RUN = "the test after training is always made; again: launch/evaluate.py RUN"


def is_resnet(theirs: Theirs) -> bool:
    return str(theirs.get("MODEL.NAME")).lower().startswith(("rn", "resnet"))


def _encoder(value: Any, theirs: Theirs) -> Made:
    found = ENCODERS.get(str(value).lower())
    if found is None:
        return Made(note="not an encoder of CLIP; see model.name", is_loud=True)
    return Made({"model.name": found, **({"model.stride": None} if is_resnet(theirs) else {})})


def _stride(value: Any, theirs: Theirs) -> dict[str, Any]:
    if is_resnet(theirs):
        return {}
    first, second = value
    if first != second:
        raise ValueError("expected two equal numbers")
    return {"model.stride": first}


def _side(_: Any, theirs: Theirs) -> dict[str, Any]:
    camera, view = truth(theirs["MODEL.SIE_CAMERA"]), truth(theirs["MODEL.SIE_VIEW"])
    names = {(True, True): "camera_view", (True, False): "camera", (False, True): "view"}
    return {"model.sie": names.get((camera, view), "none")}


def _side_weight(value: Any, theirs: Theirs) -> dict[str, Any]:
    used = truth(theirs["MODEL.SIE_CAMERA"]) or truth(theirs["MODEL.SIE_VIEW"])
    return {"model.sie_weight": value} if used else {}


def _margin(value: Any, theirs: Theirs) -> dict[str, Any]:
    return {"stage2.margin": None if truth(theirs["MODEL.NO_MARGIN"]) else value}


def _test_size(value: Any, theirs: Theirs) -> Made:
    return Made(note="one size for training and test (data.height, data.width)",
                is_loud=list(value) != list(theirs["INPUT.SIZE_TRAIN"]))


def _names(value: Any, theirs: Theirs) -> dict[str, Any]:
    settings = trained_on(value, theirs)
    if settings["data.name"] == "veri776":  # their reader drops images without a viewpoint
        settings["data.unlisted_views"] = "drop"
    return settings


def _rerank(value: Any, _: Theirs) -> dict[str, Any]:
    on = {"evaluation.rerank": True, "evaluation.k1": 50, "evaluation.k2": 15}
    return on if truth(value) else {"evaluation.rerank": False}


def like_weights(key: str, weights: str) -> Row:
    """Return the row of a weight decay of biases or norms, which is that of weights here."""
    def make(value: Any, theirs: Theirs) -> Made:
        return Made(note="stage2.weight_decay holds for all parameters",
                    is_loud=value != theirs.get(weights, value))

    return Row(key, "", make, remark="as that of weights: one `stage2.weight_decay` for all")


def of_adam(key: str, ours: str, default: Any, optimizer: str) -> Row:
    """Return the row of a learning rate, which is not taken over from another optimizer."""
    def make(value: Any, theirs: Theirs) -> Made:
        if str(theirs.get(optimizer, "Adam")).lower() == "adam":
            return Made({ours: value})
        return Made(note=f"a rate of {theirs[optimizer]}; Adam trains here: set {ours}",
                    is_loud=True)

    return Row(key, ours, make, default, "not taken over from another optimizer than Adam")


def solver(start: str, first_epochs: str) -> tuple[Row, ...]:
    """Return the keys of the optimizer of stage 2 or of the only stage. first_epochs: the key that
    counts the epochs of the warm-up."""
    adam = f"{start}OPTIMIZER_NAME"
    return (
        same(f"{start}IMS_PER_BATCH", "stage2.batch", 64, "over all GPUs, as here"),
        only(adam, ("Adam",), "Adam with L2 weight decay trains here", "Adam"),
        of_adam(f"{start}BASE_LR", "stage2.lr", 3e-4, adam),
        same(f"{start}MAX_EPOCHS", "stage2.epochs", 100),
        same(f"{start}WEIGHT_DECAY", "stage2.weight_decay", 0.0005),
        like_weights(f"{start}WEIGHT_DECAY_BIAS", f"{start}WEIGHT_DECAY"),
        same(f"{start}BIAS_LR_FACTOR", "stage2.bias_lr_factor", 1),
        only(f"{start}LARGE_FC_LR", (False,), "classifiers have the rate of all weights", False),
        same(f"{start}STEPS", "stage2.milestones", [40, 70]),
        same(f"{start}GAMMA", "stage2.gamma", 0.1),
        same(f"{start}WARMUP_FACTOR", "stage2.warmup_factor", 0.01),
        same(f"{start}{first_epochs}", "stage2.warmup_epochs", UNSAID[first_epochs],
             "epochs, as there" if first_epochs == "WARMUP_ITERS" else ""),
        *(unused(f"{start}{key}", "not read where the warm-up has another key")
          for key in UNSAID if key != first_epochs),
        only(f"{start}WARMUP_METHOD", ("linear",), "the warm-up is linear", "linear"),
        *(unused(f"{start}{key}", why) for key, why in NEVER.items()),
    )


UNSAID = {"WARMUP_ITERS": 500, "WARMUP_EPOCHS": 5}
"""Their defaults."""
NEVER = {
    "CHECKPOINT_PERIOD": "a checkpoint after each epoch and every ten minutes (run.save_every)",
    "LOG_PERIOD": "lines of the metric log: run.log_every",
    "EVAL_PERIOD": "the test set is used once, at the end; validation: data.validation and "
                   "evaluation.every",
    "MOMENTUM": "of SGD", "CENTER_LR": "of the centre loss", "CENTER_LOSS_WEIGHT": "of the centre "
    "loss", "COSINE_MARGIN": "of COS_LAYER", "COSINE_SCALE": "of COS_LAYER",
    "WARMUP_LR_INIT": "not read in this stage", "LR_MIN": "not read in this stage",
}
SHARED = (
    Row("MODEL.NAME", "model.name", _encoder, remark="`ViT-B-16` is `ViT-B-16-quickgelu`, `RN50` "
        "is `RN50-quickgelu`, with OpenAI's weights"),
    by("MODEL.STRIDE_SIZE", "model.stride", _stride, [16, 16], "of a ViT"),
    by("MODEL.SIE_CAMERA", "model.sie", _side, False, "with MODEL.SIE_VIEW: camera, view, "
       "camera_view or none"),
    unused("MODEL.SIE_VIEW", "in `model.sie`, with MODEL.SIE_CAMERA", False),
    by("MODEL.SIE_COE", "model.sie_weight", _side_weight, 3.0, "only where there is side "
       "information"),
    same("MODEL.ID_LOSS_WEIGHT", "stage2.id_weight", 1.0),
    same("MODEL.TRIPLET_LOSS_WEIGHT", "stage2.triplet_weight", 1.0),
    by("MODEL.IF_LABELSMOOTH", "stage2.label_smoothing",
       lambda value, _: {"stage2.label_smoothing": 0.1 if truth(value) else 0.0}, "on",
       "on is 0.1"),
    by("SOLVER.MARGIN", "stage2.margin", _margin, 0.3, "null with MODEL.NO_MARGIN"),
    unused("MODEL.NO_MARGIN", "in `stage2.margin`: null is the soft margin", False),
    only("MODEL.METRIC_LOSS_TYPE", ("triplet",), "the triplet loss is computed", "triplet"),
    only("MODEL.ID_LOSS_TYPE", ("softmax",), "the identity loss is cross-entropy", "softmax"),
    only("MODEL.IF_WITH_CENTER", ("no",), "there is no centre loss", "no"),
    only("MODEL.COS_LAYER", (False,), "classifiers are linear", False),
    only("MODEL.NECK", ("bnneck",), "batch normalisation before classifiers", "bnneck"),
    only("MODEL.PRETRAIN_CHOICE", ("imagenet",), "training starts from CLIP's weights "
         "(model.weights)", "imagenet"),
    unused("MODEL.PRETRAIN_PATH", "CLIP's weights from a file: model.weights=FILE"),
    only("MODEL.LAST_STRIDE", (1,), "the last block of a ResNet has stride 1", 1),
    unused("MODEL.DEVICE", "a GPU where there is one; CUDA_VISIBLE_DEVICES= is the CPU"),
    unused("MODEL.DEVICE_ID", "CUDA_VISIBLE_DEVICES=0 chooses the GPU"),
    unused("MODEL.DIST_TRAIN", "torchrun --nproc-per-node 2 launch/train.py ..."),
    by("INPUT.SIZE_TRAIN", "data.height, data.width", size, [384, 128]),
    Row("INPUT.SIZE_TEST", "", _test_size, [384, 128], "that of training"),
    same("INPUT.PROB", "stage2.flip", 0.5),
    same("INPUT.RE_PROB", "stage2.erase", 0.5),
    same("INPUT.PADDING", "stage2.pad", 10),
    by("INPUT.PIXEL_MEAN", "data.mean", triple("data.mean"), [0.485, 0.456, 0.406]),
    by("INPUT.PIXEL_STD", "data.std", triple("data.std"), [0.229, 0.224, 0.225]),
    by("DATASETS.NAMES", "data.name", _names, "market1501", "`occ_duke` is `occluded_duke`, `veri` "
       "`veri776` (with `data.unlisted_views: drop`), `VehicleID` `vehicleid_800`; vehicles set "
       "`model.noun`"),
    by("DATASETS.ROOT_DIR", "data.root", root, remark="where it is not empty"),
    only("DATALOADER.SAMPLER", ("softmax_triplet",), "batches hold K images of each identity",
         "softmax"),
    same("DATALOADER.NUM_INSTANCE", "stage2.instances", 16),
    unused("DATALOADER.NUM_WORKERS", "data.threads, by default all cores"),
    same("SOLVER.SEED", "seed", 1234),
    same("TEST.IMS_PER_BATCH", "evaluation.batch", 128),
    by("TEST.RE_RANKING", "evaluation.rerank, k1, k2", _rerank, False, "with k1 50, k2 15, as in "
       "its code"),
    only("TEST.NECK_FEAT", ("before",), "features are those before batch normalisation", "after"),
    only("TEST.FEAT_NORM", ("yes",), "features are L2-normalised", "yes"),
    unused("TEST.WEIGHT", EVALUATE),
    unused("TEST.EVAL", AFTER_RUN),
    unused("TEST.DIST_MAT", "launch/evaluate.py FILE --per-query FILE"),
    unused("OUTPUT_DIR", "runs lie in runs/NAME/ID; elsewhere: run.runs=FOLDER"),
    unused("DEBUG", "not needed"),
)
NO_DROPOUT = tuple(unused(f"MODEL.{key}", "CLIP's encoder has none, there too")
                   for key in ("DROP_PATH", "DROP_OUT", "ATT_DROP_RATE", "TRANSFORMER_TYPE"))


def _kind(value: Any, _: Theirs) -> dict[str, Any]:
    kind = {"SIMCLR": "ntxent", "SIMSIAM": "simsiam"}.get(str(value).upper(), str(value))
    return {"stage1.lss_loss": kind, "stage2.vss_loss": kind}


def _weight(ours: str) -> Any:
    return lambda value, theirs: {ours: value if truth(theirs["MODEL.USE_SSL"]) else 0.0}


CLIP_REID = Project("CLIP-ReID", (
    *SHARED, *NO_DROPOUT,
    same("MODEL.I2T_LOSS_WEIGHT", "stage2.i2t_weight", 1.0),
    same("SOLVER.STAGE1.IMS_PER_BATCH", "stage1.batch", 64),
    only("SOLVER.STAGE1.OPTIMIZER_NAME", ("Adam",), "Adam trains here", "Adam"),
    of_adam("SOLVER.STAGE1.BASE_LR", "stage1.lr", 3e-4, "SOLVER.STAGE1.OPTIMIZER_NAME"),
    same("SOLVER.STAGE1.MAX_EPOCHS", "stage1.epochs", 100),
    same("SOLVER.STAGE1.WEIGHT_DECAY", "stage1.weight_decay", 0.0005),
    unused("SOLVER.STAGE1.WEIGHT_DECAY_BIAS", "prompts have no biases"),
    same("SOLVER.STAGE1.WARMUP_EPOCHS", "stage1.warmup_epochs", 5),
    same("SOLVER.STAGE1.WARMUP_LR_INIT", "stage1.warmup_lr", 0.01),
    same("SOLVER.STAGE1.LR_MIN", "stage1.lr_min", 0.000016),
    only("SOLVER.STAGE1.WARMUP_METHOD", ("linear",), "the warm-up is linear", "linear"),
    *(unused(f"SOLVER.STAGE1.{key}", "not read in this stage")
      for key in ("WARMUP_FACTOR", "WARMUP_ITERS", "EVAL_PERIOD")),
    *(unused(f"SOLVER.STAGE1.{key}", NEVER[key]) for key in (
        "CHECKPOINT_PERIOD", "LOG_PERIOD", "MOMENTUM", "COSINE_MARGIN", "COSINE_SCALE")),
    *solver("SOLVER.STAGE2.", "WARMUP_ITERS"),
    # SVLL-ReID's own
    unused("MODEL.USE_SSL", "false sets both weights of self-supervision to 0", True),
    unused("MODEL.USE_SSL_STAGE1", "0 in `stage1.lss_weight` leaves it out"),
    by("MODEL.SSL_TYPE", "stage1.lss_loss, stage2.vss_loss", _kind, remark="SIMCLR is ntxent"),
    by("SOLVER.STAGE1.SSL_LOSS_WEIGHT", "stage1.lss_weight", _weight("stage1.lss_weight"), 0.0,
       "SVLL-ReID; CLIP-ReID has none: 0"),
    by("SOLVER.STAGE2.SSL_LOSS_WEIGHT", "stage2.vss_weight", _weight("stage2.vss_weight"), 0.0,
       "SVLL-ReID; CLIP-ReID has none: 0"),
    same("SOLVER.STAGE1.PROMPT_AUG_SCALE", "stage1.augment_scale"),
    same("SOLVER.STAGE1.PROMPT_AUG_METHOD", "stage1.augment"),
), {})
WITHOUT_PROMPTS = {"stage1.epochs": 0, "stage1.lss_weight": 0.0, "stage2.i2t_weight": 0.0,
                   "stage2.vss_weight": 0.0}
BASELINE = Project("CLIP-ReID's baseline", (
    *SHARED, *NO_DROPOUT, *solver("SOLVER.", "WARMUP_ITERS"),
    unused("MODEL.I2T_LOSS_WEIGHT", "the baseline has no texts"),
), WITHOUT_PROMPTS)
TRANS_REID = Project("TransReID", (
    *SHARED,
    only("MODEL.TRANSFORMER_TYPE", ("None", "vit_base_patch16_224_TransReID"), "the encoder is "
         "ViT-B/16", "None"),
    *(only(f"MODEL.{key}", (0.0,), "nothing is dropped in the encoder", default)
      for key, default in (("DROP_PATH", 0.1), ("DROP_OUT", 0.0), ("ATT_DROP_RATE", 0.0))),
    only("MODEL.JPM", (False,), "there is no jigsaw patch module", False),
    *(unused(f"MODEL.{key}", "of the jigsaw patch module")
      for key in ("SHIFT_NUM", "SHUFFLE_GROUP", "DEVIDE_LENGTH", "RE_ARRANGE")),
    *solver("SOLVER.", "WARMUP_EPOCHS"),
), WITHOUT_PROMPTS, (
    "training starts from CLIP's weights, there from ImageNet's",
    "the learning rate falls at stage2.milestones, there along a cosine",
))
