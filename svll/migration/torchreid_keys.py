"""Keys of torchreid (deep-person-reid), with its defaults."""

from typing import Any

from svll.migration.rows import (
    Made,
    Project,
    Row,
    Theirs,
    by,
    listed,
    only,
    root,
    same,
    tested_on,
    trained_on,
    triple,
    truth,
    unused,
)
from svll.migration.yacs_keys import EVALUATE, WITHOUT_PROMPTS, of_adam

AUGMENTATIONS = {"random_flip": "stage2.flip", "random_erase": "stage2.erase"}


def _encoder(value: Any, _: Theirs) -> Made:
    if str(value) != "resnet50":
        return Made(note="not an encoder of CLIP; see model.name", is_loud=True)
    return Made({"model.name": "RN50-quickgelu", "model.stride": None, "model.sie": "none"})


def _augmented(value: Any, _: Theirs) -> Made:
    names = listed(value)
    others = [str(name) for name in names if name not in AUGMENTATIONS]
    settings = {ours: 0.5 if name in names else 0.0 for name, ours in AUGMENTATIONS.items()}
    return Made({**settings, "stage2.pad": 0}, f"not here: {', '.join(others)}", bool(others))


def _milestones(value: Any, theirs: Theirs) -> dict[str, Any]:
    steps = listed(value)
    if theirs["train.lr_scheduler"] == "single_step":  # again and again
        steps = list(range(steps[-1], min(theirs["train.max_epoch"], 10_000), steps[-1]))
    return {"stage2.milestones": steps}


def _losses(value: Any, theirs: Theirs) -> dict[str, Any]:
    if value == "softmax":
        return {"stage2.id_weight": 1.0, "stage2.triplet_weight": 0.0}
    return {"stage2.id_weight": theirs["loss.triplet.weight_x"],
            "stage2.triplet_weight": theirs["loss.triplet.weight_t"]}


def _normalised(value: Any, theirs: Theirs) -> Made:
    return Made(note="features are L2-normalised; as stored: launch/evaluate.py FILE --raw",
                is_loud=theirs["test.dist_metric"] == "euclidean" and not truth(value))


TORCHREID = Project("torchreid", (
    Row("model.name", "model.name", _encoder, "resnet50", "`resnet50` is CLIP's "
        "`RN50-quickgelu`; others have no counterpart"),
    only("model.pretrained", (True,), "training starts from CLIP's weights (model.weights)", True),
    unused("model.load_weights", EVALUATE),
    unused("model.resume", "the same command again resumes"),
    only("data.type", ("image",), "images, no videos", "image"),
    by("data.root", "data.root", root, remark="where it is not empty"),
    by("data.sources", "data.name, data.train", trained_on, ["market1501"]),
    by("data.targets", "data.test", tested_on, ["market1501"], "where they are others than "
       "trained on"),
    unused("data.workers", "data.threads, by default all cores"),
    unused("data.split_id", "of datasets with several splits"),
    same("data.height", "data.height", 256),
    same("data.width", "data.width", 128),
    only("data.combineall", (False,), "no test image is trained on", False),
    Row("data.transforms", "stage2.flip, stage2.erase", _augmented, ["random_flip"],
        "`random_flip` and `random_erase` with probability 0.5; others are not here"),
    only("data.k_tfm", (1,), "one training view of each image", 1),
    by("data.norm_mean", "data.mean", triple("data.mean"), [0.485, 0.456, 0.406]),
    by("data.norm_std", "data.std", triple("data.std"), [0.229, 0.224, 0.225]),
    unused("data.save_dir", "runs lie in runs/NAME/ID; elsewhere: run.runs=FOLDER"),
    only("data.load_train_targets", (False,), "only identities of the training sets", False),
    only("market1501.use_500k_distractors", (False,), "the gallery is the benchmark's", False),
    *(unused(f"cuhk03.{key}", "of CUHK03")
      for key in ("labeled_images", "classic_split", "use_metric_cuhk03")),
    only("sampler.train_sampler", ("RandomIdentitySampler",), "batches hold K images of each "
         "identity", "RandomSampler"),
    unused("sampler.train_sampler_t", "of a target dataset"),
    same("sampler.num_instances", "stage2.instances", 4),
    *(unused(f"sampler.{key}", "of other samplers") for key in ("num_cams", "num_datasets")),
    *(unused(f"video.{key}", "of videos") for key in ("seq_len", "sample_method",
                                                      "pooling_method")),
    only("train.optim", ("adam",), "Adam with L2 weight decay trains here", "adam"),
    of_adam("train.lr", "stage2.lr", 0.0003, "train.optim"),
    same("train.weight_decay", "stage2.weight_decay", 5e-4),
    same("train.max_epoch", "stage2.epochs", 60),
    unused("train.start_epoch", "the same command again resumes"),
    same("train.batch_size", "stage2.batch", 32),
    only("train.fixbase_epoch", (0,), "all layers train from the first step", 0),
    unused("train.open_layers", "of fixbase_epoch"),
    only("train.staged_lr", (False,), "all weights have one rate", False),
    *(unused(f"train.{key}", "of staged_lr") for key in ("new_layers", "base_lr_mult")),
    only("train.lr_scheduler", ("single_step", "multi_step"), "the rate falls at "
         "stage2.milestones", "single_step"),
    by("train.stepsize", "stage2.milestones", _milestones, [20], "with single_step every so many "
       "epochs"),
    same("train.gamma", "stage2.gamma", 0.1),
    unused("train.print_freq", "lines of the metric log: run.log_every"),
    same("train.seed", "seed", 1),
    *(unused(f"sgd.{key}", "of SGD") for key in ("momentum", "dampening", "nesterov")),
    unused("rmsprop.alpha", "of RMSprop"),
    only("adam.beta1", (0.9,), "Adam's betas are 0.9 and 0.999", 0.9),
    only("adam.beta2", (0.999,), "Adam's betas are 0.9 and 0.999", 0.999),
    by("loss.name", "stage2.id_weight, stage2.triplet_weight", _losses, "softmax", "`softmax` is "
       "1 and 0, `triplet` is weight_x and weight_t"),
    by("loss.softmax.label_smooth", "stage2.label_smoothing",
       lambda value, _: {"stage2.label_smoothing": 0.1 if truth(value) else 0.0}, True,
       "true is 0.1"),
    same("loss.triplet.margin", "stage2.margin", 0.3),
    unused("loss.triplet.weight_t", "in `stage2.triplet_weight`", 1.0),
    unused("loss.triplet.weight_x", "in `stage2.id_weight`", 0.0),
    same("test.batch_size", "evaluation.batch", 100),
    unused("test.dist_metric", "features are L2-normalised: both metrics rank alike", "euclidean"),
    Row("test.normalize_feature", "", _normalised, False, "always; as stored: "
        "`launch/evaluate.py FILE --raw`"),
    unused("test.ranks", "all ranks to 50 are in result.json"),
    unused("test.evaluate", EVALUATE),
    *(unused(f"test.{key}", "the test set is used once, at the end; validation: data.validation "
             "and evaluation.every") for key in ("eval_freq", "start_eval")),
    by("test.rerank", "evaluation.rerank", lambda value, _: {"evaluation.rerank": truth(value)},
       False, "with k1 20, k2 6, weight 0.3, as there"),
    unused("test.visrank", "launch/report.py RUN --ranked"),
    unused("test.visrank_topk", "launch/report.py RUN --ranked"),
    unused("use_gpu", "a GPU where there is one; CUDA_VISIBLE_DEVICES= is the CPU"),
), {**WITHOUT_PROMPTS, "stage2.warmup_epochs": 0, "stage2.bias_lr_factor": 1.0},
    ("training starts from CLIP's weights, there from ImageNet's",
     "CLIP's projection is trained and tested beside the encoder's last features"))
