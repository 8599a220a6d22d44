"""What a run checks before it trains: that its images can be read and its queries be answered."""

import logging
from collections.abc import Mapping

import numpy as np

from harness.base.errors import UserError
from svll.config import Model, Stage2
from svll.data.checking import decode, has_match, single_images, unmatched
from svll.data.datasets import Datasets
from svll.data.side_labels import UNSEEN, known_sie
from svll.data.splits import Part, Splits

SHOWN = 20
"""How many broken images are named."""

log = logging.getLogger(__name__)


def check_decoding(datasets: Datasets, staged: Mapping[str, str], *, threads: int) -> None:
    """Decode every image once; raises UserError that lists those that cannot be.

    staged: where images are read that have been copied to this node, by path.
    """
    every = dict.fromkeys(path for dataset in datasets.every for path in dataset.files())
    paths = {staged.get(path, path): path for path in every}
    broken = decode(list(paths), threads=threads, progress=None)
    if broken:
        listed = "\n".join(f"  {paths[path]}: {reason}" for path, reason in broken[:SHOWN])
        raise UserError(
            f"{len(broken)} of {len(paths)} images cannot be read; replace or remove:\n{listed}"
        )


def check_batch(stage: Stage2, identities: int, world: int) -> None:
    """Refuse batches of stage 2 that the ranks or the identities of the training part cannot fill.

    The message names the largest that they can.
    """
    asked = stage.batch // stage.instances
    batches = [n * stage.instances for n in range(min(asked, identities), 1, -1)]
    fitting = [batch for batch in batches if batch % world == 0]
    advice = f"add stage2.batch={fitting[0]}" if fitting else "use fewer ranks or more identities"
    if stage.batch % world:
        raise UserError(
            f"stage2.batch={stage.batch} is not a multiple of the {world} ranks; {advice}"
        )
    if asked > identities:
        raise UserError(
            f"stage2.batch={stage.batch} asks for {asked} identities at a time, the training part "
            f"has {identities}; {advice}"
        )


def check_matches(splits: Splits) -> None:
    """Refuse parts none of whose queries has a match, and say what is unusual about the others.

    Asked before training: after it, days would be lost.
    """
    if note := single_images(splits.train):
        log.warning("%s", note)
    for part in (splits.validation, *splits.tests):
        if len(part.query) and part.protocol != "random_gallery":
            _check_part(part)


def tell_side_information(splits: Splits, model: Model) -> None:
    """Say which images of the parts have cameras or views without a learned vector."""
    labels = splits.side_labels
    kind = known_sie(model.sie, cameras=labels.camera_count, views=labels.view_count)
    if kind != model.sie:
        log.info("cameras of the training images are unknown: model.sie=%s is %s here",
                 model.sie, kind)
    given = "none" if model.sie_unseen == "none" else "the mean of the others"
    for _, records, own in splits.by_dataset(splits.train):
        count = int((splits.places(records, own)[0] == UNSEEN).sum())
        if count and "camera" in kind:
            log.warning(
                "%s: %d training images have no known camera: their side information is %s "
                "(model.sie_unseen=%s)", own.title, count, given, model.sie_unseen,
            )
    for part in (splits.validation, *splits.tests):
        for records in (part.query, part.gallery):
            camera, view = splits.places(records, part.dataset)
            strange = {
                "cameras": records.cameras[camera == UNSEEN] + part.first_camera
                if "camera" in kind else [],
                "views": records.views[view == UNSEEN] if "view" in kind else [],
            }
            for what, numbers in strange.items():
                found = f"are of {what} {np.unique(numbers).tolist()}, which training does not have"
                if what == "cameras" and part.dataset and part.dataset.protocol == "all_gallery":
                    found = "have no known camera"
                if len(numbers):
                    log.warning("%s: %d images %s: their side information is %s "
                                "(model.sie_unseen=%s)", part.name, len(numbers), found, given,
                                model.sie_unseen)


def _check_part(part: Part) -> None:
    note = unmatched(part.query, part.gallery, part.protocol)
    if not has_match(part.query, part.gallery, part.protocol).any():
        raise UserError(f"{part.name}: {note}; there is nothing to measure")
    if note:
        log.warning("%s: %s", part.name, note)
