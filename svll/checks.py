"""What a run checks before it trains: that its images can be read and its queries be answered."""

import logging

import numpy as np

from harness.errors import UserError
from harness.pipeline import check_images
from svll.data.datasets import Datasets
from svll.data.splits import Part, Splits

log = logging.getLogger(__name__)


def check_decoding(datasets: Datasets, *, threads: int) -> None:
    """Decode every image once; raises UserError that lists those that cannot be."""
    parts = [part for dataset in datasets.every for part in dataset.parts]
    paths = list(dict.fromkeys(path for part in parts for path in part.paths))
    broken = check_images(paths, threads=threads)
    if broken:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in broken[:20])
        raise UserError(
            f"{len(broken)} of {len(paths)} images cannot be read; mend or remove them:\n{listed}"
        )


def check_matches(splits: Splits, *, camera_filter: bool) -> None:
    """Refuse parts none of whose queries has a match, and say what is unusual about the others.

    Asked before training: after it, days would be lost.
    """
    _, counts = np.unique(splits.labels, return_counts=True)
    if (counts == 1).any():
        log.warning(
            "%d of %d training identities have a single image: it is its own positive in triplets",
            (counts == 1).sum(), len(counts),
        )
    for part in (splits.validation, *splits.tests):
        if len(part.query) and part.protocol != "random_gallery":
            _check_part(part, camera_filter and part.protocol == "cross_camera")


def _check_part(part: Part, camera_filter: bool) -> None:
    query, gallery = part.query, part.gallery
    wanted = np.unique(query.identities[query.identities >= 0])
    absent = np.setdiff1d(wanted, gallery.identities)
    pairs = {*zip(gallery.identities.tolist(), gallery.cameras.tolist(), strict=True)}
    seen_by: dict[int, set[int]] = {}
    for identity, camera in pairs:
        seen_by.setdefault(identity, set()).add(camera)
    answered = {
        identity
        for identity, camera in zip(query.identities.tolist(), query.cameras.tolist(), strict=True)
        if seen_by.get(identity, set()) - ({camera} if camera_filter else set())
    }
    own_only = len(wanted) - len(absent) - len(answered)
    if answered and not own_only and not len(absent):
        return
    told = (
        f"{part.name}: {len(absent)} of {len(wanted)} query identities are absent from the gallery"
    )
    if own_only:
        told += (
            f", {own_only} are there under the query's own camera only; to rank those, set "
            "evaluation.camera_filter=false"
        )
    if not answered:
        cameras = np.unique(np.concatenate([query.cameras, gallery.cameras]))
        hint = ". All images are of one camera" if len(cameras) == 1 else ""
        raise UserError(f"{told}{hint}. No query has a match, so there is nothing to measure")
    log.warning("%s; these queries are left out", told)
