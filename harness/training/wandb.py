"""A run's curves on Weights & Biases, for those who ask for it; never a reason to end a training.

Where it is (online, offline, disabled), whose account and which server is said in W&B's own way,
by its environment variables and `wandb login`.
"""

import logging
import os
import re
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from harness.base.errors import UserError
from harness.base.files import write_text
from harness.runs.run import Run

log = logging.getLogger(__name__)
FINISH_S = 15.0
"""How long the end of a run waits for what is not sent yet: a job may be about to be killed."""


def check_installed(project: str) -> None:
    """Raise UserError when a project is named and W&B is not installed."""
    if project and find_spec("wandb") is None:
        raise UserError(
            f"run.wandb={project}: Weights & Biases is not installed here; pip install wandb, or "
            "leave run.wandb empty (TensorBoard's curves are written anyway)"
        )


class WandbWriter:
    """Sends lines to a W&B run that goes on when the run of that folder does.

    Steps that a run repeats after a kill are sent again. Where W&B cannot be reached or nobody is
    logged in, everything stays in the run folder's wandb/, as with WANDB_MODE=offline.
    """

    def __init__(self, run: Run, project: str, config: Mapping[str, Any]) -> None:
        # also keeps it from asking for a login, at which all ranks would wait
        os.environ.setdefault("WANDB_SILENT", "true")
        self._axes: dict[str, str] = {}
        self._run: Any = None
        try:
            self._run = _start(run, project, config)
        except Exception as error:  # whatever it is: no view is worth a training
            log.warning(
                "W&B: %s; what it should show is kept, and `wandb sync %s/wandb/offline-*` sends "
                "it (WANDB_MODE=offline does so without trying)",
                " ".join(str(error).split()), run.folder,
            )
        if self._run is None:
            try:
                self._run = _start_offline(run, project, config)
            except Exception as error:
                self._give_up(error)

    def write(self, scalars: Mapping[str, float], stage: str, step: int) -> None:
        """Send numbers by name, of a step counted within the stage."""
        if self._run is None:
            return
        axis = f"{stage}/step"
        try:
            # W&B's own steps only rise, but those of each stage begin at 0
            for part in {name.partition("/")[0] for name in scalars}:
                if self._axes.get(part) != axis:
                    self._run.define_metric(f"{part}/*", step_metric=axis)
                    self._axes[part] = axis
            self._run.log({**scalars, axis: step})
        except Exception as error:  # such as a signal to the whole job, which ends W&B's process
            self._give_up(error)

    def close(self, *, failed: bool) -> None:
        """End the W&B run; one that `failed`, or was stopped, is marked and may go on later."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        log.warning("W&B: %r; nothing more is sent there by this attempt", error)


def _start(run: Run, project: str, config: Mapping[str, Any], **options: Any) -> Any:
    import wandb  # most of a second

    return wandb.init(
        project=project, config=dict(config), dir=run.folder, resume="allow",
        id=_id(run), name=run.name, group=run.folder.parent.name,
        reinit="create_new",
        # our own log file has what is printed, and bars need the terminal as it is
        settings=wandb.Settings(console="off", finish_timeout=FINISH_S), **options,
    )


def _id(run: Run) -> str:
    """Return the name by which W&B knows the run: the same in each attempt, and nobody else's."""
    file = run.folder / "wandb_id.txt"
    if not file.exists():
        name = re.sub(r"[^\w.-]", "-", run.name)
        write_text(file, f"{name}-{uuid.uuid4().hex[:8]}\n")
    return file.read_text(encoding="utf-8").strip()


def _start_offline(run: Run, project: str, config: Mapping[str, Any]) -> Any:
    """Begin anew after a failure."""
    import wandb

    wandb.teardown()  # its own process still counts the run that it could not begin
    return _start(run, project, config, mode="offline")
