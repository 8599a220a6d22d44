"""Curves of a run: writers on rank 0 get each line of the metric log, besides the file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.mappings import is_number, lookup
from harness.runs.run import Run
from harness.runs.stopping import at_once
from harness.training import ranks
from harness.training.wandb import WandbWriter, check_installed


class TensorBoardWriter:
    """Curves in a folder that `tensorboard --logdir` shows: a folder inside for each stage, as each
    counts its steps from 1, and what a resumed run repeats replaces all later steps of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stages: dict[str, Any] = {}

    def write(self, scalars: Mapping[str, float], stage: str, step: int) -> None:
        if stage not in self._stages:
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            self._stages[stage] = SummaryWriter(str(self._folder / stage), purge_step=step)
        for name, value in scalars.items():
            self._stages[stage].add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        for writer in self._stages.values():
            writer.close()


CurveWriter = TensorBoardWriter | WandbWriter


def scalars_of(line: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """Return the numbers in a line of the metric log by the names of their curves. `<stage>/loss`,
    `<stage>/lr`, `<stage>/losses/<name>` and, if the line has them, `metrics`."""
    stage, losses = line.get("stage", ""), line.get("losses")
    scalars: dict[str, Any] = {f"{stage}/{name}": line.get(name) for name in ("loss", "lr")}
    if isinstance(losses, Mapping):
        scalars |= {f"{stage}/losses/{name}": value for name, value in losses.items()}
    scalars |= {key.replace(".", "/"): lookup(line, key) for key in metrics}
    return {name: value for name, value in scalars.items() if is_number(value)}


@contextmanager
def open_writers(
    run: Run, *, tensorboard: bool, wandb: str, config: Mapping[str, Any]
) -> Iterator[tuple[CurveWriter, ...]]:
    """Yield the requested writers on rank 0, none on other ranks; close them after the body.

    wandb: the W&B project, empty for none; config: what W&B shows. Raises UserError on every rank
    when W&B is requested but not installed.
    """
    check_installed(wandb)
    writers: list[CurveWriter] = []
    with ranks.leader_first() as acts:
        if acts and tensorboard:
            writers.append(TensorBoardWriter(run.tensorboard))
        if acts and wandb:
            writers.append(at_once("connecting to Weights & Biases",
                                   lambda: WandbWriter(run, wandb, config)))
    failed = True
    try:
        yield tuple(writers)
        failed = False
    finally:
        for writer in writers:
            writer.close(failed=failed)
