"""Submissions on disk: one folder each below the sweep's `jobs` folder.

    runs/<name>/jobs/<token>/  record.json, the jobs' logs, and what submitit executes

A record is written before the scheduler gets the jobs (state `submitting`) and replaced once the
job ids are known (`submitted`). A launcher that was killed in between leaves the first form; the
next launcher then looks for the jobs instead of submitting them twice. A job's number means nothing
on another cluster, and numbers come again: so a record names its cluster, its user and the folder
of its sweep file, and its jobs bear its token.
"""

import dataclasses
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from harness.base.errors import UserError
from harness.base.files import denied, make_folder, own_folder, owner_of, read_json, write_json
from harness.base.machine import user_name
from harness.base.mappings import is_number
from harness.base.reading import retried
from harness.runs.run import Run

Cluster = Literal["slurm", "local"]
EVERY = "*"
"""In place of a signature: the job in which all trials of a search run."""
State = Literal["submitting", "submitted", "ended"]
"""`ended`: all its jobs were cancelled and are gone."""


class NotYours(UserError):
    """The sweep is another user's."""

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(f"{folder}: this sweep belongs to {owner}, who alone can see, submit and "
                         "end its jobs; use another folder (run.runs=FOLDER) or name (name=NAME)")
        self.owner = owner


@dataclass
class Record:
    """One submission: some trials of a sweep, and the jobs that run them."""

    token: str
    """The end of the SLURM job's name, which tells the job from others of the same number."""
    cluster: Cluster
    time: float
    """When it was submitted; later than earlier records, even if this host's clock is behind."""
    trials: list[str]
    """Signatures; the job array's index counts along this list."""
    state: State = "submitting"
    jobs: dict[str, str] = field(default_factory=dict)
    """SLURM only: the job id (array_task) by signature, or that of `EVERY` trial."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the workers, and `code`: the folder of the frozen code."""
    folder: str = ""
    """Where the record is."""
    site: str = ""
    """SLURM only: the cluster's name (ClusterName); "" in records of earlier versions."""
    origin: str = ""
    """The sweep's `origin`; "" in records of earlier versions."""
    uid: int | None = None
    user: str = ""

    @property
    def file(self) -> Path:
        return Path(self.folder) / "record.json"

    @property
    def sweep_folder(self) -> Path:
        return Path(self.folder).parents[1]

    @property
    def owner(self) -> str:
        """Who submitted it, if that is another user; else ""."""
        return "" if self.uid in (None, os.getuid()) else f"{self.user} (uid {self.uid})"

    def is_from(self, origin: str) -> bool:
        """Return whether it was submitted from this folder, or from one that is gone by now."""
        try:
            return not self.origin or os.path.samefile(self.origin, origin)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def runs(self, signatures: Iterable[str]) -> list[Run]:
        return [Run(self.sweep_folder / signature) for signature in signatures]

    def job_of(self, signature: str) -> str:
        """Return the id of the job in which a trial runs, "" for none."""
        return self.jobs.get(signature, self.jobs.get(EVERY, ""))

    def write(self, state: State | None = None) -> None:
        """Write the record, in a new state if one is given."""
        self.state = state or self.state
        write_json(self.file, dataclasses.asdict(self))


def new_record(
    sweep_folder: Path, cluster: Cluster, trials: Iterable[str], *, origin: str = "",
    site: str = "", **opts: Any,
) -> Record:
    """Return a record that is not yet on disk; its folder is created."""
    token = uuid.uuid4().hex[:10]
    folder = jobs_folder(sweep_folder.resolve(), create=True) / token
    make_folder(folder, mode=0o700)
    return Record(token, cluster, time.time(), list(trials), options=opts, folder=str(folder),
                  origin=origin, site=site, uid=os.getuid(), user=user_name())


def jobs_folder(sweep_folder: Path, *, create: bool = False) -> Path:
    """Return runs/<name>/jobs: records, job logs, and the pickles that submitit executes. Only the
    owner may enter it, because its files are run as code."""
    folder = sweep_folder / "jobs"
    if create:
        own_folder(folder)
    return folder


def read_records(sweep_folder: Path) -> list[Record]:
    """Return a sweep's submissions, oldest first. Raises NotYours, and UserError for a record that
    cannot be read: without it, its trials would be submitted twice."""
    folder = jobs_folder(sweep_folder)

    def read() -> list[Record]:
        files = [folder / token / "record.json" for token in os.listdir(folder)]
        return [read_record(file) for file in files if file.exists()]

    try:
        # listed again with them: a record may be removed, or seem to be so for a moment
        records = retried(read, UserError)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        owner = owner_of(folder)
        if owner.endswith(f"(uid {os.getuid()})"):  # a mode or a lapsed ticket, not another user
            raise denied(error) from None
        raise NotYours(sweep_folder, owner) from None
    return sorted(records, key=lambda record: record.time)


def read_record(path: Path) -> Record:
    """Return the submission in a file; see `read_records`."""
    try:
        record = Record(**{**read_json(path), "folder": str(path.parent)})
        if fault := _fault(record):
            raise ValueError(fault)
        return record
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path}: not a record of submitted jobs ({error}); fix it, or delete it "
                        "once its jobs have ended") from None


def _fault(record: Record) -> str:
    """Say which value of a record that was read cannot be right; "" for none."""
    texts = (record.token, record.site, record.origin, record.user, *record.trials, *record.jobs,
             *record.jobs.values(), record.options.get("code", ""))
    are_known = record.cluster in get_args(Cluster) and record.state in get_args(State)
    if not (are_known and all(isinstance(text, str) for text in texts)):
        return "state, cluster, trials or jobs are of a wrong kind"
    if not (is_number(record.time) and isinstance(record.uid, int | None)
            and isinstance(record.trials, list)):
        return "time, uid or trials are of a wrong kind"
    return ""
