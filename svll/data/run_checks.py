"""Checks before training: every image decodes, batches can be filled, queries have matches."""

import logging
from collections.abc import Mapping

import numpy as np

from harness.base.errors import UserError
from harness.runs.stopping import check_stop
from svll.config import Model, Stage2
from svll.data.checking import decode, has_match, single_images, unmatched
from svll.data.datasets import Datasets
from svll.data.side_labels import UNSEEN, known_sie
from svll.data.splits import Splits

SHOWN = 20
"""Maximum number of broken images in an error."""

log = logging.getLogger(__name__)


def check_decoding(datasets: Datasets, staged: Mapping[str, str], *, threads: int) -> None:
    """Decode every image once; raises UserError that lists the broken ones, and Stopped.

    staged: the copies of images on this node, by the images' paths.
    """
    every = dict.fromkeys(path for dataset in datasets.every for path in dataset.files())
    paths = {staged.get(path, path): path for path in every}
    broken = decode(list(paths), threads=threads,
                    progress=lambda *_: check_stop("checking that all images decode"))
    if broken:
        listed = "\n".join(f"  {paths[path]}: {reason}" for path, reason in broken[:SHOWN])
        raise UserError(
            f"{len(broken)} of {len(paths)} images cannot be read; replace or remove:\n{listed}"
        )


def check_batch(stage: Stage2, identities: int, world: int) -> None:
    """Raise UserError for batches of stage 2 that do not fit the ranks or the training identities.

    The message names the largest batch that fits.
    """
    per_batch = stage.batch // stage.instances
    batches = [n * stage.instances for n in range(min(per_batch, identities), 1, -1)]
    fitting = [batch for batch in batches if batch % world == 0]
    advice = f"add stage2.batch={fitting[0]}" if fitting else "use fewer ranks or more identities"
    if stage.batch % world:
        fault = f"is not a multiple of the {world} ranks"
    elif per_batch > identities:
        fault = f"asks for {per_batch} identities at a time, the training part has {identities}"
    else:
        return
    raise UserError(f"stage2.batch={stage.batch} {fault}; {advice}")


def check_matches(splits: Splits) -> None:
    """Raise UserError for a part whose queries have no match at all; log what else is unusual."""
    if note := single_images(splits.train):
        log.warning("%s", note)
    for part in (splits.validation, *splits.tests):
        if not len(part.query) or part.protocol == "random_gallery":
            continue
        note = unmatched(part.query, part.gallery, part.protocol)
        if not has_match(part.query, part.gallery, part.protocol).any():
            raise UserError(f"{part.name}: {note}; there is nothing to measure")
        if note:
            log.warning("%s: %s", part.name, note)


def log_side_information(splits: Splits, model: Model) -> None:
    """Log which images have cameras or views without a learned vector."""
    known = splits.side_labels
    kind = known_sie(model.sie, cameras=known.camera_count, views=known.view_count)
    if kind != model.sie:
        log.info("cameras of the training images are unknown: model.sie=%s is %s here",
                 model.sie, kind)
    given = "none" if model.sie_unseen == "none" else "the mean of the others"
    effect = f"their side information is {given} (model.sie_unseen={model.sie_unseen})"
    for _, records, own in splits.by_dataset(splits.train):
        count = int((splits.places(records, own)[0] == UNSEEN).sum())
        if count and "camera" in kind:
            log.warning("%s: %d training images have no known camera: %s", own.title, count, effect)
    for part in (splits.validation, *splits.tests):
        for records in (part.query, part.gallery):
            camera, view = splits.places(records, part.dataset)
            cameras = records.cameras[camera == UNSEEN] + part.first_camera
            is_unknown = part.dataset is not None and part.dataset.protocol == "all_gallery"
            for what, labels, has_none in (("camera", cameras, is_unknown),
                                           ("view", records.views[view == UNSEEN], False)):
                if not len(labels) or what not in kind:
                    continue
                fault = "have no known camera" if has_none else (
                    f"are of {what}s {np.unique(labels).tolist()}, which training does not have"
                )
                log.warning("%s: %d images %s: %s", part.name, len(labels), fault, effect)
