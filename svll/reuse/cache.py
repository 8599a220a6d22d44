"""What runs share: results that only depend on dataset, weights and how images are read.

A file is made once, by whoever comes first; the others wait for it. Its name is a hash of all that
its content depends on.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.base.errors import Hindered, UserError
from harness.base.files import read_json, write_json
from harness.base.locks import Busy, held_lock
from harness.images.loader import decoder_name
from harness.training import ranks
from svll.config import Config
from svll.data import staging
from svll.data.records import Dataset
from svll.feature_file import FeatureGroup, read_features, write_features
from svll.features.extract import Reader
from svll.models.extractor import TEST_RESIZE

log = logging.getLogger(__name__)
POLL_S = 0.5


def feature_key(
    fingerprint: str, weights_hash: str, config: Config, reader: Reader, *more: Any
) -> str:
    """Return the name of frozen features: 16 hex digits over all that can change them.

    `more` is what else a file depends on that is made from them.
    """
    parts = [
        fingerprint, weights_hash,
        config.model.name,  # weights in a file fit with GELU and QuickGELU, and give other features
        config.data.height, config.data.width, config.model.stride,
        TEST_RESIZE, decoder_name(reader.device), reader.precision, reader.mean, reader.std, *more,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def staged(datasets: Sequence[Dataset], place: str | None) -> dict[str, str]:
    """Copy the images to each node, if a place there is named; returns where each is, by path.

    Every rank must call it. Raises UserError on all of them when one node cannot take the copy.
    """
    if place is None:
        return {}
    failure: Exception | None = None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            staging.stage(datasets, place)
        except Exception as error:  # the other ranks wait to hear of it
            failure = error
    # all ranks must take part in both questions
    failed = ranks.any_rank(failure is not None)
    hindered = ranks.any_rank(isinstance(failure, Hindered | OSError))
    if failed:
        told = f"data.stage={place}: failed on another node, see its log"
        raise failure or (Hindered(told) if hindered else UserError(told))
    return staging.staged_paths(datasets, place)


def shared_features(path: Path, dataset: Dataset, compute: Callable[[], Tensor]) -> Tensor:
    """Return features [n, D] of the dataset's training images from `path`, made if missing.

    `compute` is called on every rank and must return all rows on every rank.
    """

    def make() -> None:
        features = compute()
        with ranks.leader_first() as acts:
            if acts:
                train = dataset.train
                group = FeatureGroup(
                    features=features.numpy(), identities=train.identities,
                    cameras=train.cameras, views=train.views, paths=train.paths,
                )
                write_features(path, {"train": group}, dataset=dataset.name, model=path.stem)

    make_once(path, make)
    return torch.from_numpy(read_features(path).groups["train"].features)


def shared_json(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a mapping from `path`, made if missing; `compute` is called on every rank."""

    def make() -> None:
        value = compute()
        with ranks.leader_first() as acts:
            if acts:
                write_json(path, value)

    make_once(path, make)
    return dict(read_json(path))


def make_once(path: Path, make: Callable[[], None]) -> None:
    """Call `make` on every rank unless `path` exists; other runs that want it wait meanwhile."""
    with ExitStack() as stack:
        needed = False
        with ranks.leader_first() as acts:
            if acts:
                needed = _claim(path, stack)
        if ranks.any_rank(needed):
            log.info("making %s", path)
            make()


def _claim(path: Path, stack: ExitStack) -> bool:
    """Take the lock of a missing file, waiting for a present holder; returns whether to make it."""
    lock = path.with_name(f"{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while not path.exists():
        try:
            stack.enter_context(held_lock(lock))
        except Busy as holder:
            if not told:
                log.info("waiting for %s (%s)", path.name, holder)
            told = True
            time.sleep(POLL_S)
            continue
        return not path.exists()
    return False
