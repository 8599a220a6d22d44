"""A run's folder: its files, its state, and the lock that keeps other writers out.

    runs/<name>/<signature>/  config.yaml status.json metrics.jsonl checkpoints/ features.h5
                              result.json log.txt tensorboard/

Only the folder holds the state of a run; a scheduler only knows why a job ended.
"""

import json
import logging
import re
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from harness.base.errors import UserError
from harness.base.files import (
    make_folder,
    read_json,
    whole_lines,
    write_json,
    write_json_lines,
    write_text,
)
from harness.base.locks import check_held, held_lock, lock_holder, writing
from harness.base.reading import exists
from harness.runs.stopping import request_stop

log = logging.getLogger(__name__)
State = Literal["new", "submitted", "running", "stopped", "failed", "complete"]
STATUS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("time", "started", "seconds"), (int, float)),
    **dict.fromkeys(("attempts", "pid"), int),
    **dict.fromkeys(("host", "error", "reason", "log", "code"), str),
    **dict.fromkeys(("hindered", "pruned"), bool), "lines": list,
}
"""Types of what a status may hold besides its state; other entries are not shown."""
NAME = re.compile(r"\w[\w.-]*")
"""Names of run folders, and of kinds and stages in a metric log."""


class _File:
    """The path of a file in the run's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "Run", owner: type | None = None) -> Path:
        return run.folder / self.name


@dataclass(frozen=True)
class Run:
    """The files of one run. Making the object touches nothing on disk."""

    folder: Path

    config_file = _File("config.yaml")
    status_file = _File("status.json")
    metrics_file = _File("metrics.jsonl")
    environment_file = _File("environment.json")
    """Machine, packages and code of the last attempt."""
    checkpoints = _File("checkpoints")
    features_file = _File("features.h5")
    weights_file = _File("model.safetensors")
    """The trained model."""
    best_file = _File("best.safetensors")
    """The model of the best validated epoch, if that was not the last."""
    result_file = _File("result.json")
    log_file = _File("log.txt")
    tensorboard = _File("tensorboard")
    lock_file = _File("lock.json")
    exports, incoming = _File("exports"), _File("incoming")
    takeover_file, changes_file = _File("takeover.json"), _File("changes.json")
    """See `harness.runs.takeovers`."""

    def __repr__(self) -> str:
        try:
            state = state_of(self)
        except OSError:  # an object must be shown whatever the disk says
            state = "unreadable"
        return f"Run({str(self.folder)!r}, {state})"

    @property
    def name(self) -> str:
        """The sweep's or recipe's name and the signature."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def signature(self) -> str:
        return self.folder.name

    def create(self, config_yaml: str) -> None:
        """Make the folder and write the resolved configuration.

        A configuration with the same signature is replaced, so that a run can continue elsewhere.
        Raises Hindered when the folder cannot be written.
        """
        with writing(self.folder):
            if not self.config_file.exists() or self.config_file.read_text("utf-8") != config_yaml:
                write_text(self.config_file, config_yaml)

    # --- state ---

    def status(self) -> dict[str, Any]:
        """Return the last written status, `{"state": "new"}` when there is none. Raises UserError
        when the file is damaged: as "no status" it would submit the run twice."""
        try:
            status = read_json(self.status_file)
            if fault := _status_fault(status):
                raise ValueError(fault)
            return dict(status)
        except FileNotFoundError:
            return {"state": "new"}
        except NotADirectoryError:
            file = next(place for place in self.status_file.parents if place.is_file())
            raise UserError(f"{file}: is a file; name a folder (run.runs=FOLDER)") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{self.status_file}: cannot be read ({error}); fix or delete this "
                            "file") from None

    def set_status(self, state: State, **facts: Any) -> None:
        """Replace the status by the state, the time and `facts`."""
        write_json(self.status_file, {"state": state, "time": time.time(), **facts})

    def result(self) -> dict[str, Any] | None:
        """Return the final metrics, or None when the run is not complete."""
        try:
            result = read_json(self.result_file)
            if not isinstance(result, dict):
                raise ValueError("it is not a JSON object")
            return result
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self.result_file}: cannot be read: {error}; put a copy back, or "
                            "delete this file and give the command of the run again") from None

    def is_complete(self) -> bool:
        """Return whether the result is on disk, whatever exit status a process had."""
        return exists(self.result_file)

    # --- metric log ---

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metric log up to the first line that a kill or a crash of the machine damaged.
        Raises UserError for such a line if the run is complete: it would stay."""
        entries, damage = self._whole_lines()
        if damage is not None and self.is_complete():
            raise UserError(f"{self.metrics_file}: line {len(entries) + 1} is damaged: {damage}")
        return entries

    def _whole_lines(self) -> tuple[list[dict[str, Any]], ValueError | None]:
        """Return the entries before the first damaged line, and what is wrong with that."""
        lines, damage = whole_lines(self.metrics_file)
        for number, line in enumerate(lines):
            if fault := _line_fault(line):
                return lines[:number], ValueError(fault)
        return lines, damage

    def log_metrics(self, entry: dict[str, Any]) -> None:
        """Append one line to the metric log; `harness.base.files.sync` makes it durable. Raises
        LockLost, and ValueError for NaN."""
        check_held(self.metrics_file)
        line = json.dumps(entry, allow_nan=False) + "\n"
        make_folder(self.folder)
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(line)

    def keep_metrics(self, count: int) -> None:
        """Truncate the metric log to its first `count` lines: those before a checkpoint."""
        entries, damage = self._whole_lines()
        if damage is not None:
            log.warning("%s: damaged after line %d, as by a crash of the machine; later lines are "
                        "dropped (%s)", self.metrics_file, len(entries), damage)
        write_json_lines(self.metrics_file, entries[:count])

    # --- lock ---

    def lock(self) -> AbstractContextManager[None]:
        """Keep all other processes out of this folder while the body runs.

        The lock is a file with a heartbeat, as flock is local to the node on many shared file
        systems. A dead holder's lock is taken over: at once on this machine, after STALE_S
        elsewhere. A holder that was suspended for longer raises LockLost at its next write, and its
        training loop stops. Raises Busy, which names the living holder, and Hindered when the
        folder cannot be written.
        """
        return held_lock(self.lock_file, on_loss=request_stop)


def _status_fault(status: Any) -> str:
    """Say why a value is no status; "" if it is one."""
    if not isinstance(status, dict) or status.get("state") not in get_args(State):
        return "it has no state of a run"
    for key, kinds in STATUS.items():
        value = status.get(key, kinds)
        if value is not kinds and not _is_of(value, kinds):
            return f"{key} is {value!r:.50}"
    if not all(isinstance(line, str) for line in status.get("lines", ())):
        return "lines are not all texts"
    return ""


def _line_fault(line: Any) -> str:
    """Say why a value is no entry of a metric log; "" if it is one."""
    if not isinstance(line, dict):
        return "it is not a JSON object"
    for key in ("kind", "stage"):
        if not (isinstance(name := line.get(key, "none"), str) and NAME.fullmatch(name)):
            return f"{key} is {name!r:.50}"
    for key in ("epoch", "step"):
        if not _is_of(number := line.get(key, 0), int):
            return f"{key} is {number!r:.50}"
    return ""


def _is_of(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Return whether a value is of a type; True and False are no numbers."""
    return isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))


CLAIM = "claim.lock"
"""The lock file in a run folder with which a worker keeps other workers out."""


def state_of(run: Run) -> str:
    """Return the state of a run; `unreadable` when its files are damaged, `interrupted` when its
    process ended without a message. On another machine the age of its lock says so."""
    try:
        status = run.status()
        is_held = status["state"] != "running" or is_in_use(run)
        if not is_held:  # a process writes its last status before it releases its lock
            status = run.status()
        if run.is_complete():
            return "complete"
    except (UserError, OSError):
        return "unreadable"
    if status["state"] == "running" and not is_held:
        return "interrupted"
    is_pruned = status.get("pruned") and status["state"] == "stopped"
    return "ended early" if is_pruned else str(status["state"])


def is_in_use(run: Run) -> bool:
    """Return whether a living process holds the run. Raises OSError when that is not known."""
    return any(lock_holder(lock) is not None for lock in (run.lock_file, run.folder / CLAIM))


def epoch_lines(run: Run) -> list[dict[str, Any]]:
    """Return the lines that the run logged at the ends of epochs, in order."""
    return [line for line in run.metrics() if line.get("kind") == "epoch"]
