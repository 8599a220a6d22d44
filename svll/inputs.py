"""The inputs that a run's steps share: datasets, their parts, the starting model, image reading."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.base.machine import usable_cores
from harness.runs.run import Run
from harness.runs.stopping import at_once
from harness.training import ranks
from svll.config import Config, EngineConfig
from svll.data import run_checks
from svll.data.datasets import Datasets, load_datasets
from svll.data.splits import Splits, split
from svll.data.staging import staged
from svll.features.extract import Reader
from svll.models.blocks import BlockCompiler
from svll.models.clip import Clip, load_clip
from svll.reuse.fingerprints import check_pinned, check_weights
from svll.reuse.frozen_features import FrozenFeatures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Everything that a run starts from."""

    run: Run
    config: Config
    datasets: Datasets
    staged: Mapping[str, str]  # paths of images copied to this node, by their original paths
    splits: Splits
    clip: Clip  # the starting model; stage 2 trains its image encoder
    cache: Path  # the folder of files that all runs of a runs folder share

    @property
    def threads(self) -> int:
        """The number of threads that decode; as many more make views."""
        return self.config.data.threads or len(usable_cores())

    def reader(self) -> Reader:
        """Return how images are read for features."""
        data = self.config.data
        return Reader(
            data.height, data.width, self.config.evaluation.batch, self.threads,
            str(ranks.device()), self.config.engine.precision, data.mean, data.std, self.staged,
            on_cpu=data.device == "cpu",
        )

    def frozen(self) -> FrozenFeatures:
        """Return the training images' features by the starting encoder."""
        return FrozenFeatures(self.datasets.train, self.clip, self.reader(), self.config,
                              self.cache / "stage1")


def starting_clip(config: Config) -> Clip:
    """Return the model that a run starts from, at the run's input size and stride."""
    return load_clip(config.model.name, config.model.weights, height=config.data.height,
                     width=config.data.width, stride=config.model.stride, seed=config.seed)


def set_blocks(clip: Clip, engine: EngineConfig) -> None:
    """Set how blocks are trained; they are compiled on GPUs only."""
    for encoder in (clip.image, clip.text):
        encoder.recompute = engine.recompute
        is_compiled = engine.compile is not None and ranks.device().type == "cuda"
        encoder.compiler = BlockCompiler() if is_compiled else None


def load_inputs(run: Run, config: Config) -> Inputs:
    """Load a run's inputs on every rank; raises UserError if missing or not those of the run, and
    Stopped."""
    cache, reading = run.folder.parent.parent / "cache", "reading the datasets"
    load = partial(load_datasets, config.data, cache / "data")
    with ranks.leader_first() as acts:  # rank 0 may have to draw a dataset
        early = at_once(reading, load) if acts else None

    def checked() -> Datasets:
        datasets = early or load()
        check_pinned(config, datasets)
        check_weights(config.model)
        return datasets

    datasets = ranks.at_once(reading, checked)
    staged_roots = staged(datasets.every, config.data.stage)
    splits = split(datasets, validation=config.data.validation, seed=config.seed,
                   protocol=config.evaluation.protocol)
    # which may be downloaded
    clip = ranks.at_once("loading the model", lambda: starting_clip(config))
    set_blocks(clip, config.engine)
    log.info("%s: %d training images of %d identities, %d rank(s), global batch %d and %d",
             "+".join(d.title for d in datasets.train), len(splits.train), splits.identities,
             ranks.world_size(), config.stage1.batch, config.stage2.batch)
    return Inputs(run, config, datasets, staged_roots, splits, clip, cache)


def check_inputs(inputs: Inputs) -> None:
    """Raise UserError as `preflight` does, for this number of ranks, and for unreadable images."""
    config, splits = inputs.config, inputs.splits
    run_checks.check_batch(config.stage2, splits.identities, ranks.world_size())
    run_checks.log_side_information(splits, config.model)
    run_checks.check_matches(splits)
    if config.data.check:
        ranks.on_leader(lambda: run_checks.check_decoding(
            inputs.datasets, inputs.staged, threads=inputs.threads
        ))
