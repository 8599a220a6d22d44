"""The configuration of one run, the only place of the method's defaults.

Defaults are SVLL-ReID's for persons (paper, implementation details; released code where the paper
is silent). Fields made by `runtime` cannot change a result and are not part of a run's signature.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness.base.paths import expanded
from harness.config.fields import Removed, changeable, runtime, unless_empty, where_it_counts
from harness.runs.experiment import Experiment
from svll.base.protocol_names import Protocol
from svll.base.run_files import PROMPTS
from svll.base.value_checks import (
    Faults,
    at_least,
    between,
    no_name,
    not_negative,
    positive,
    unset,
)
from svll.migration.recognition import foreign

RECIPES = Path(__file__).parent / "recipes"
SWEEPS = Path(__file__).parent / "sweeps"
DATASETS = ("synthetic", "market1501", "msmt17", "dukemtmc", "occluded_duke", "veri776",
            "vehicleid_800", "vehicleid_1600", "vehicleid_2400", "folder", "list")
"""Benchmarks, and two kinds of the user's own images: `folder` is any dataset in Market-1501's
layout, `list` is a CSV file."""
VIEWS_LISTED = "veri776"
"""The benchmark that comes with lists of viewpoints."""


@dataclass
class WorldConfig:
    """The synthetic benchmark (`data.name=synthetic`)."""

    kind: Literal["person", "vehicle"] = "person"
    """Objects in the images."""
    train_identities: int = 60
    """Identities of the training part."""
    test_identities: int = 60
    """Identities of query and gallery; none is a training identity."""
    shots: int = 3
    """Images of each identity per camera that sees it."""
    occlusion: float = 0.15
    """Share of images with something in front of the person or vehicle."""
    query_occlusion: float | None = None
    """Share of query images with something in front; null: `occlusion`."""
    seed: int = 1
    """Seed of the drawn images; another seed gives another benchmark."""

    def faults(self) -> Faults:
        yield from at_least(self, 2, "train_identities", "test_identities", unit=" identities")
        yield from at_least(self, 1, "shots")
        yield from between(self, 0, 1, "occlusion", "query_occlusion")


@dataclass
class Data:
    """The images: where they are, and which identities are held out for validation."""

    name: str = "synthetic"
    """Benchmark for training and test: synthetic, market1501, msmt17, dukemtmc, occluded_duke,
    veri776, vehicleid_800, _1600 or _2400; or your own images: folder, list."""
    root: str | None = runtime(None)
    """The dataset's folder, or a folder that holds several under their usual names; null: the
    synthetic benchmark, drawn once below the runs folder."""
    roots: dict[str, str] = runtime(factory=dict)
    """Folders of datasets that are not below `root`: {msmt17: DIR}."""
    train: list[str] = field(default_factory=list)
    """Datasets that are joined for training; empty: `name`."""
    test: list[str] = field(default_factory=list)
    """Datasets to test on, one after the other; empty: `name`."""
    fingerprint: str = ""
    """Hash of the files' names and sizes, set when a run is created; other files: another run."""
    unlisted_views: Literal["keep", "drop"] = unless_empty("keep")
    """Images of VeRi-776 that are in no viewpoint list: keep them as a separate view, or drop them
    from training, query and gallery as the released code does."""
    world: WorldConfig = field(default_factory=WorldConfig)
    validation: float = 0.0
    """Share of training identities that are held out as a validation query and gallery."""
    height: int = 256
    """Input height in pixels."""
    width: int = 128
    """Input width in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per-channel mean of red, green and blue (0 to 1)."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per-channel standard deviation."""
    stage: str | None = runtime(None)
    """A folder on each node's local disk, such as $SLURM_TMPDIR, to which images are copied before
    training; null: no copy."""
    check: bool = runtime(True)
    """Decode every image once before training to find broken files early."""
    device: Literal["auto", "cpu"] = runtime("auto")
    """Where images are decoded and augmented: on the rank's GPU if it has one, or always on the
    CPU, for machines where DALI cannot use the GPU. Pixels differ by some grey levels."""
    threads: int = runtime(0)
    """Threads per rank for decoding, and as many for augmentation; 0: the cores that this process
    may use."""

    def __post_init__(self) -> None:
        self.root = expanded(self.root) if self.root else self.root
        self.roots = {name: expanded(root) for name, root in self.roots.items()}

    def faults(self) -> Faults:
        for key, root in [("root", self.root), *(("roots", root) for root in self.roots.values())]:
            yield from unset(key, root)
        yield from no_name("stage", self.stage)
        if not 0 <= self.validation < 1:
            yield "validation", f"must be at least 0 and less than 1, found {self.validation}"
        named = {
            "name": [self.name], "train": self.train, "test": self.test, "roots": list(self.roots),
        }
        for key, names in named.items():
            for name in names:
                if name not in DATASETS:
                    yield key, f"no dataset {name!r}; choose one of {', '.join(DATASETS)}"
            if len(set(names)) != len(names):
                yield key, f"{names} has a dataset twice"
        used = (self.train or [self.name]) + (self.test or [self.name])
        if self.unlisted_views == "drop" and VIEWS_LISTED not in used:
            yield "unlisted_views", (f"only {VIEWS_LISTED} has viewpoint lists, not "
                                     f"{', '.join(dict.fromkeys(used))}; set "
                                     "data.unlisted_views=keep")
        yield from between(self, 8, 4096, "height", "width")
        yield from between(self, 0, 1024, "threads")
        if not all(0 <= one <= 1 for one in self.mean):
            yield "mean", f"must lie between 0 and 1, found {list(self.mean)}"
        if min(self.std) <= 0:
            yield "std", f"must be greater than 0, found {list(self.std)}"


@dataclass
class Model:
    """CLIP and its additions for ReID."""

    name: str = "ViT-B-16-quickgelu"
    """An open_clip model (`-quickgelu` for OpenAI's weights), or `svll-tiny`, which is shipped."""
    weights: str | None = "openai"
    """An open_clip tag or a file; `shipped` for svll-tiny; null: random weights, for tests."""
    fingerprint: str = unless_empty("")
    """Hash of the weights file, set when a run is created; another file: another run."""
    stride: int | None = 12
    """Stride of the patch embedding; below the patch size patches overlap; null: the patch size."""
    prompt_tokens: int = 4
    """M, the learnable tokens per identity in "A photo of a [S]1..[S]M person."."""
    noun: str = "person"
    """The template's noun: person or vehicle."""
    sie: Literal["none", "camera", "view", "camera_view"] = "camera"
    """Side information embedding: a learned vector per camera or view, added to the class token."""
    sie_weight: float = 1.0
    """Coefficient of the side information embedding."""
    sie_unseen: Literal["none", "mean"] = "none"
    """Embedding of cameras and views that were not in training: none, or the mean of all."""
    head_hidden: int = 4096
    """Width of the two hidden layers of the projection heads before NT-Xent."""
    head_out: int = 256
    """Width of the projections that NT-Xent compares."""
    image_head_init: Literal["released", "torch"] = where_it_counts(
        "released", lambda config: _is_changed_by_released_head(config)
    )
    """Initialisation of the image head before NT-Xent: as in the released code (Kaiming normal
    weights, batch normalisation with weight and bias from U(0, 1)), or torch's defaults."""
    predictor_hidden: int = 512
    """Width of the hidden layer of SimSiam's predictor."""

    def __post_init__(self) -> None:
        self.weights = expanded(self.weights) if self.weights else self.weights

    @property
    def is_resnet(self) -> bool:
        """Whether this is one of CLIP's ResNets, which have no patches and no class token."""
        return self.name.startswith("RN")

    def faults(self) -> Faults:
        yield from unset("weights", self.weights)
        if self.is_resnet and self.stride is not None:
            yield "stride", f"{self.name} has no patches; set model.stride=null"
        if self.is_resnet and self.sie != "none":
            yield "sie", f"{self.name} has no class token to add it to; set model.sie=none"
        yield from at_least(self, 1, "stride", unit=" pixel")
        yield from between(self, 1, 16, "prompt_tokens")
        yield from between(self, 1, 2**14, "head_hidden", "head_out", "predictor_hidden")


@dataclass
class Stage1:
    """Prompt learning: M tokens per identity are trained, both encoders are frozen."""

    epochs: int = 120
    """Passes over the training images; 0: no prompts, which needs stage2.i2t_weight=0."""
    batch: int = 256
    """Images per step, over all ranks."""
    lr: float = 3.5e-4
    """Adam's learning rate after warm-up."""
    lr_min: float = 1e-6
    """Learning rate at the end of the cosine schedule."""
    warmup_epochs: int = 5
    """Epochs of linear warm-up to `lr`."""
    warmup_lr: float = 1e-5
    """Learning rate at the start of the warm-up."""
    weight_decay: float = 1e-4
    """L2 added to the gradient (Adam, not AdamW)."""
    lss_weight: float = 0.8
    """Weight of language self-supervision; 0: not computed."""
    lss_loss: Literal["ntxent", "simsiam"] = "ntxent"
    """Loss between the two augmented copies of a prompt."""
    lss_temperature: float = 0.1
    """Temperature of NT-Xent."""
    augment: Literal["mask", "swap", "swap_prompt", "mix"] = "mask"
    """Augmentation that makes the two copies of a prompt."""
    augment_scale: float = 0.5
    """s: probability (mask), share of positions (swap), share of the other prompt (mix)."""
    augment_tokens: Literal["all", "learnable"] = "all"
    """Token embeddings that are augmented: the whole prompt or the learnable ones."""
    train_head: bool = False
    """Train the text projection head; the released code does not."""

    def faults(self) -> Faults:
        yield from at_least(self, 1, "batch")
        yield from not_negative(self, "epochs", "lr_min", "warmup_epochs", "warmup_lr")
        yield from not_negative(self, "weight_decay", "lss_weight")
        yield from positive(self, "lr", "lss_temperature")
        yield from between(self, 0, 1, "augment_scale")


@dataclass
class Stage2:
    """Fine-tuning of the image encoder with frozen text features."""

    epochs: int = 60
    """Passes over the training images."""
    batch: int = 64
    """Images per step, over all ranks."""
    instances: int = 4
    """K, images per identity in a batch of batch / K identities."""
    lr: float = changeable(5e-6)
    """Adam's learning rate after warm-up."""
    bias_lr_factor: float = changeable(2.0)
    """Learning rate of biases, in multiples of `lr`."""
    weight_decay: float = changeable(1e-4)
    """L2 added to the gradient (Adam, not AdamW)."""
    warmup_epochs: int = 10
    """Epochs of linear warm-up to `lr`."""
    warmup_factor: float = 0.1
    """Learning rate at the start of the warm-up, in multiples of `lr`."""
    milestones: list[int] = field(default_factory=lambda: [30, 50])
    """Epochs at which the learning rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """Factor of the learning rate at each milestone."""
    id_weight: float = changeable(0.25)
    """Weight of the identity loss."""
    triplet_weight: float = changeable(1.0)
    """Weight of the triplet loss."""
    i2t_weight: float = changeable(1.0)
    """Weight of the image-to-text cross-entropy over all identities."""
    vss_weight: float = changeable(0.8)
    """Weight of vision self-supervision; 0: not computed, and no extra views."""
    vss_loss: Literal["ntxent", "simsiam"] = "ntxent"
    """Loss between the two extra views of an image."""
    vss_temperature: float = changeable(0.1)
    """Temperature of NT-Xent."""
    margin: float | None = 0.3
    """Margin of the triplet loss; null: soft margin."""
    label_smoothing: float = 0.1
    """Probability that label smoothing spreads over all identities."""
    sampled_classes: int = 0
    """Identities that are classes of the identity and image-to-text losses in each step: those of
    the batch, and others drawn at random. 0: all. Saves memory with very many identities."""
    flip: float = changeable(0.5)
    """Probability of a horizontal flip."""
    pad: int = 10
    """Black pixels on each side before the random crop."""
    erase: float = changeable(0.5)
    """Probability of random erasing."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the main view that is erased."""
    vss_erase_area: tuple[float, float] = (0.33, 1 / 3)
    """Smallest and largest share of each self-supervised view that is erased."""

    def faults(self) -> Faults:
        yield from at_least(self, 1, "epochs", "batch", "instances")
        if self.instances >= 1 and self.batch % self.instances:
            yield "batch", f"{self.batch} is not a multiple of stage2.instances={self.instances}"
        elif self.batch < 2 * self.instances:
            yield "batch", "must hold at least 2 identities, or triplets have no negatives"
        yield from not_negative(self, "lr", "weight_decay", "warmup_epochs", "warmup_factor")
        yield from not_negative(self, "id_weight", "triplet_weight", "i2t_weight", "vss_weight")
        yield from not_negative(self, "bias_lr_factor", "gamma", "sampled_classes")
        yield from between(self, 0, 4096, "pad")
        if self.milestones != sorted(self.milestones):
            yield "milestones", f"must rise, found {self.milestones}"
        yield from positive(self, "vss_temperature")
        yield from between(self, 0, 1, "flip", "erase", "label_smoothing")
        for key in ("erase_area", "vss_erase_area"):
            low, high = getattr(self, key)
            if not 0 < low <= high < 1:
                yield key, f"must be two rising shares between 0 and 1, found {[low, high]}"


@dataclass
class EngineConfig:
    """DeepSpeed: precision, memory and time limits."""

    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Precision of the forward and backward pass; trained weights are always fp32."""
    zero: Literal[0, 1, 2] = runtime(0)
    """ZeRO stage: split nothing (0), moments (1), moments and gradients (2) over the ranks. The
    result is the same, so a run may resume with another stage or number of ranks."""
    recompute: bool = runtime(False)
    """Activation checkpointing of transformer blocks: half of their memory or less, a quarter more
    time, the same result."""
    compile: Literal["auto"] | None = runtime("auto")
    """Blocks are trained by torch.compile on a GPU, where it works; the result is the same up to
    rounding. Compiling takes a minute or so at the start of a stage; null: never."""
    accumulation: int = 1
    """Steps whose gradients are averaged before an optimizer step."""
    clipping: float = 0.0
    """Maximum gradient norm; 0: no clipping."""
    timeout: float = runtime(30.0)
    """Minutes that ranks wait for another one before the run fails."""

    def faults(self) -> Faults:
        if self.precision == "fp16" and self.zero:
            # DeepSpeed 0.19.8 skips the step on overflow before it updates its scaler
            yield "precision", (f"fp16 does not go with engine.zero={self.zero}: after an overflow "
                                "the scale is never lowered and nothing is trained; use "
                                "engine.precision=bf16 or engine.zero=0")
        yield from at_least(self, 1, "accumulation")
        yield from not_negative(self, "clipping")
        yield from between(self, 1e-6, 525_600, "timeout")


@dataclass
class Evaluation:
    """Validation during stage 2 and the test after it."""

    batch: int = runtime(256)
    """Images per step of feature extraction, per rank."""
    every: int = 1
    """Epochs between validations; the last epoch always has one. 0: only the last."""
    protocol: Protocol | None = unless_empty(None)  # noqa: RUF009
    """Protocol of validation and test. cross_camera leaves out the query's identity under its
    camera; other_cameras all images of its camera; all_gallery only the query's own image;
    random_gallery draws one gallery image per identity; null: the dataset's protocol."""
    rerank: bool = False
    """Also test with k-reciprocal re-ranking."""
    k1: int = unless_empty(20)
    """Re-ranking: neighbours in a neighbourhood."""
    k2: int = unless_empty(6)
    """Re-ranking: neighbours of the local query expansion; 1: none."""
    weight: float = unless_empty(0.3)
    """Re-ranking: weight of the original distance."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Type of saved test features, from which metrics are computed; float16 halves the file."""

    removed: ClassVar[Mapping[str, Removed]] = {
        "camera_filter": Removed(
            True, "evaluation.protocol=all_gallery ranks all but the query's own image",
            {"evaluation.protocol": "all_gallery"},
        ),
    }

    def faults(self) -> Faults:
        yield from at_least(self, 1, "batch", "k1", "k2")
        yield from not_negative(self, "every")
        yield from between(self, 0, 1, "weight")
        defaults = Evaluation.k1, Evaluation.k2, Evaluation.weight
        if not self.rerank and (self.k1, self.k2, self.weight) != defaults:
            yield "rerank", "evaluation.k1, k2 and weight have no effect without it; set it to true"


@dataclass
class Place:
    """Folders, logs and entry points of a run; nothing here changes a result."""

    runs: str = runtime("runs")
    """The folder of all runs, caches and drawn benchmarks."""
    name: str = runtime("")
    """Name of the folder that holds this run; empty: the recipe's name."""
    experiment: str = runtime("svll.experiment.run")
    """Dotted name of the function that carries out a run."""
    report: str = runtime("svll.reports.report.report_sweep")
    """Dotted name of the function that writes a sweep's report.html after its last trial."""
    prepare: str = runtime("svll.runs.prepare.prepare")
    """Dotted name of the function that makes the files that the runs of a sweep share."""
    log_every: int = runtime(50)
    """Steps between lines of the metric log; the last step of an epoch always has one."""
    save_every: float = runtime(10.0)
    """Minutes between checkpoints within an epoch; each epoch ends with one."""
    divergence: float = runtime(10.0)
    """A run has diverged when a step's loss exceeds this multiple of the first epoch's mean."""
    tensorboard: bool = runtime(True)
    """Write curves for TensorBoard."""
    wandb: str = runtime("")
    """Weights & Biases project for the curves; empty: none. Needs `pip install wandb`; offline with
    WANDB_MODE=offline."""
    keep_checkpoints: bool = runtime(False)
    """Keep checkpoints after the run is complete; weights are always kept."""

    def __post_init__(self) -> None:
        self.runs = expanded(self.runs)

    def faults(self) -> Faults:
        yield from unset("runs", self.runs)
        if set(self.name) & set("/\0") or self.name in (".", ".."):
            yield "name", f"{self.name!r} must be the name of a folder in run.runs, not a path"
        yield from at_least(self, 1, "log_every")
        yield from positive(self, "save_every", "divergence")
        if set(self.wandb) & set("/\\#?%:") or len(self.wandb) > 128:
            yield "wandb", "must be a project's name: up to 128 characters, none of / \\ # ? % :"


@dataclass
class Config:
    """The configuration of one run."""

    seed: int = 1234
    """Seed of everything random, except the synthetic benchmark (data.world.seed)."""
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    stage1: Stage1 = field(default_factory=Stage1)
    stage2: Stage2 = field(default_factory=Stage2)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluation: Evaluation = field(default_factory=Evaluation)
    run: Place = field(default_factory=Place)

    experiment: ClassVar[Experiment] = Experiment(
        metric="validation.mAP",
        columns={"test mAP": "mAP", "test Rank-1": "cmc.1"},
        carried_files=(PROMPTS,),
        stages={"stage1": "stage1.epochs", "stage2": "stage2.epochs"},
        advice={
            r"OutOfMemoryError|CUDA out of memory":
                "the GPU's memory is too small: lower stage2.batch, or use engine.precision=bf16",
        },
    )
    foreign: ClassVar[Any] = staticmethod(foreign)
    """Converts recipe files of other projects (`svll.migration.recognition.foreign`)."""
    absent: ClassVar[Mapping[str, Any]] = {"model.image_head_init": "torch"}
    """Values of keys that a finished run's configuration lacks: the behaviour before the key."""

    def faults(self) -> Faults:
        model, weight, patch = self.model, self.stage2.i2t_weight, _patch_size(self.model.name)
        yield from not_negative(self, "seed")
        if self.stage1.epochs == 0 and weight:
            yield "stage1.epochs", (
                f"without prompts there is no text for stage2.i2t_weight={weight}; set "
                "stage2.i2t_weight=0"
            )
        if self.engine.recompute and model.is_resnet:
            yield "engine.recompute", f"{model.name} has no blocks; set it to false"
        if patch and (model.stride or 0) > patch:
            fault = f"{model.stride} is larger than the patch of {model.name} ({patch})"
            yield "model.stride", fault


def _is_changed_by_released_head(config: Config) -> bool:
    """Return whether the image head starts otherwise than in earlier runs, which used torch's."""
    has_head = config.stage2.vss_weight > 0 and config.stage2.vss_loss == "ntxent"
    return has_head and config.model.image_head_init != "torch"


def _patch_size(name: str) -> int | None:
    """Return the patch size in a model's name (ViT-B-16: 16); importing open_clip takes seconds."""
    if name == "svll-tiny":
        return 8
    size = re.match(r"ViT-[^-]+-(\d{1,9})(-|$)", name)
    return int(size[1]) if size else None
