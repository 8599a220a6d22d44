"""Submissions on disk: one folder each below the sweep's `jobs` folder.

    runs/<name>/jobs/<token>/  record.json, the jobs' logs, and what submitit executes

A record is written before the scheduler gets the jobs (state `submitting`) and replaced once the
job ids are known (`submitted`). A launcher that was killed in between leaves the first form; the
next launcher then looks for the jobs instead of submitting them twice.
"""

import dataclasses
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.base.files import make_folder, own_folder, read_json, write_json
from harness.runs.run import Run

Cluster = Literal["slurm", "local"]
EVERY = "*"
"""In place of a signature: the job in which all trials of a search run."""


@dataclass
class Record:
    """One submission: some trials of a sweep, and the jobs that run them."""

    token: str
    """Part of the SLURM job's name, which identifies a job whose id was never stored."""
    cluster: Cluster
    time: float
    trials: list[str]
    """Signatures; the job array's index counts along this list."""
    state: Literal["submitting", "submitted"] = "submitting"
    jobs: dict[str, str] = field(default_factory=dict)
    """SLURM only: the job id (array_task) by signature, or that of `EVERY` trial."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the workers, and `code`: the folder of the frozen code."""
    folder: str = ""
    """Where the record is."""

    @property
    def file(self) -> Path:
        return Path(self.folder) / "record.json"

    @property
    def sweep_folder(self) -> Path:
        return Path(self.folder).parents[1]

    def runs(self, signatures: Iterable[str]) -> list[Run]:
        return [Run(self.sweep_folder / signature) for signature in signatures]

    def job_of(self, signature: str) -> str:
        """Return the id of the job in which a trial runs, "" for none."""
        return self.jobs.get(signature, self.jobs.get(EVERY, ""))

    def write(self, state: Literal["submitting", "submitted"] | None = None) -> None:
        """Write the record, in a new state if one is given."""
        self.state = state or self.state
        write_json(self.file, dataclasses.asdict(self))


def new_record(sweep_folder: Path, cluster: Cluster, trials: Iterable[str], **opts: Any) -> Record:
    """Return a record that is not yet on disk; its folder is created."""
    token = uuid.uuid4().hex[:10]
    folder = jobs_folder(sweep_folder.resolve(), create=True) / token
    make_folder(folder, mode=0o700)
    return Record(token, cluster, time.time(), list(trials), options=opts, folder=str(folder))


def jobs_folder(sweep_folder: Path, *, create: bool = False) -> Path:
    """Return runs/<name>/jobs: records, job logs, and the pickles that submitit executes. Only the
    owner may enter it, because its files are run as code."""
    folder = sweep_folder / "jobs"
    if create:
        own_folder(folder)
    return folder


def read_records(sweep_folder: Path) -> list[Record]:
    """Return a sweep's submissions, oldest first. Raises UserError for a record that cannot be
    read: without it, its trials would be submitted twice."""
    records = [read_record(path) for path in jobs_folder(sweep_folder).glob("*/record.json")]
    return sorted(records, key=lambda record: record.time)


def read_record(path: Path) -> Record:
    """Return the submission in a file; see `read_records`."""
    try:
        return Record(**{**read_json(path), "folder": str(path.parent)})
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a record of submitted jobs ({error}); fix it, or delete it "
                        "once its jobs have ended") from None
