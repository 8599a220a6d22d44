"""A run's curves on Weights & Biases, if requested; its failures never end a run. W&B's environment
variables and `wandb login` set mode (online, offline, disabled), account, server."""

import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from harness.base.errors import UserError
from harness.base.files import read_json, write_json, write_text
from harness.runs.run import Run
from harness.runs.takeovers import changes
from harness.training.about import About

log = logging.getLogger(__name__)
FINISH_S = 15.0
"""How long the end of a run waits for unsent data: the job may be killed soon."""
LONGEST_NAME, LONGEST_TAG = 128, 64
"""Characters that W&B takes."""


def check_installed(project: str) -> None:
    """Raise UserError when a project is named and W&B is not installed."""
    if project and find_spec("wandb") is None:
        raise UserError(f"run.wandb={project}: Weights & Biases is not installed here; pip install "
                        "wandb, or leave run.wandb empty (TensorBoard curves do not need it)")


class WandbWriter:
    """Sends curves to a W&B run, which is resumed whenever the run of that folder is.

    Steps that a run repeats after a kill are not sent again: W&B would show both. Without a
    connection or a login, all data stays in the run folder's wandb/, as with WANDB_MODE=offline.
    """

    def __init__(self, run: Run, project: str, about: About) -> None:
        # also stops it from asking for a login, while all ranks would wait
        os.environ.setdefault("WANDB_SILENT", "true")
        self._axes: dict[str, str] = {}
        self._run: Any = None
        self._sent: dict[str, int] = {}
        try:
            self._sent = sent_steps(run)
            self._run = _start(run, project, about)
        except Exception as error:  # any error: curves are never worth a run
            log.warning(
                "W&B: %s; curves are kept offline, and `wandb sync %s/wandb/offline-*` sends them "
                "(WANDB_MODE=offline skips the attempt)",
                " ".join(str(error).split()), run.folder,
            )
            with self._giving_up_on_failure():
                import wandb

                wandb.teardown()  # its process still counts the run that it could not start
                self._run = _start(run, project, about, mode="offline")

    def write(self, scalars: Mapping[str, float], stage: str, step: int) -> None:
        """Send numbers by name at a step, which is counted within the stage."""
        axis = f"{stage}/step"
        if self._run is None or step <= self._sent.get(stage, 0):
            return
        with self._giving_up_on_failure():
            # W&B's steps must rise, but each stage counts from 0
            for part in {name.partition("/")[0] for name in scalars}:
                if self._axes.get(part) != axis:
                    self._run.define_metric(f"{part}/*", step_metric=axis)
                    self._axes[part] = axis
            self._run.log({**scalars, axis: step})

    def finish(self, scores: Mapping[str, float], images: Mapping[str, Any]) -> None:
        """Send a complete run's scores, as its summary, and images [h, w, 3] by name."""
        with self._giving_up_on_failure():
            if self._run is not None:
                from wandb import Image

                self._run.summary.update(scores)
                self._run.log({name: Image(image) for name, image in images.items()})

    def close(self, *, failed: bool) -> None:
        """End the W&B run; one that `failed` or was stopped is marked, and may be resumed later."""
        with self._giving_up_on_failure():
            if self._run is not None:
                self._run.finish(exit_code=int(failed))

    @contextmanager
    def _giving_up_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # such as a signal to the whole job, W&B's process included
            self._run = None
            log.warning("W&B: %r; this attempt sends nothing more", error)


def sent_steps(run: Run) -> dict[str, int]:
    """Return the last step of each stage that earlier attempts logged, and so sent.

    It is noted in a file, because a resumed run's log loses lines and an attempt may end before it
    has repeated all of them. A run that continues from another run's state sends all that it logs.
    """
    file, takeovers = run.folder / "wandb_steps.json", len(changes(run))
    try:
        noted = read_json(file)
        sent = dict(noted["steps"]) if noted["takeovers"] == takeovers else {}
    except FileNotFoundError:
        sent = {}
    for line in run.metrics():
        sent[line["stage"]] = max(line["step"], sent.get(line["stage"], 0))
    write_json(file, {"takeovers": takeovers, "steps": sent})
    return sent


def _start(run: Run, project: str, about: About, **options: Any) -> Any:
    import wandb  # most of a second

    id_file = run.folder / "wandb_id.txt"  # unique, and the same in each attempt
    if not id_file.exists():
        plain = re.sub(r"[^\w.-]", "-", run.name)
        write_text(id_file, f"{plain}-{uuid.uuid4().hex[:8]}\n")
    group = run.folder.parent.name
    given = os.environ.get("WANDB_TAGS", "").split(",")
    tags = dict.fromkeys(tag.strip()[:LONGEST_TAG] for tag in (*about.tags, *given))
    return wandb.init(
        project=project, config=dict(about.config), dir=run.folder, resume="allow",
        id=id_file.read_text(encoding="utf-8").strip(), tags=[tag for tag in tags if tag],
        name=f"{group} {about.label}".strip()[:LONGEST_NAME], group=group, reinit="create_new",
        # the run has its own log file, and bars need the terminal unchanged
        settings=wandb.Settings(console="off", finish_timeout=FINISH_S), **options,
    )
