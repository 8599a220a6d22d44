"""What a run checks before it has a folder: everything that needs no image to be decoded.

`launch/train.py`, its dry run and `launch/slurm.py` refuse here what the run itself would refuse
later, and the dry run learns the size of the training part.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from harness.base.errors import UserError
from harness.config.values import to_mapping
from svll.config import Config, Data
from svll.data import staging
from svll.data.benchmarks import describe
from svll.data.datasets import (
    Datasets,
    load_datasets,
    needed_root,
    root_of,
    tested_on,
    trained_on,
    world_of,
)
from svll.data.run_checks import check_batch, check_matches
from svll.data.sampler import identity_batches
from svll.data.splits import Splits, split
from svll.reuse.fingerprints import check_given
from svll.world.world import CAMERAS, shots_of

Loaded = dict[str, Datasets]
"""Datasets that one command has read, by the part of the configuration that names them."""


@dataclass(frozen=True)
class Size:
    """How large the training part is."""

    images: int
    identities: int
    cameras: int
    views: int
    source: str = "as found"
    """Where that is known from: `as found`, `to be drawn` or `as published`."""
    batches: int | None = None
    """Steps of an epoch of stage 2 where the images are known; None: about images / batch."""


def preflight(
    config: Config, world: int = 1, *, here: bool = True, loaded: Loaded | None = None
) -> Size:
    """Raise UserError for what the run on `world` ranks would refuse; return the training's size.

    here: whether this process goes on with the run, so that its model is looked up, and
    `data.stage` is a folder of this machine. A dataset without a folder is sized as published.
    """
    check_given(config.model)
    if here and config.data.stage is not None:
        staging.place_of(config.data.stage)
    size = _size(config, world, {} if loaded is None else loaded)
    if here and config.model.name != "svll-tiny":  # which is shipped with its weights
        from svll.models.clip import weights_source  # open_clip: seconds, which the run takes, too

        weights_source(config.model.name, config.model.weights)
    return size


def preflight_all(configs: Mapping[str, Config], world: int) -> None:
    """Check the configurations of jobs by their titles; raises UserError with every fault once."""
    loaded: Loaded = {}
    checked: set[str] = set()
    faults: dict[str, str] = {}
    for title, config in configs.items():
        key = json.dumps([
            to_mapping(config.data), config.model.weights, config.stage2.batch,
            config.stage2.instances, config.evaluation.protocol,
            config.data.validation and config.seed,
        ])
        if key in checked:
            continue
        checked.add(key)
        try:
            preflight(config, world, here=False, loaded=loaded)
        except UserError as error:
            faults.setdefault(str(error), title)
    if faults:
        raise UserError("\n".join(f"{title}: {fault}" for fault, title in faults.items()))


@contextmanager
def quietly() -> Iterator[None]:
    """Keep log lines back that the run itself will write."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _is_there(data: Data) -> bool:
    return all(root_of(data, name) is not None for name in [*trained_on(data), *tested_on(data)])


def _split(config: Config, loaded: Loaded) -> Splits:
    data = config.data
    key = json.dumps(to_mapping(data))
    if key not in loaded:
        loaded[key] = load_datasets(data, Path(config.run.runs) / "cache" / "data")
    return split(
        loaded[key], validation=data.validation, seed=config.seed,
        protocol=config.evaluation.protocol,
    )


def _size(config: Config, world: int, loaded: Loaded) -> Size:
    """Return the size of the training part, its batches and queries checked."""
    if not _is_there(config.data):
        size = _expected(config)
        check_batch(config.stage2, size.identities, world)
        return size
    try:
        splits, stage = _split(config, loaded), config.stage2
    except UserError as fault:
        if config.data.validation:  # what would be refused next, in the same message
            try:
                _size(replace(config, data=replace(config.data, validation=0.0)), world, loaded)
            except UserError as further:
                more = "" if str(further) == str(fault) else f"\nthen: {further}"
                raise UserError(f"{fault}{more}") from None
        raise
    check_batch(stage, splits.identities, world)
    check_matches(splits)
    order = identity_batches(
        splits.labels, batch=stage.batch, instances=stage.instances, seed=config.seed, epoch=1
    )
    return Size(
        len(splits.train), splits.identities, splits.side_labels.camera_count,
        splits.side_labels.view_count, batches=len(order),
    )


def _expected(config: Config) -> Size:
    """Return the size of training sets of which some are not there, as drawn or as published."""
    data = config.data
    sizes = [_expected_of(data, name, Path(config.run.runs)) for name in trained_on(data)]
    kept = 1 - data.validation
    return Size(
        round(sum(size.images for size in sizes) * kept),
        round(sum(size.identities for size in sizes) * kept),
        sum(size.cameras for size in sizes), views=1,
        source="as published" if "as published" in {s.source for s in sizes} else "to be drawn",
    )


def _expected_of(data: Data, name: str, runs: Path) -> Size:
    if root_of(data, name) is not None:
        alone = replace(data, train=[name], test=[name])
        found = load_datasets(alone, runs / "cache" / "data").train[0].train
        return Size(len(found), len(set(found.identities)), len(set(found.cameras)), 1)
    if name == "synthetic":
        world = world_of(data.world)
        images = sum(shot.identity in world.train_ids for shot in shots_of(world))
        return Size(images, world.train_identities, CAMERAS, 1, source="to be drawn")
    known = describe(name)
    if known is None or known.published is None:
        raise UserError(needed_root(name))
    train = known.published.train
    return Size(
        train.images or 0, train.identities, known.published.cameras, 1, source="as published"
    )
