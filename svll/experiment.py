"""One run of SVLL-ReID: data, stage 1, stage 2, features, evaluation. Where it all meets.

Each step leaves a file in the run folder (prompts, weights, features, result), so a run that was
stopped goes on at the step it was in, and inside a stage from its last checkpoint.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base.files import write_json
from harness.base.locks import job_id
from harness.base.machine import usable_cores
from harness.base.rng import torch_seed
from harness.config.build import build, read_recipe, to_mapping
from harness.images.loader import ImageLoader, decoder_name
from harness.images.views import View
from harness.runs.environment import CODE, arithmetic
from harness.runs.run import Run
from harness.runs.takeovers import changed_settings
from harness.training import loop, ranks
from harness.training.writers import Writer, open_writers
from svll import prompt_quality as prompt_signal
from svll import stage1, stage2
from svll.config import Config
from svll.data.datasets import Datasets, check_pinned, load_datasets
from svll.data.sampler import identity_batches, shuffled_batches
from svll.data.splits import Part, Splits, split
from svll.evaluation import KReciprocal, RankingResult, evaluate_ranking
from svll.evaluation.engine.ranks import Share
from svll.evaluation.written import RANKS
from svll.feature_file import open_features
from svll.features.extract import FeatureTarget, Reader, encode_pair, encode_to_file
from svll.features.files import feature_paths
from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import ReIDModel, agreement_head, image_head, learned_side_information
from svll.reuse import cache
from svll.reuse import stage1 as shared_prompts
from svll.reuse.fingerprints import check_weights
from svll.reuse.frozen_features import FrozenFeatures
from svll.run_files import prompts_file
from svll.runs import run_weights as storage
from svll.runs.data_checks import check_batch, check_decoding, check_matches, tell_side_information

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
VSS_VIEWS = ("vss_a", "vss_b")


def run(run: Run, report: Report | None = None) -> dict[str, Any]:
    """Carry out the run that `run.config_file` describes and return its result on every rank.

    Raises UserError for what the user can mend, `harness.runs.stopping.Stopped` when asked to stop.
    """
    started = time.time()
    config = build(Config, [*read_recipe(run.config_file, Config), *changed_settings(run)])
    set_up(config)
    place = config.run
    with open_writers(
        run, tensorboard=place.tensorboard, wandb=place.wandb, config=to_mapping(config)
    ) as writers:
        trial = Trial(run, config, report, writers)
        trial.check()
        text = trial.learn_prompts() if config.stage1.epochs else None
        model = trial.tune_encoder(text)
        result = trial.test(model)
    result["seconds"] = time.time() - started
    with ranks.leader_first() as acts:
        if acts:
            write_json(run.result_file, result)
            if not config.run.keep_checkpoints:
                storage.remove_checkpoints(run)
    return result


def set_up(config: Config) -> None:
    if job_id() is not None:  # what it needs was fetched when it was submitted
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ranks.init_ranks(config.engine.timeout)
    if config.engine.precision == "bf16" and not ranks.has_fast_bf16():
        log.warning(
            "this machine has no bf16 arithmetic and imitates it, many times slower than "
            "engine.precision=fp32"
        )
    ranks.be_repeatable()


class Trial:
    """What the steps of one run share."""

    def __init__(
        self, run: Run, config: Config, report: Report | None = None,
        writers: tuple[Writer, ...] = (),
    ) -> None:
        self.run, self.config = run, config
        self.cache = run.folder.parent.parent / "cache"
        self.datasets = self._datasets()
        check_pinned(config, self.datasets)
        check_weights(config.model)
        self.staged = cache.staged(self.datasets.every, config.data.stage)
        self.splits: Splits = split(
            self.datasets, validation=config.data.validation, seed=config.seed,
            protocol=config.evaluation.protocol,
        )
        self.threads = config.data.threads or len(usable_cores())
        self.clip: Clip = load_clip(
            config.model.name, config.model.weights, height=config.data.height,
            width=config.data.width, stride=config.model.stride, seed=config.seed,
        )
        self.clip.image.recompute = self.clip.text.recompute = config.engine.recompute
        self.recording = loop.Recording(
            config.run.log_every, 60 * config.run.save_every, config.run.divergence, report,
            writers, score_key=Config.experiment.metric, shown=("prompts.mAP", "validation.mAP"),
        )
        log.info(
            "%s: %d training images of %d identities, %d rank(s), global batch %d and %d",
            "+".join(d.title for d in self.datasets.train), len(self.splits.train),
            self.splits.identities,
            ranks.world_size(), config.stage1.batch, config.stage2.batch,
        )

    def _datasets(self) -> Datasets:
        """Return the datasets; where one has to be drawn, rank 0 does so before the others look."""
        found: Datasets | None = None
        with ranks.leader_first() as acts:
            if acts:
                found = load_datasets(self.config.data, self.cache / "data")
        return found or load_datasets(self.config.data, self.cache / "data")

    def check(self) -> None:
        """Refuse what `preflight` does, for this number of ranks, and images that do not decode."""
        check_batch(self.config.stage2, self.splits.identities, ranks.world_size())
        tell_side_information(self.splits, self.config.model)
        check_matches(self.splits)
        if not self.config.data.check:
            return
        with ranks.leader_first() as acts:
            if acts:
                check_decoding(self.datasets, self.staged, threads=self.threads)

    def reader(self) -> Reader:
        """How images are read for features."""
        data = self.config.data
        return Reader(
            data.height, data.width, self.config.evaluation.batch, self.threads,
            str(ranks.device()), self.config.engine.precision, data.mean, data.std, self.staged,
        )

    # --- stage 1 ---

    def learn_prompts(self) -> Tensor:
        """Carry out stage 1, unless its result is there; returns text features [N, D]."""
        config, objective = self.config, self.prompt_objective()
        if not prompts_file(self.run).exists():
            shared = self.cache / "prompts" / self._prompts_key()
            shared_prompts.take(self.run, shared, self._record)
            loop.train(self.prompt_stage(objective), self.run, config.engine, self.recording)
            shared_prompts.keep(self.run, shared, epochs=config.stage1.epochs)
            with ranks.leader_first() as acts:
                if acts:
                    storage.save_prompts(self.run, objective.prompts, config)
        storage.load_prompts(self.run, objective.prompts)
        return self.text_features(objective.to(ranks.device()))

    def prompt_objective(self) -> stage1.PromptObjective:
        """Return what stage 1 trains, as it is at first."""
        config = self.config
        torch.manual_seed(torch_seed(config.seed, 1))
        prompts = PromptLearner(
            self.clip.text.token_embedding, self.clip.tokenizer,
            identities=self.splits.identities, tokens=config.model.prompt_tokens,
            noun=config.model.noun,
        )
        head = agreement_head(config.model, self.clip.text.out, config.stage1.lss_loss)
        return stage1.PromptObjective(prompts, self.clip.text, head, config.stage1)

    def _prompts_key(self) -> str:
        """Return the name by which other runs know this run's stage 1, if theirs is the same."""
        return shared_prompts.prompts_key(
            self.config, self.datasets.fingerprint, self.clip.weights_hash,
            decoder_name(str(ranks.device())), *arithmetic(CODE, ("harness", "svll")),
        )

    def _record(self, line: dict[str, Any]) -> None:
        """Log and report a line of stage 1 that another run has trained."""
        loop.record_line(self.run, self.recording, line)
        if line["kind"] == "epoch" and self.recording.report is not None:
            self.recording.report(line)

    def prompt_stage(self, objective: stage1.PromptObjective) -> loop.Stage:
        """Return what the loop has to know of stage 1; images are encoded unless that is done."""
        config, seed = self.config.stage1, self.config.seed
        frozen = self.frozen()
        known = frozen.of(self.splits.train.paths)
        assert known is not None, "training images are of the training sets"
        features = known.to(ranks.device())
        part = self.splits.validation
        held_back = [frozen.of(records.paths) for records in (part.query, part.gallery)]
        labels = torch.from_numpy(self.splits.labels).to(ranks.device())
        count = len(labels)

        def batches(epoch: int, first: int) -> Iterator[stage1.PromptBatch]:
            order = shuffled_batches(count, batch=config.batch, seed=seed, epoch=epoch)
            for step, rows in enumerate(order[first:], start=first):
                index = torch.from_numpy(rows).to(labels.device)
                key = torch_seed(seed, epoch, step) >> 2
                yield stage1.PromptBatch(features[index], labels[index], key)

        return loop.Stage(
            name="stage1", objective=objective, weights=stage1.loss_weights(config),
            optimizer=stage1.optimizer(objective, config),
            lr_factor=lambda epoch: stage1.lr_factor(config, epoch), epochs=config.epochs,
            batch=config.batch, steps=lambda epoch: -(-count // config.batch),
            batches=batches,
            validate=lambda epoch: self._prompt_signal(
                objective, features, labels, held_back, epoch
            ),
        )

    def frozen(self) -> FrozenFeatures:
        """Return the features of the training sets' images by the encoder as it is now."""
        return FrozenFeatures(
            self.datasets.train, self.clip, self.reader(), self.config, self.cache / "stage1"
        )

    def _prompt_signal(
        self, objective: stage1.PromptObjective, features: Tensor, labels: Tensor,
        held_back: list[Tensor | None], epoch: int,
    ) -> dict[str, Any]:
        """Return {"prompts": how good they are} when this epoch is to be validated."""
        every, last = self.config.evaluation.every, epoch == self.config.stage1.epochs
        if not (last or (every and epoch % every == 0)):
            return {}
        text = self.text_features(objective)
        told = {"margin": prompt_signal.margin(features, labels, text)}
        pair = [rows.to(text.device) for rows in held_back if rows is not None and len(rows)]
        if len(pair) == 2:
            query, gallery = (prompt_signal.described(rows, text) for rows in pair)
            told["mAP"] = self._rank(self.splits.validation, query, gallery).mAP
        return {"prompts": told}

    def text_features(self, objective: stage1.PromptObjective) -> Tensor:
        """Return the features [N, D] of all identities' prompts."""
        found = []
        with torch.no_grad():
            for part in torch.arange(self.splits.identities).split(256):
                prompts = objective.prompts(part.to(ranks.device()))
                found.append(objective.encode([prompts]).float())
        return torch.cat(found)

    # --- stage 2 ---

    def tune_encoder(self, text: Tensor | None) -> ReIDModel:
        """Carry out stage 2, unless its result is there; returns the trained model.

        `text` [N, D] are the text features, None when no prompts were learned.
        """
        config, model = self.config, self._model()
        if not self.run.weights_file.exists():
            objective = self.image_objective(model, text)
            self._forget_features()
            with closing(self.train_loader()) as loader:
                stage = self.image_stage(objective, loader)
                loop.train(stage, self.run, config.engine, self.recording)
            with ranks.leader_first() as acts:
                if acts:
                    storage.save_models(
                        self.run, model, config, text=text,
                        side_labels=self.splits.side_labels, identities=self.splits.identities,
                    )
        storage.load_model(self.run, model)
        return model.to(ranks.device()).eval()

    def _model(self) -> ReIDModel:
        """Return the model that stage 2 begins with; sets the seed of what it adds."""
        config = self.config
        torch.manual_seed(torch_seed(config.seed, 2))
        side = learned_side_information(
            config.model, self.clip.image.width, cameras=self.splits.side_labels.camera_count,
            views=self.splits.side_labels.view_count,
        )
        return ReIDModel(self.clip.image.requires_grad_(True), side)

    def image_objective(
        self, model: ReIDModel | None = None, text: Tensor | None = None
    ) -> stage2.ImageObjective:
        """Return what stage 2 trains, as it is at first."""
        config, model = self.config, model or self._model()
        head = image_head(config, self.clip.image.width)
        return stage2.ImageObjective(
            model, text, head, config.stage2, identities=self.splits.identities
        )

    def _forget_features(self) -> None:
        """Remove features of weights that are about to be trained anew."""
        with ranks.leader_first() as acts:
            if acts:
                for part in self.splits.tests:
                    self.features_path(part).unlink(missing_ok=True)

    def train_loader(self) -> ImageLoader:
        """Return what reads the training images; to be closed."""
        data, config = self.config.data, self.config.stage2
        views = {"main": View(config.flip, config.pad, config.erase, config.erase_area)}
        if config.vss_weight:
            other = View(config.flip, config.pad, config.erase, config.vss_erase_area)
            views |= dict.fromkeys(VSS_VIEWS, other)
        return ImageLoader(
            self.reader().places(self.splits.train.paths), height=data.height, width=data.width,
            views=views, resize="bicubic", batch_size=config.batch // ranks.world_size(),
            seed=self.config.seed, threads=self.threads, device=str(ranks.device()),
            mean=data.mean, std=data.std,
        )

    def image_stage(self, objective: stage2.ImageObjective, loader: ImageLoader) -> loop.Stage:
        """Return what the loop has to know of stage 2."""
        config, splits = self.config.stage2, self.splits
        names = ["main", *VSS_VIEWS] if config.vss_weight else ["main"]
        labels = torch.from_numpy(splits.labels)
        camera, view = map(torch.from_numpy, splits.places(splits.train))
        device = ranks.device()

        @lru_cache(maxsize=1)  # asked for its length, then for its batches
        def order(epoch: int) -> list[NDArray[np.int64]]:
            return identity_batches(
                splits.labels, batch=config.batch, instances=config.instances,
                seed=self.config.seed, epoch=epoch,
            )

        def batches(epoch: int, first: int) -> Iterator[stage2.ImageBatch]:
            share = ranks.shard(config.batch)
            rows = [batch[share] for batch in order(epoch)]
            starts = np.arange(len(rows)) * config.batch + share.start
            positions = [start + np.arange(share.stop - share.start) for start in starts]
            read = loader.epoch(rows[first:], positions[first:], epoch=epoch)
            for step, images in enumerate(read, start=first):
                index = images["rows"].cpu()
                yield stage2.ImageBatch(
                    [images[name] for name in names], labels[index].to(device),
                    camera[index].to(device), view[index].to(device),
                    torch_seed(self.config.seed, epoch, step),
                )

        return loop.Stage(
            name="stage2", objective=objective, weights=stage2.loss_weights(config),
            optimizer=stage2.optimizer(objective, config),
            lr_factor=lambda epoch: stage2.lr_factor(config, epoch), epochs=config.epochs,
            batch=config.batch, steps=lambda epoch: len(order(epoch)),
            batches=batches, validate=lambda epoch: self._validate(objective.model, epoch),
        )

    def _validate(self, model: ReIDModel, epoch: int) -> dict[str, Any]:
        """Return {"validation": metrics} when this epoch is to be validated."""
        every, last = self.config.evaluation.every, epoch == self.config.stage2.epochs
        part = self.splits.validation
        if not len(part.query) or not (last or (every and epoch % every == 0)):
            return {}
        model.eval()
        return {"validation": self._rank(part, *self._encode(model, part)).as_json(RANKS)}

    # --- test ---

    def _encode(self, model: ReIDModel, part: Part) -> tuple[Tensor, Tensor]:
        """Return a part's test features [Q, W + D] and [G, W + D]."""
        return encode_pair(
            part.query, part.gallery, self.reader(),
            lambda records: self.splits.places(records, part.dataset), model.encode_image,
        )

    def _rank(
        self, part: Part, query: Any, gallery: Any, rerank: KReciprocal | None = None
    ) -> RankingResult:
        """Rank a part's gallery by its protocol; all ranks share the work."""
        return evaluate_ranking(
            query, gallery, part.query.identities, part.gallery.identities, part.query.cameras,
            part.gallery.cameras, protocol=part.protocol, rerank=rerank, share=Share.of_this_rank(),
            query_images=part.query.paths, gallery_images=part.gallery.paths,
        )

    def test(self, model: ReIDModel) -> dict[str, Any]:
        """Write the test features and return the result: test, validation and starting metrics.

        Of several test sets the first one's numbers are the headline; all stand under `tests`.
        """
        tests = {part.name: self._test(model, part) for part in self.splits.tests}
        initial = self.initial()
        result = dict(tests[self.splits.tests[0].name])
        validations = [m["validation"] for m in self.run.metrics() if "validation" in m]
        if validations:
            result["validation"] = validations[-1]
        result["initial"] = initial[self.splits.tests[0].name]
        if len(tests) > 1:
            result["tests"] = {name: {**tests[name], "initial": initial[name]} for name in tests}
        result |= {
            "trained_on": [dataset.name for dataset in self.datasets.train],
            "fingerprint": self.datasets.fingerprint, "signature": self.run.signature,
        }
        return result

    def features_path(self, part: Part) -> Path:
        """Where a test set's features are."""
        place = [test.name for test in self.splits.tests].index(part.name)
        return feature_paths(self.run, self.config)[place]

    def write_features(self, model: ReIDModel, part: Part) -> None:
        """Write one test set's features, unless they are there."""
        path, key = self.features_path(part), ""
        reader, dtype = self.reader(), self.config.evaluation.feature_dtype
        with ranks.leader_first() as acts:
            if acts and not path.exists():
                key = cache.feature_key(
                    self.datasets.fingerprint, storage.file_hash(self.run.weights_file),
                    self.config, reader, part.name, reader.batch, dtype,
                )
        key = ranks.from_leader(key)
        if not key:
            return
        encode_to_file(
            FeatureTarget(
                path, part.name, self.run.signature, part.protocol, key, part.first_camera, dtype
            ),
            part.query, part.gallery, reader,
            lambda records: self.splits.places(records, part.dataset), model.encode_image,
        )

    def _test(self, model: ReIDModel, part: Part) -> dict[str, Any]:
        """Write one test set's features and return the metrics of what was written."""
        self.write_features(model, part)
        with open_features(self.features_path(part), ("query", "gallery")) as file:
            query, gallery = (file.groups[name].features for name in ("query", "gallery"))
            result: dict[str, Any] = self._rank(part, query, gallery).as_json()
            used = self.config.evaluation
            if used.rerank:
                setting = KReciprocal(used.k1, used.k2, used.weight)
                reranked = self._rank(part, query, gallery, setting).as_json()
                result["reranked"] = {"rerank": asdict(setting), **reranked}
        log.info("%s: test mAP %.4f, rank-1 %.4f", part.name, result["mAP"], result["cmc"]["1"])
        return result | {"dataset": part.name, "protocol": part.protocol}

    def initial(self) -> dict[str, Any]:
        """Return the test metrics of the encoder that the run started from, by test set.

        Shared like a cache by all runs that start from the same.
        """
        config, reader = self.config, self.reader()
        key = cache.feature_key(
            self.datasets.fingerprint, self.clip.weights_hash, config, reader,
            [part.name for part in self.splits.tests], config.evaluation.protocol or True,
        )

        def measure() -> dict[str, Any]:
            clip = load_clip(
                config.model.name, config.model.weights, height=config.data.height,
                width=config.data.width, stride=config.model.stride, seed=config.seed,
            )
            model = ReIDModel(clip.image.to(ranks.device()).eval(), None)
            return {
                part.name: self._rank(part, *self._encode(model, part)).as_json(RANKS)
                for part in self.splits.tests
            }

        return cache.shared_json(self.cache / "initial" / f"{key}.json", measure)
