"""A run's folder: where its files are, what state it is in, and who may write to it.

    runs/<name>/<signature>/  config.yaml status.json metrics.jsonl checkpoints/ features.h5
                              result.json log.txt tensorboard/

What is true of a run stands here and nowhere else; a scheduler is only ever asked how a job died.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import Hindered, UserError
from harness.files import read_json, write_json, write_text

State = Literal["new", "submitted", "running", "stopped", "failed", "complete"]
HEARTBEAT_S = 5.0
"""How often the holder of a lock touches it."""
STALE_S = 60.0
"""A lock untouched for so long, by a process of another machine, belongs to a dead holder."""


class Busy(UserError):
    """A living process holds the lock."""


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
    def prompts_file(self) -> Path:
        """What stage 1 learned."""
        return self.folder / "prompts.safetensors"

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


@contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path` while the body runs; see `Run.lock`."""
    token = _acquire(path)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with suppress(OSError):  # one that cannot be removed is known to be stale by its process
            if (_holder(path) or {}).get("token") == token:
                path.unlink(missing_ok=True)


def lock_holder(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock at `path`, or None when nobody alive does."""
    holder = _holder(path)
    return holder if holder and _is_alive(path, holder) else None


def job_id() -> str | None:
    """Return SLURM's id of the job that this process is in (array_task for an array), or None."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID")


def _acquire(path: Path) -> str:
    token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    mine = {
        "host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid()),
        "job": job_id(), "token": token,
    }
    private = path.with_name(f".{path.name}.{token}")
    try:
        with writing(path.parent):
            private.write_text(json.dumps(mine), encoding="utf-8")
        for _ in range(3):
            try:
                # link() creates the name with its content or not at all, on NFS too
                os.link(private, path)
                return token
            except FileExistsError:
                holder = _holder(path)
                if holder is None:  # given back just now
                    continue
                if holder and _is_alive(path, holder):
                    raise Busy(f"{path.parent}: in use by {_told_of(holder)}") from None
                _remove_stale(path, holder)
    finally:
        with suppress(OSError):  # on a read-only file system there is nothing to remove
            private.unlink(missing_ok=True)
    raise Busy(f"{path.parent}: another process took the lock just now; try again")


def _told_of(holder: dict[str, Any]) -> str:
    """Say who holds a lock and what to do about it."""
    pid, host, job = holder["pid"], holder["host"], holder.get("job")
    who = f"process {pid} on {host}" + (f" (job {job})" if job else "")
    end = f"scancel {job}" if job else f"kill {pid} on {host}"
    return f"{who}; wait until it has ended, or end it ({end}) and give the command again"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that says so."""
    try:
        yield
    except OSError as error:
        raise Hindered(
            f"{folder}: cannot be written: {error.strerror}; make room, let this machine write "
            "there, or name another place (run.runs=FOLDER)"
        ) from None


def _remove_stale(path: Path, holder: dict[str, Any]) -> None:
    """Take a dead holder's lock away; of several that try, the rename lets one through."""
    aside = path.with_name(f".{path.name}.stale.{os.getpid()}.{time.time_ns()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if (_holder(aside) or {}).get("token") != holder.get("token"):  # a new holder's: give it back
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        # a network file system may fail once; a heart that stopped for that would be taken for dead
        with suppress(OSError):
            os.utime(path)


def _holder(path: Path) -> dict[str, Any] | None:
    """Return what a lock file says; nothing when it is damaged, None when there is none."""
    try:
        said = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return said if isinstance(said, dict) and {"host", "pid", "token"} <= said.keys() else {}


def _is_alive(path: Path, holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname():
        return _start_time(int(holder["pid"])) == holder.get("started") is not None
    try:
        return time.time() - path.stat().st_mtime < STALE_S
    except FileNotFoundError:
        return False


def _start_time(pid: int) -> str | None:
    """Return when a living process started, in clock ticks since boot; None when there is none.

    A process id may be used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # a zombie has ended and only waits for its parent to ask
    return None if fields[0] in "ZX" else fields[19]
