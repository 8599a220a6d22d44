"""A run's folder: where its files are, what state it is in, and who may write to it.

    runs/<name>/<signature>/  config.yaml status.json metrics.jsonl checkpoints/ features.h5
                              result.json log.txt tensorboard/

What is true of a run stands here and nowhere else; a scheduler is only ever asked how a job died.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.files import read_json, write_json, write_text
from harness.base.locks import held_lock, writing

State = Literal["new", "submitted", "running", "stopped", "failed", "complete"]


@dataclass(frozen=True)
class Run:
    """The files of one run. Making the object touches nothing on disk."""

    folder: Path

    @property
    def name(self) -> str:
        """The sweep's or recipe's name and the signature."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def signature(self) -> str:
        return self.folder.name

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def status_file(self) -> Path:
        return self.folder / "status.json"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def environment_file(self) -> Path:
        """What the last attempt computed with."""
        return self.folder / "environment.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def features_file(self) -> Path:
        return self.folder / "features.h5"

    @property
    def weights_file(self) -> Path:
        """The trained model."""
        return self.folder / "model.safetensors"

    @property
    def best_file(self) -> Path:
        """The model of the best validated epoch, where that was not the last."""
        return self.folder / "best.safetensors"

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def lock_file(self) -> Path:
        return self.folder / "lock.json"

    def create(self, config_yaml: str) -> None:
        """Make the folder and write the resolved configuration.

        One that is there already differs only in where and how the run is to go on. Raises
        Hindered when nothing can be written there.
        """
        with writing(self.folder):
            if not self.config_file.exists() or self.config_file.read_text("utf-8") != config_yaml:
                write_text(self.config_file, config_yaml)

    # --- state ---

    def status(self) -> dict[str, Any]:
        """Return the last written status, `{"state": "new"}` when there is none.

        Raises UserError when the file cannot be read as JSON: an unreadable status is never taken
        for "no status", which would run or submit the same thing twice.
        """
        try:
            return dict(read_json(self.status_file))
        except FileNotFoundError:
            return {"state": "new"}
        except NotADirectoryError:
            file = next(place for place in self.status_file.parents if place.is_file())
            raise UserError(
                f"{file}: is a file; name a folder for the runs (run.runs=FOLDER)"
            ) from None
        except (ValueError, TypeError, OSError) as error:
            raise UserError(
                f"{self.status_file}: cannot be read ({error}); mend or delete this file"
            ) from None

    def set_status(self, state: State, **facts: Any) -> None:
        """Replace the status; `facts` are kept beside the state."""
        write_json(self.status_file, {"state": state, "time": time.time(), **facts})

    def result(self) -> dict[str, Any] | None:
        """Return the final metrics, or None when the run is not complete."""
        try:
            return dict(read_json(self.result_file))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.result_file}: cannot be read: {error}") from None

    def is_complete(self) -> bool:
        """A run is complete when its result is on disk; an exit status is no proof."""
        return self.result_file.exists()

    # --- metric log ---

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metric log; a last line cut short by a kill is left out.

        Raises UserError for one that was damaged otherwise.
        """
        try:
            lines = self.metrics_file.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return []
        try:
            return [json.loads(line) for line in lines[:-1] if line]
        except ValueError as error:
            raise UserError(f"{self.metrics_file}: a line is no JSON: {error}") from None

    def log_metrics(self, entry: dict[str, Any]) -> None:
        """Append one line to the metric log, whole or not at all."""
        line = json.dumps(entry, allow_nan=False) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.metrics_file.open("a", encoding="utf-8") as log:
            log.write(line)

    def keep_metrics(self, count: int) -> None:
        """Cut the metric log back to its first `count` lines: what a checkpoint knew of.

        Raises UserError when the log is shorter than that.
        """
        entries = self.metrics()
        if len(entries) < count:
            raise UserError(
                f"{self.metrics_file}: has {len(entries)} lines, the checkpoint was written after "
                f"{count}; the file was changed by hand. Delete the run folder to start afresh."
            )
        write_text(
            self.metrics_file, "".join(json.dumps(entry) + "\n" for entry in entries[:count])
        )

    # --- lock ---

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process out of this folder while the body runs.

        Made by exclusive creation and a heartbeat, as flock is local to the node on many shared
        file systems. A holder that died is noticed: at once on this machine, after STALE_S
        elsewhere. Raises Busy naming the living holder, Hindered when nothing can be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with held_lock(self.lock_file):
            yield


def state_of(run: Run) -> str:
    """Return how a run stands, in a word; one whose files are damaged is `unreadable`."""
    try:
        status = run.status()
    except UserError:
        return "unreadable"
    if run.is_complete():
        return "complete"
    is_pruned = status.get("pruned") and status["state"] == "stopped"
    return "ended early" if is_pruned else str(status["state"])


CLAIM = "claim.lock"
"""The file in a run folder by which a worker keeps other workers out."""


def epoch_lines(run: Run) -> list[dict[str, Any]]:
    """Return what the run has logged at the ends of epochs, in order."""
    return [line for line in run.metrics() if line.get("kind") == "epoch"]
