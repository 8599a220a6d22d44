"""Stage 1, prompt learning: both encoders frozen, M tokens per identity trained.

SVLL-ReID, section 3.2; CLIP-ReID, section 3.2. Letters: B images of the global batch, n distinct
identities in it, N identities, L tokens, D joint space.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.base.rng import torch_seed
from harness.images.loader import decoder_name
from harness.images.transfer import to_device
from harness.runs.environment import CODE, arithmetic
from harness.training import loop, ranks
from svll import prompt_quality, scoring
from svll.base.run_files import prompts_file
from svll.config import Config, Stage1
from svll.data.sampler import shuffled_batches
from svll.inputs import Inputs
from svll.losses import agreement_loss, supcon_loss
from svll.models.clip import Clip
from svll.models.prompts import PromptLearner
from svll.models.reid import agreement_head
from svll.models.text_encoder import TextEncoder
from svll.models.weights.run_weights import load_prompts, save_prompts
from svll.prompt_augmentation import augment_prompts
from svll.reuse.shared_stage1 import adopt_stage1, prompts_key, share_stage1


@dataclass(frozen=True)
class PromptBatch:
    """A step's global batch, the same on every rank."""

    features: Tensor  # [B, D] of the frozen image encoder
    identities: Tensor  # [B] labels 0..N-1, on the host
    seed: int  # of this step's augmentations


class PromptObjective(nn.Module):
    """The losses of stage 1, by name: i2t, t2i and, if its weight is not 0, lss."""

    def __init__(
        self, prompts: PromptLearner, text: TextEncoder, head: nn.Module, config: Stage1
    ) -> None:
        super().__init__()
        self.prompts = prompts
        self.text = text.requires_grad_(False)
        self.head = head.requires_grad_(config.train_head and config.lss_weight > 0)
        self.config = config

    def forward(self, batch: PromptBatch) -> dict[str, Tensor]:
        """Return the losses of a global batch; every rank encodes its share of the prompts."""
        identities, of_sample = batch.identities.unique(return_inverse=True)
        own, *copies = self._encode(identities, batch.seed)
        text = own[to_device(of_sample, own.device)]  # [B, D]
        labels = to_device(batch.identities, own.device)
        losses = {
            "i2t": supcon_loss(batch.features, text, labels, labels),
            "t2i": supcon_loss(text, batch.features, labels, labels),
        }
        if self.config.lss_weight and len(identities) > 1:
            losses["lss"] = agreement_loss(self.head, *copies, kind=self.config.lss_loss,
                                           temperature=self.config.lss_temperature)
        elif self.config.lss_weight:  # a single identity has no negatives
            losses["lss"] = text.sum() * 0.0
        return losses

    def _encode(self, identities: Tensor, seed: int) -> list[Tensor]:
        """Return text features [n, D] of the prompts of identities [n], which are on the host, and,
        for lss, of two augmented copies."""
        device, share = self.prompts.tokens.device, ranks.padded_shard(len(identities))
        sets = [self.prompts(to_device(identities[share], device))]
        if self.config.lss_weight:
            every, own = to_device(identities, device), to_device(share, device)
            sets += [self._augmented(every, own, seed, copy) for copy in (0, 1)]
        encoded = self.encode(sets).float().chunk(len(sets))
        return [ranks.gather_rows(part)[: len(identities)] for part in encoded]

    def encode(self, sets: list[Tensor]) -> Tensor:
        """Encode prompts [n, L, W] and any copies of them in one call; returns [sets * n, D].

        Tokens before the learnable ones need no gradient unless swapped with them. They are equal
        in all prompts, and in copies of which only the learnable tokens are augmented.
        """
        kind, first = self.config.augment, self.prompts.learnable.start
        copies, is_all = sets[1:], self.config.augment_tokens == "all"
        if copies and is_all and kind in ("swap", "swap_prompt"):
            return self.text(torch.cat(sets))
        rest = torch.cat([each[:, first:] for each in sets])
        beginnings, which = [sets[0][:1, :first]], rest.new_zeros(len(rest), dtype=torch.long)
        if is_all:
            beginnings += [copy[:, :first] for copy in copies]
            last = len(rest) - len(sets[0])
            which[len(sets[0]) :] = torch.arange(1, last + 1, device=which.device)
        return self.text(rest, (torch.cat(beginnings), which))

    def _augmented(self, identities: Tensor, share: Tensor, seed: int, copy: int) -> Tensor:
        """Return this rank's share of an augmented copy.

        All n prompts are augmented, which costs no encoding, so that the draws (and the partners of
        mix) do not depend on the number of ranks.
        """
        augmented = augment_prompts(
            self.prompts(identities), kind=self.config.augment, scale=self.config.augment_scale,
            generator=torch.Generator().manual_seed(2 * seed + copy),
            padding=self.prompts.padding,  # type: ignore[arg-type]
            context_length=self.text.context_length,
            keep=self.prompts.learnable if self.config.augment_tokens == "learnable" else None,
        )
        return augmented[share]


def loss_weights(config: Stage1) -> dict[str, float]:
    """Return the weight of each loss of stage 1; `harness.training.loop.train_step` multiplies."""
    return {"i2t": 1.0, "t2i": 1.0, "lss": config.lss_weight}


def optimizer(objective: PromptObjective, config: Stage1) -> torch.optim.Optimizer:
    """Adam with L2 decay over the prompts; identities outside a batch move by their moments too."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    return torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def lr_factor(config: Stage1, epoch: int) -> float:
    """Return the learning rate of an epoch (1 the first) in multiples of `config.lr`.

    Linear from `warmup_lr` over the warm-up epochs, then the cosine over all epochs to `lr_min`.
    """
    if epoch < config.warmup_epochs:
        rise = (config.lr - config.warmup_lr) / config.warmup_epochs
        return (config.warmup_lr + epoch * rise) / config.lr
    half = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    return (config.lr_min + (config.lr - config.lr_min) * half) / config.lr


# --- the stage of a run ---


def learn_prompts(inputs: Inputs, recording: loop.Recording) -> Tensor:
    """Run stage 1 unless its result exists; returns the text features [N, D]."""
    run, config = inputs.run, inputs.config
    objective = make_objective(config, inputs.clip, inputs.splits.identities)

    def record(line: dict[str, Any]) -> None:
        """Log and report a line of a stage 1 that another run trained."""
        loop.record_line(run, recording, line)
        if line["kind"] == "epoch" and recording.report is not None:
            recording.report(line)

    if not prompts_file(run).exists():
        decoder = decoder_name(inputs.reader().decodes_on)
        key = prompts_key(config, inputs.datasets.fingerprint, inputs.clip.weights_hash, decoder,
                          *arithmetic(CODE, ("harness", "svll")))
        shared = inputs.cache / "prompts" / key
        adopt_stage1(run, shared, record)
        loop.train(build(inputs, objective), run, config.engine, recording)
        share_stage1(run, shared, epochs=config.stage1.epochs)
        ranks.on_leader(lambda: save_prompts(run, objective.prompts, config))
    load_prompts(run, objective.prompts)
    return text_features(objective.to(ranks.device()))


def make_objective(config: Config, clip: Clip, identities: int) -> PromptObjective:
    """Return the untrained module of stage 1."""
    torch.manual_seed(torch_seed(config.seed, 1))
    prompts = PromptLearner(clip.text.token_embedding, clip.tokenizer, identities=identities,
                            tokens=config.model.prompt_tokens, noun=config.model.noun)
    head = agreement_head(config.model, clip.text.out, config.stage1.lss_loss)
    return PromptObjective(prompts, clip.text, head, config.stage1)


def build(inputs: Inputs, objective: PromptObjective) -> loop.Stage:
    """Return stage 1 for the loop; encodes the training images unless their features exist."""
    config, seed, splits = inputs.config.stage1, inputs.config.seed, inputs.splits
    frozen = inputs.frozen()
    trained = frozen.of(splits.train.paths)
    assert trained is not None, "training images are of the training sets"
    features = trained.to(ranks.device())
    part = splits.validation
    held_out = [frozen.of(records.paths) for records in (part.query, part.gallery)]
    labels = torch.from_numpy(splits.labels)
    count = len(labels)

    def batches(epoch: int, first: int) -> Iterator[PromptBatch]:
        order = shuffled_batches(count, batch=config.batch, seed=seed, epoch=epoch)
        for step, rows in enumerate(order[first:], start=first):
            index = torch.from_numpy(rows)
            key = torch_seed(seed, epoch, step) >> 2
            yield PromptBatch(features[to_device(index, features.device)], labels[index], key)

    def validate(epoch: int) -> dict[str, Any]:
        """Return {"prompts": their quality} after epochs that are validated."""
        every, last = inputs.config.evaluation.every, epoch == config.epochs
        if not (last or (every and epoch % every == 0)):
            return {}
        text = text_features(objective)
        quality = {"margin": prompt_quality.margin(features, labels.to(text.device), text)}
        pair = [rows.to(text.device) for rows in held_out if rows is not None and len(rows)]
        if len(pair) == 2:
            query, gallery = (prompt_quality.described(rows, text) for rows in pair)
            quality["mAP"] = scoring.rank(part, query, gallery).mAP
        return {"prompts": quality}

    return loop.Stage(
        name="stage1", objective=objective, weights=loss_weights(config),
        optimizer=optimizer(objective, config), lr_factor=lambda epoch: lr_factor(config, epoch),
        epochs=config.epochs, batch=config.batch, steps=lambda epoch: -(-count // config.batch),
        batches=batches, validate=validate,
    )


def text_features(objective: PromptObjective) -> Tensor:
    """Return the features [N, D] of all identities' prompts; raises Stopped on every rank."""
    parts = torch.arange(len(objective.prompts.tokens), device=ranks.device()).split(256)
    with torch.no_grad():
        return torch.cat([objective.encode([objective.prompts(part)]).float()
                          for part in ranks.stoppable(parts, "encoding the prompts")])
