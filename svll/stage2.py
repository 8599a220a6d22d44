"""Stage 2, image encoder fine-tuning: text features frozen.

SVLL-ReID, section 3.3; CLIP-ReID, section 3.3. Letters: B images of the global batch, b of this
rank, N identities, W tower width, D joint space.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.base.rng import torch_seed
from harness.images.loader import ImageLoader
from harness.images.transfer import to_device
from harness.images.views import Transform, View
from harness.training import loop, ranks
from svll import scoring
from svll.config import Config, Stage2
from svll.data.sampler import identity_batches
from svll.evaluation.feature_files.score_text import RANKS
from svll.inputs import Inputs
from svll.losses import (
    agreement_loss,
    check_negatives,
    product,
    smooth_cross_entropy,
    triplet_loss,
)
from svll.models.reid import BNNeck, ReIDModel, image_head, learned_side_information
from svll.models.vit import ImageFeatures
from svll.models.weights.run_weights import load_run_weights, save_models

VSS_VIEWS = ("vss_a", "vss_b")
"""The two views that vision self-supervision compares."""


@dataclass(frozen=True)
class ImageBatch:
    """This rank's share of a step."""

    views: list[Tensor]
    """The main view and, with vision self-supervision, two more; each [b, 3, H, W]."""
    identities: Tensor
    """[B] labels 0..N-1 of the global batch, on the host."""
    camera: Tensor  # [b] index into the training cameras
    view: Tensor  # [b] view label
    seed: int = 0  # of this step's draws, the same on every rank


class ImageObjective(nn.Module):
    """The losses of stage 2 by name, those whose weight is not 0: id, triplet, i2t, vss."""

    text: Tensor

    def __init__(
        self, model: ReIDModel, text: Tensor | None, head: nn.Module | None, config: Stage2, *,
        identities: int,
    ) -> None:
        """`text` [N, D] may be None without the i2t loss, `head` without the vss loss."""
        super().__init__()
        self.model = model
        self.neck12 = BNNeck(model.encoder.width, identities)
        self.neckp = BNNeck(model.encoder.out, identities)
        self.head = head if config.vss_weight else None
        self.config = config
        # computed from the saved prompts of stage 1, so not saved again
        self.register_buffer("text", text, persistent=False)

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Return the losses over the global batch, equal on every rank."""
        return self.losses(*self._encode(batch), batch.identities, batch.seed)

    def losses(
        self, main: ImageFeatures, others: Sequence[Tensor], identities: Tensor, seed: int = 0
    ) -> dict[str, Tensor]:
        """Return the losses of the main view's features and the other views' f12 [b, W].

        identities: [B], those of the global batch, on the host.
        """
        f11, f12, fp = (ranks.gather_rows(f.float()) for f in main)
        labels = to_device(identities, f12.device)
        config, text, losses = self.config, self.text, {}
        classes, places = None, labels
        if config.sampled_classes:
            every = self.neck12.classifier.out_features
            chosen = sample_classes(identities, every, config.sampled_classes, seed)
            classes = to_device(chosen, f12.device)
            text = None if text is None else text[classes]
            places = to_device(torch.searchsorted(chosen, identities), f12.device)
        if config.id_weight:
            logits = self.neck12(f12, classes), self.neckp(fp, classes)
            parts = [smooth_cross_entropy(each, places, config.label_smoothing) for each in logits]
            losses["id"] = torch.stack(parts).sum()
        if config.triplet_weight:
            check_negatives(identities)
            parts = [triplet_loss(f, labels, config.margin) for f in (f11, f12, fp)]
            losses["triplet"] = torch.stack(parts).sum()
        if config.i2t_weight:
            losses["i2t"] = smooth_cross_entropy(product(fp, text), places, config.label_smoothing)
        if self.head is not None:
            a, b = (ranks.gather_rows(f.float()) for f in others)
            losses["vss"] = agreement_loss(self.head, a, b, kind=config.vss_loss,
                                           temperature=config.vss_temperature)
        return losses

    def _encode(self, batch: ImageBatch) -> tuple[ImageFeatures, list[Tensor]]:
        """Return the main view's features and the others' f12 [b, W].

        Only the main view gets side information. All views share one call where LayerNorm works per
        sample; batch normalisation must see each view separately.
        """
        encoder, side = self.model.encoder, None
        if not encoder.per_sample:
            return encoder(batch.views[0]), [encoder(view).f12 for view in batch.views[1:]]
        count = len(batch.views[0])
        if self.model.side is not None:
            side = self.model.side(batch.camera, batch.view)
            rest = side.new_zeros((len(batch.views) - 1) * count, side.shape[1])
            side = torch.cat([side, rest])
        images = batch.views[0] if len(batch.views) == 1 else torch.cat(batch.views)
        features = encoder(images, side)
        main = ImageFeatures(*(f[:count] for f in features))
        return main, list(features.f12[count:].split(count))


def sample_classes(labels: Tensor, identities: int, count: int, seed: int) -> Tensor:
    """Return `count` identities [C], sorted: those of labels [B] and others, drawn by `seed`.

    Partial FC (An et al. 2020, section 3.3). Never fewer than those of the labels, and at most all.
    labels: on the host, where the number of classes must be known.
    """
    present = labels.unique()
    keys = torch.rand(identities, generator=torch.Generator().manual_seed(seed))
    keys[present] = 2.0
    return keys.topk(min(identities, max(count, len(present)))).indices.sort().values


def loss_weights(config: Stage2) -> dict[str, float]:
    """Return the weight of each loss of stage 2; `harness.training.loop.train_step` multiplies."""
    return {
        "id": config.id_weight, "triplet": config.triplet_weight, "i2t": config.i2t_weight,
        "vss": config.vss_weight,
    }


def optimizer(objective: ImageObjective, config: Stage2) -> torch.optim.Optimizer:
    """Adam with L2 decay over everything trained; biases at a multiple of the learning rate."""
    trained = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if not n.endswith("bias")], "lr": config.lr},
        {
            "params": [p for n, p in trained if n.endswith("bias")],
            "lr": config.lr * config.bias_lr_factor,
        },
    ]
    return torch.optim.Adam(groups, weight_decay=config.weight_decay, fused=True)


def lr_factor(config: Stage2, epoch: int) -> float:
    """Return the learning rate of an epoch (1 the first) in multiples of `config.lr`.

    Linear warm-up from `warmup_factor`, then `gamma` once for every milestone reached.
    """
    warmup = 1.0
    if epoch < config.warmup_epochs:
        warmup += (config.warmup_factor - 1) * (1 - epoch / config.warmup_epochs)
    return warmup * config.gamma ** bisect_right(config.milestones, epoch)


# --- the stage of a run ---


def tune_encoder(inputs: Inputs, text: Tensor | None, recording: loop.Recording) -> ReIDModel:
    """Run stage 2 unless its result exists; text [N, D]: None when no prompts were learned."""
    run, config, splits = inputs.run, inputs.config, inputs.splits
    model = starting_model(inputs)
    if not run.weights_file.exists():
        objective = make_objective(config, model, text, splits.identities)
        scoring.remove_features(inputs)
        with closing(open_loader(inputs)) as loader:
            loop.train(build(inputs, objective, loader), run, config.engine, recording)
        ranks.on_leader(lambda: save_models(
            run, model, config, text=text, side_labels=splits.side_labels,
            identities=splits.identities,
        ))
    return trained_model(inputs, model)


def trained_model(inputs: Inputs, model: ReIDModel | None = None) -> ReIDModel:
    """Return the model that stage 2 trained, its weights loaded into `model` if one is given."""
    model = model or starting_model(inputs)
    load_run_weights(inputs.run, model)
    return model.to(ranks.device()).eval()


def starting_model(inputs: Inputs) -> ReIDModel:
    """Return the model that stage 2 starts from; seeds the initialisation of its new parts."""
    config, labels = inputs.config, inputs.splits.side_labels
    torch.manual_seed(torch_seed(config.seed, 2))
    width = inputs.clip.image.width
    side = learned_side_information(config.model, width, cameras=labels.camera_count,
                                    views=labels.view_count)
    return ReIDModel(inputs.clip.image.requires_grad_(True), side)


def make_objective(
    config: Config, model: ReIDModel, text: Tensor | None, identities: int
) -> ImageObjective:
    """Return the untrained module of stage 2."""
    head = image_head(config, model.encoder.width)
    return ImageObjective(model, text, head, config.stage2, identities=identities)


def open_loader(inputs: Inputs) -> ImageLoader:
    """Return the loader of the training images; close it after use."""
    data, config = inputs.config.data, inputs.config.stage2
    views = {"main": View(config.flip, config.pad, config.erase, config.erase_area)}
    if config.vss_weight:
        other = View(config.flip, config.pad, config.erase, config.vss_erase_area)
        views |= dict.fromkeys(VSS_VIEWS, other)
    return ImageLoader(
        inputs.reader().places(inputs.splits.train.paths),
        Transform(data.height, data.width, "bicubic", data.mean, data.std, views),
        batch_size=config.batch // ranks.world_size(), seed=inputs.config.seed,
        threads=inputs.threads, device=str(ranks.device()), on_cpu=data.device == "cpu",
    )


def build(inputs: Inputs, objective: ImageObjective, loader: ImageLoader) -> loop.Stage:
    """Return stage 2 for the loop."""
    config, seed, splits = inputs.config.stage2, inputs.config.seed, inputs.splits
    names = ["main", *VSS_VIEWS] if config.vss_weight else ["main"]
    labels = torch.from_numpy(splits.labels)
    camera, view = map(torch.from_numpy, splits.places(splits.train))
    device = ranks.device()

    @lru_cache(maxsize=1)  # called for the number of batches, then for the batches
    def order(epoch: int) -> list[NDArray[np.int64]]:
        return identity_batches(splits.labels, batch=config.batch, instances=config.instances,
                                seed=seed, epoch=epoch)

    def batches(epoch: int, first: int) -> Iterator[ImageBatch]:
        share = ranks.shard(config.batch)
        every = order(epoch)
        rows = [batch[share] for batch in every]
        starts = np.arange(len(rows)) * config.batch + share.start
        positions = [start + np.arange(share.stop - share.start) for start in starts]
        read = loader.epoch(rows[first:], positions[first:], epoch=epoch)
        for step, images in enumerate(read, start=first):
            own = images["rows"]
            yield ImageBatch(
                [images[name] for name in names], labels[every[step]],
                to_device(camera[own], device), to_device(view[own], device),
                torch_seed(seed, epoch, step),
            )

    def validate(epoch: int) -> dict[str, Any]:
        """Return {"validation": metrics} after epochs that are validated."""
        every, part = inputs.config.evaluation.every, splits.validation
        if not len(part.query) or not (epoch == config.epochs or (every and epoch % every == 0)):
            return {}
        features = scoring.encode(inputs, objective.model.eval(), part)
        return {"validation": scoring.rank(part, *features).as_json(RANKS)}

    return loop.Stage(
        name="stage2", objective=objective, weights=loss_weights(config),
        optimizer=optimizer(objective, config), lr_factor=lambda epoch: lr_factor(config, epoch),
        epochs=config.epochs, batch=config.batch, steps=lambda epoch: len(order(epoch)),
        batches=batches, validate=validate,
    )
