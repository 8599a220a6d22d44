"""Curves of a run: writers on rank 0 get each line of the metric log, besides the file."""

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.base.mappings import is_number, leaves
from harness.runs.run import Run
from harness.runs.stopping import at_once
from harness.training import ranks
from harness.training.about import About
from harness.training.wandb import WandbWriter, check_installed

log = logging.getLogger(__name__)
RESULT = "result"
"""The part of a run's curves that holds its final scores."""
LONGEST = 100
"""Characters of a label in the name of a folder."""
Images = Mapping[str, NDArray[np.uint8]]
"""Images [h, w, 3] by name."""


class TensorBoardWriter:
    """Curves in a folder that `tensorboard --logdir` shows: a folder inside for each stage, as each
    counts its steps from 1, and what a resumed run repeats replaces all later steps of a folder."""

    def __init__(self, folder: Path, about: About) -> None:
        self._folder, self._about = folder, about
        self._stages: dict[str, Any] = {}

    def write(self, scalars: Mapping[str, float], stage: str, step: int) -> None:
        if stage not in self._stages:
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            self._stages[stage] = SummaryWriter(str(self._place(stage)), purge_step=step)
        for name, value in scalars.items():
            self._stages[stage].add_scalar(name, value, step)

    def finish(self, scores: Mapping[str, float], images: Images) -> None:
        """Write hyperparameters, scores and images, in place of an earlier attempt's."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        place = self._place(RESULT)
        shutil.rmtree(place, ignore_errors=True)
        settings = {key: value if is_number(value) else str(value)  # a bool would be a number
                    for key, value in leaves(self._about.config).items()}
        with SummaryWriter(str(place)) as writer:
            for summary in hparams(settings, dict(scores)):
                writer.file_writer.add_summary(summary)
            for name, value in scores.items():
                writer.add_scalar(name, value)
            for name, image in images.items():
                writer.add_image(name, image, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        for writer in self._stages.values():
            writer.close()

    def _place(self, part: str) -> Path:
        """Return a part's folder: an earlier attempt's, else one whose name has the label."""
        for place in sorted(self._folder.glob(f"{part}*")):
            if place.name.split(" ")[0] == part:
                return place
        label = re.sub(r"[^\w.,=+ -]", "-", self._about.label)[:LONGEST]
        return self._folder / f"{part} {label}".strip()


CurveWriter = TensorBoardWriter | WandbWriter


def scalars_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return all numbers of a line of the metric log, but the step, by the names of their curves:
    `<stage>/loss`, `<stage>/lr`, `<stage>/losses/<name>`; of metrics, their keys."""
    stage = line.get("stage", "")
    numbers = {key: value for key, value in leaves(line).items() if is_number(value)}
    numbers.pop("step", None)
    is_own = {key: "." not in key or key.startswith("losses.") for key in numbers}
    return {(f"{stage}/{key}" if is_own[key] else key).replace(".", "/"): value
            for key, value in numbers.items()}


@contextmanager
def open_writers(
    run: Run, *, tensorboard: bool, wandb: str, about: Callable[[], About]
) -> Iterator[tuple[CurveWriter, ...]]:
    """Yield the requested writers on rank 0, none on other ranks; close them after the body.

    wandb: the W&B project, empty for none. about: called only if there is a writer. Raises
    UserError on every rank when W&B is requested but not installed.
    """
    check_installed(wandb)
    writers: list[CurveWriter] = []
    with ranks.leader_first() as acts:
        described = about() if acts and (tensorboard or wandb) else None
        if described and tensorboard:
            writers.append(TensorBoardWriter(run.tensorboard, described))
        if described and wandb:
            writers.append(at_once("connecting to Weights & Biases",
                                   partial(WandbWriter, run, wandb, described)))
    failed = True
    try:
        yield tuple(writers)
        failed = False
    finally:
        for writer in writers:
            writer.close(failed=failed)


def finish_curves(
    writers: tuple[CurveWriter, ...], scores: Mapping[str, float], draw: Callable[[], Images]
) -> None:
    """Give the writers a complete run's scores, and the images that `draw` returns. Errors are only
    logged, because the run's result is already on disk."""
    images: Images = {}
    try:
        images = draw() if writers else {}
    except Exception as error:  # any error: images are never worth a run
        log.warning("no images among the curves: %r", error)
    for writer in writers:
        try:
            writer.finish(scores, images)
        except Exception as error:  # such as a full disk
            log.warning("no scores among the curves: %r", error)
