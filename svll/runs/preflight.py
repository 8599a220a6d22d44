"""Checks before a run has a folder: everything that needs no decoded image.

`launch/train.py`, its dry run and `launch/slurm.py` refuse here what the run itself would refuse
later; the dry run gets the size of the training part.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import UserError
from harness.config.values import to_mapping
from svll.config import Config, Data
from svll.data import datasets, staging
from svll.data.benchmarks import describe
from svll.data.run_checks import check_batch, check_matches, log_side_information
from svll.data.sampler import identity_batches
from svll.data.splits import split
from svll.reuse.fingerprints import check_given
from svll.world.world import CAMERAS, shots_of

Loaded = dict[str, datasets.Datasets]
"""Datasets that a command has loaded, by `data` of the configuration as JSON."""


class TrainingSize(NamedTuple):
    """Size of the training part."""

    images: int
    identities: int
    cameras: int
    views: int
    source: str = "as found"
    """Where the numbers come from: `as found`, `to be drawn` or `as published`."""
    batches: int | None = None
    """Steps of an epoch of stage 2 if the images are known; None: about images / batch."""


def preflight(
    config: Config, world: int = 1, *, here: bool = True, loaded: Loaded | None = None
) -> TrainingSize:
    """Raise UserError for what the run on `world` ranks would refuse; return the training's size.

    here: this process executes the run, so its model is looked up and `data.stage` is a folder of
    this machine. A dataset without a folder has its published size.
    """
    check_given(config.model)
    if here and config.data.stage is not None:
        staging.place_of(config.data.stage)
    size = _size(config, world, {} if loaded is None else loaded)
    if here and config.model.name != "svll-tiny":  # shipped with its weights
        from svll.models.clip import weights_source  # open_clip: seconds, which the run needs too

        weights_source(config.model.name, config.model.weights)
    return size


def preflight_all(configs: Mapping[str, Config], world: int) -> None:
    """Check the configurations of jobs by their titles; raises UserError with every fault once."""
    loaded: Loaded = {}
    checked: dict[str, tuple[str, Config]] = {}
    for title, config in configs.items():
        key = json.dumps([
            to_mapping(config.data), config.model.weights, config.stage2.batch,
            config.stage2.instances, config.evaluation.protocol,
            config.data.validation and config.seed,
        ])
        checked.setdefault(key, (title, config))
    faults: dict[str, str] = {}
    for title, config in checked.values():
        try:
            preflight(config, world, here=False, loaded=loaded)
        except UserError as error:
            faults.setdefault(str(error), title)
    if faults:
        raise UserError("\n".join(f"{title}: {fault}" for fault, title in faults.items()))


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress log lines that the run will repeat."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _size(config: Config, world: int, loaded: Loaded) -> TrainingSize:
    """Return the size of the training part, its batches and queries checked."""
    data, stage = config.data, config.stage2
    names = datasets.trained_on(data) + datasets.tested_on(data)
    if any(datasets.root_of(data, name) is None for name in names):
        size = _expected(config)
        check_batch(stage, size.identities, world)
        return size
    key = json.dumps(to_mapping(data))
    try:
        if key not in loaded:
            loaded[key] = datasets.load_datasets(data, Path(config.run.runs) / "cache" / "data")
        splits = split(loaded[key], validation=data.validation, seed=config.seed,
                       protocol=config.evaluation.protocol)
    except UserError as fault:
        if data.validation:  # add the next fault to the message
            try:
                _size(replace(config, data=replace(data, validation=0.0)), world, loaded)
            except UserError as further:
                if str(further) != str(fault):
                    raise UserError(f"{fault}\nthen: {further}") from None
        raise
    check_batch(stage, splits.identities, world)
    log_side_information(splits, config.model)
    check_matches(splits)
    order = identity_batches(splits.labels, batch=stage.batch, instances=stage.instances,
                             seed=config.seed, epoch=1)
    return TrainingSize(len(splits.train), splits.identities, splits.side_labels.camera_count,
                        splits.side_labels.view_count, batches=len(order))


def _expected(config: Config) -> TrainingSize:
    """Return the size of training sets, some of them missing: as drawn or as published."""
    data = config.data
    sizes = [_expected_of(data, name, Path(config.run.runs)) for name in datasets.trained_on(data)]
    kept = 1 - data.validation
    return TrainingSize(
        round(sum(size.images for size in sizes) * kept),
        round(sum(size.identities for size in sizes) * kept),
        sum(size.cameras for size in sizes), views=1,
        source="as published" if "as published" in {s.source for s in sizes} else "to be drawn",
    )


def _expected_of(data: Data, name: str, runs: Path) -> TrainingSize:
    if datasets.root_of(data, name) is not None:
        alone = replace(data, train=[name], test=[name])
        found = datasets.load_datasets(alone, runs / "cache" / "data").train[0].train
        return TrainingSize(len(found), len(set(found.identities)), len(set(found.cameras)), 1)
    if name == "synthetic":
        world = datasets.world_of(data.world)
        images = sum(shot.identity in world.train_ids for shot in shots_of(world))
        return TrainingSize(images, world.train_identities, CAMERAS, 1, "to be drawn")
    known = describe(name)
    if known is None or known.published is None:
        raise UserError(datasets.needed_root(name))
    train, cameras = known.published.train, known.published.cameras
    return TrainingSize(train.images or 0, train.identities, cameras, 1, "as published")
