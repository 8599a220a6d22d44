"""One run of SVLL-ReID: data, stage 1, stage 2, features, evaluation. Where it all meets.

Each step leaves a file in the run folder (prompts, weights, features, result), so a run that was
stopped goes on at the step it was in, and inside a stage from its last checkpoint.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import engine as ranks
from harness import loop
from harness.config import build, read_recipe
from harness.errors import UserError
from harness.features import FeatureGroup, write_features
from harness.files import write_json
from harness.pipeline import ImageLoader, View, check_images
from harness.rng import torch_seed
from harness.runs import Run
from svll import cache, stage1, stage2, storage
from svll.config import Config
from svll.data.datasets import load_dataset
from svll.data.records import Dataset, Records
from svll.data.sampling import identity_batches, shuffled_batches
from svll.data.splits import Splits, camera_index, split
from svll.encode import Reader, encode_all
from svll.evaluation import KReciprocal, RankingResult, evaluate_ranking
from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import ProjectionHead, ReIDModel, SideInformation

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
VSS_VIEWS = ("vss_a", "vss_b")


def run(run: Run, report: Report | None = None) -> dict[str, Any]:
    """Carry out the run that `run.config_file` describes and return its result on every rank.

    Raises UserError for what the user can mend, `harness.stopping.Stopped` when asked to stop.
    """
    started = time.time()
    ranks.init_ranks()
    config = build(Config, read_recipe(run.config_file, Config))
    # on a GPU this would cost speed; there, runs agree to rounding
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    trial = Trial(run, config, report)
    with closing(trial):
        trial.check()
        text = trial.learn_prompts()
        model = trial.tune_encoder(text)
        result = trial.test(model)
    result["seconds"] = time.time() - started
    with ranks.leader_first() as acts:
        if acts:
            write_json(run.result_file, result)
            if not config.run.keep_checkpoints:
                storage.remove_checkpoints(run)
    return result


class Trial:
    """What the steps of one run share."""

    def __init__(self, run: Run, config: Config, report: Report | None) -> None:
        self.run, self.config = run, config
        self.cache = run.folder.parent.parent / "cache"
        self.dataset = self._dataset()
        self.splits: Splits = split(
            self.dataset, validation=config.data.validation, seed=config.seed
        )
        self.threads = config.data.threads or len(os.sched_getaffinity(0))
        self.clip: Clip = load_clip(
            config.model.name, config.model.weights, height=config.data.height,
            width=config.data.width, stride=config.model.stride, seed=config.seed,
        )
        self.recording = loop.Recording(config.run.log_every, report, self._writer())
        log.info(
            "%s: %d training images of %d identities, %d rank(s), global batch %d and %d",
            self.dataset.name, len(self.splits.train), self.splits.identities,
            ranks.world_size(), config.stage1.batch, config.stage2.batch,
        )

    def _dataset(self) -> Dataset:
        """Return the dataset; where it has to be drawn, rank 0 does so before the others look."""
        found: Dataset | None = None
        with ranks.leader_first() as acts:
            if acts:
                found = load_dataset(self.config.data, self.cache / "data")
        return found or load_dataset(self.config.data, self.cache / "data")

    def _writer(self) -> Any:
        if not self.config.run.tensorboard or ranks.rank() != 0:
            return None
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        return SummaryWriter(str(self.run.tensorboard))

    def close(self) -> None:
        """Finish the TensorBoard log."""
        if self.recording.writer is not None:
            self.recording.writer.close()

    def check(self) -> None:
        """Refuse batches that the ranks cannot share and images that cannot be decoded."""
        world, batch = ranks.world_size(), self.config.stage2.batch
        if batch % world:
            raise UserError(f"stage2.batch={batch} is not a multiple of the {world} ranks")
        wanted = batch // self.config.stage2.instances
        if wanted > self.splits.identities:
            raise UserError(
                f"stage2.batch={batch} asks for {wanted} identities at a time, the training part "
                f"has {self.splits.identities}; use a smaller stage2.batch"
            )
        self._check_side_information()
        if not self.config.data.check:
            return
        with ranks.leader_first() as acts:
            if acts:
                parts = (self.dataset.train, self.dataset.query, self.dataset.gallery)
                paths = [path for part in parts for path in part.paths]
                broken = check_images(paths, threads=self.threads)
                if broken:
                    listed = "\n".join(f"  {path}: {reason}" for path, reason in broken[:20])
                    raise UserError(
                        f"{len(broken)} of {len(paths)} images cannot be read; mend or remove "
                        f"them:\n{listed}"
                    )

    def _check_side_information(self) -> None:
        """Refuse cameras and views that are tested or selected on and have no learned vector."""
        kind = self.config.model.sie
        parts = (self.splits.validation_gallery, self.dataset.query, self.dataset.gallery)
        for part in parts:
            if kind in ("camera", "camera_view"):
                camera_index(part.cameras, self.splits.cameras)
            if kind in ("view", "camera_view") and part.views.max(initial=0) >= self.splits.views:
                raise UserError(
                    f"view {part.views.max()} is not in the training part, so it has no side "
                    "information; use model.sie=camera or none"
                )

    def reader(self) -> Reader:
        """How images are read for features."""
        data = self.config.data
        return Reader(
            data.height, data.width, self.config.evaluation.batch, self.threads,
            str(ranks.device()), self.config.engine.precision,
        )

    # --- stage 1 ---

    def learn_prompts(self) -> Tensor:
        """Carry out stage 1, unless its result is there; returns text features [N, D]."""
        config = self.config
        torch.manual_seed(torch_seed(config.seed, 1))
        prompts = PromptLearner(
            self.clip.text.token_embedding, self.clip.tokenizer,
            identities=self.splits.identities, tokens=config.model.prompt_tokens,
            noun=config.model.noun,
        )
        head = self._head(self.clip.text.out)
        objective = stage1.PromptObjective(prompts, self.clip.text, head, config.stage1)
        if not self.run.prompts_file.exists():
            loop.train(self._stage1(objective), self.run, config.engine, self.recording)
            with ranks.leader_first() as acts:
                if acts:
                    storage.save_prompts(self.run, prompts, config)
        storage.load_prompts(self.run, prompts)
        return self._text_features(objective.to(ranks.device()))

    def _stage1(self, objective: stage1.PromptObjective) -> loop.Stage:
        config, seed = self.config.stage1, self.config.seed
        features = self._frozen_features().to(ranks.device())
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
            batches=batches, validate=lambda epoch: {},
        )

    def _frozen_features(self) -> Tensor:
        """Return the frozen encoder's features [n, D] of the images that are trained on.

        Computed for the whole training set once per key, and shared by all runs that agree on it.
        """
        encoder = self.clip.image.to(ranks.device()).eval()
        dataset, reader = self.dataset, self.reader()
        key = cache.feature_key(dataset.fingerprint, self.clip.weights_hash, self.config, reader)
        features = cache.shared_features(
            self.cache / "stage1" / f"{key}.h5", dataset,
            lambda: encode_all(dataset.train, reader, lambda images, rows: encoder(images).fp),
        )
        place = {path: row for row, path in enumerate(dataset.train.paths)}
        return features[torch.tensor([place[path] for path in self.splits.train.paths])]

    def _text_features(self, objective: stage1.PromptObjective) -> Tensor:
        found = []
        with torch.no_grad():
            for part in torch.arange(self.splits.identities).split(256):
                prompts = objective.prompts(part.to(ranks.device()))
                found.append(objective.text(prompts).float())
        return torch.cat(found)

    def _head(self, width: int) -> ProjectionHead:
        model = self.config.model
        return ProjectionHead(width, hidden=model.head_hidden, out=model.head_out)

    # --- stage 2 ---

    def tune_encoder(self, text: Tensor) -> ReIDModel:
        """Carry out stage 2, unless its result is there; returns the trained model."""
        config = self.config
        torch.manual_seed(torch_seed(config.seed, 2))
        side = None
        if config.model.sie != "none":
            side = SideInformation(
                config.model.sie, cameras=len(self.splits.cameras), views=self.splits.views,
                width=self.clip.image.width, weight=config.model.sie_weight,
                unseen=config.model.sie_unseen,
            )
        model = ReIDModel(self.clip.image.requires_grad_(True), side)
        if not self.run.weights_file.exists():
            head = self._head(self.clip.image.width)
            objective = stage2.ImageObjective(model, text, head, config.stage2)
            with closing(self._train_loader()) as loader:
                stage = self._stage2(objective, loader)
                loop.train(stage, self.run, config.engine, self.recording)
            with ranks.leader_first() as acts:
                if acts:
                    storage.save_model(
                        self.run, model, config, text=text, cameras=self.splits.cameras
                    )
        storage.load_model(self.run, model)
        return model.to(ranks.device()).eval()

    def _train_loader(self) -> ImageLoader:
        data, config = self.config.data, self.config.stage2
        views = {"main": View(config.flip, config.pad, config.erase, config.erase_area)}
        if config.vss_weight:
            other = View(config.flip, config.pad, config.erase, config.vss_erase_area)
            views |= dict.fromkeys(VSS_VIEWS, other)
        return ImageLoader(
            self.splits.train.paths, height=data.height, width=data.width, views=views,
            resize="bicubic", batch_size=config.batch // ranks.world_size(),
            seed=self.config.seed, threads=self.threads, device=str(ranks.device()),
        )

    def _stage2(self, objective: stage2.ImageObjective, loader: ImageLoader) -> loop.Stage:
        config, splits = self.config.stage2, self.splits
        names = ["main", *VSS_VIEWS] if config.vss_weight else ["main"]
        labels, view = torch.from_numpy(splits.labels), torch.from_numpy(splits.train.views)
        camera = torch.from_numpy(camera_index(splits.train.cameras, splits.cameras))
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
            for images in loader.epoch(rows[first:], positions[first:], epoch=epoch):
                index = images["rows"].cpu()
                yield stage2.ImageBatch(
                    [images[name] for name in names], labels[index].to(device),
                    camera[index].to(device), view[index].to(device),
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
        if not len(self.splits.validation_query) or not (last or (every and epoch % every == 0)):
            return {}
        model.eval()
        query, gallery = self.splits.validation_query, self.splits.validation_gallery
        features = self._encode(model, gallery)
        place = {path: row for row, path in enumerate(gallery.paths)}
        rows = torch.tensor([place[path] for path in query.paths])
        return {"validation": rank(features[rows], features, query, gallery).as_json()}

    # --- test ---

    def _encode(self, model: ReIDModel, records: Records) -> Tensor:
        """Return test features [n, W + D] of images, with side information where there is any."""
        camera = torch.zeros(len(records), dtype=torch.int64)
        if model.side is not None:
            camera = torch.from_numpy(camera_index(records.cameras, self.splits.cameras))
        view = torch.from_numpy(records.views)

        def encode(images: Tensor, rows: NDArray[np.int64]) -> Tensor:
            index, device = torch.from_numpy(rows), images.device
            return model.encode_image(images, camera[index].to(device), view[index].to(device))

        return encode_all(records, self.reader(), encode)

    def test(self, model: ReIDModel) -> dict[str, Any]:
        """Write the test features and return the result: test, validation and starting metrics."""
        query, gallery = self.dataset.query, self.dataset.gallery
        features = {"query": self._encode(model, query), "gallery": self._encode(model, gallery)}
        with ranks.leader_first() as acts:
            if acts:
                groups = {
                    "query": feature_group(features["query"], query),
                    "gallery": feature_group(features["gallery"], gallery),
                }
                write_features(
                    self.run.features_file, groups, dataset=self.dataset.name,
                    model=self.run.signature,
                )
        rows = (features["query"], features["gallery"])
        result: dict[str, Any] = rank(*rows, query, gallery).as_json()
        if self.config.evaluation.rerank:
            result["reranked"] = rank(*rows, query, gallery, rerank=KReciprocal()).as_json()
        validations = [m["validation"] for m in self.run.metrics() if "validation" in m]
        if validations:
            result["validation"] = validations[-1]
        result["initial"] = self._initial()
        result |= {
            "dataset": self.dataset.name, "protocol": self.dataset.protocol,
            "fingerprint": self.dataset.fingerprint, "signature": self.run.signature,
        }
        log.info("test mAP %.4f, rank-1 %.4f", result["mAP"], result["cmc"]["1"])
        return result

    def _initial(self) -> dict[str, Any]:
        """Return the test metrics of the encoder that the run started from; shared like a cache."""
        config, dataset, reader = self.config, self.dataset, self.reader()
        key = cache.feature_key(dataset.fingerprint, self.clip.weights_hash, config, reader)

        def measure() -> dict[str, Any]:
            clip = load_clip(
                config.model.name, config.model.weights, height=config.data.height,
                width=config.data.width, stride=config.model.stride, seed=config.seed,
            )
            model = ReIDModel(clip.image.to(ranks.device()).eval(), None)
            found = [self._encode(model, part) for part in (dataset.query, dataset.gallery)]
            return rank(found[0], found[1], dataset.query, dataset.gallery).as_json()

        return cache.shared_json(self.cache / "initial" / f"{key}.json", measure)


def rank(
    query_features: Tensor, gallery_features: Tensor, query: Records, gallery: Records,
    rerank: KReciprocal | None = None,
) -> RankingResult:
    """Rank a gallery for queries by the test protocol."""
    return evaluate_ranking(
        query_features, gallery_features, query.identities, gallery.identities,
        query.cameras, gallery.cameras, rerank=rerank,
    )


def feature_group(features: Tensor, records: Records) -> FeatureGroup:
    """Put features [n, D] and what is known of their images together."""
    return FeatureGroup(
        features=features.numpy(), identities=records.identities, cameras=records.cameras,
        views=records.views, paths=records.paths,
    )
