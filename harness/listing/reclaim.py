"""Files that no run needs any more, and that only take room: frozen code, job folders, checkpoints.

A run that is not complete needs all that it has: the same command resumes it.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.base.errors import UserError
from harness.base.locks import held_lock
from harness.base.mappings import lookup
from harness.base.unused import remove
from harness.cluster.pruning import ENDED, unneeded
from harness.cluster.records import jobs_folder
from harness.config.yaml_files import read_yaml
from harness.listing.disk import freed_by
from harness.listing.folders import find
from harness.listing.removing import LAUNCH_LOCK
from harness.runs.run import Run, is_in_use, state_of

KEEP = "run.keep_checkpoints"
"""The key with which a user keeps a run's checkpoints for good."""
MOST_NAMED = 3


@dataclass
class Spare:
    """Files of one kind that nothing needs, in one place."""

    kind: str
    folder: Path
    """The sweep, the run or the folder of shared files that they are in."""
    paths: list[Path]
    """What was found, and is shown to the user."""
    find: Callable[[], list[Path]]
    """Called under the lock before anything is deleted; only what it still returns is deleted. A
    UserError says why nothing is."""
    lock: Path | None = None
    """Held while they are deleted, so that nothing begins to use them."""


@dataclass
class Reclaim:
    """What can be deleted in folders of runs, and why other things stay."""

    spares: list[Spare]
    kept: list[str]
    folders: Sequence[Path] = ()
    """Where runs were looked for."""

    def paths(self, kind: str) -> list[Path]:
        """Return the files and folders of a kind that can be deleted."""
        return [path for one in self.spares if one.kind == kind for path in one.paths]

    def table(self) -> list[tuple[str, int, int]]:
        """Return a row for each kind: the kind, how many files or folders, and the bytes."""
        rows = []
        for kind in dict.fromkeys(one.kind for one in self.spares):
            paths = self.paths(kind)
            rows.append((kind, len(paths), freed_by(paths)))
        return rows

    def bytes(self) -> int:
        """Return the bytes that deleting all of it frees."""
        return freed_by(path for one in self.spares for path in one.paths)

    def delete(self) -> list[str]:
        """Delete all of it; return what could not be deleted, a line each."""
        faults = []
        for one in self.spares:
            try:
                with _held(one):
                    for path in sorted({*one.paths}.intersection(one.find())):
                        remove(path)
            except (OSError, UserError) as error:
                faults.append(f"{one.folder}: {one.kind}: {error}")
        return faults


def reclaimable(folders: Iterable[Path]) -> tuple[Reclaim, list[Run]]:
    """Return what can be deleted in folders of runs, and the runs there that are not complete.
    Raises UserError for a folder that does not exist."""
    result = Reclaim([], [], [*folders])
    states = _states(result.folders)
    runs = [Run(folder) for folder in states]
    for parent in dict.fromkeys(run.folder.parent for run in runs):
        if jobs_folder(parent).is_dir():
            _of_sweep(parent, result)
    for run in runs:
        if states[run.folder] == "complete":
            _of_run(run, result)
    return result, [run for run in runs if states[run.folder] not in ENDED]


def open_runs(folders: Iterable[Path]) -> list[Run]:
    """Return the runs in folders that are not complete now."""
    return [Run(folder) for folder, state in _states(folders).items() if state not in ENDED]


def _states(folders: Iterable[Path]) -> dict[Path, str]:
    """Return the state of each run in folders, by its folder."""
    found = {one.folder: one for folder in folders for one in find(folder)}
    return {one.folder: state_of(Run(one.folder)) for one in found.values() if one.kind == "run"}


def said(runs: Sequence[Run], what: str) -> list[str]:
    """Say why shared files stay: the runs that may need them; nothing for no runs."""
    if not runs:
        return []
    names = ", ".join(run.name for run in runs[:MOST_NAMED])
    more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
    return [f"{what} stays for runs that are not complete: {names}{more}"]


def _of_sweep(folder: Path, result: Reclaim) -> None:
    """Add the job folders and the frozen code of a sweep that nothing needs."""
    try:
        found = unneeded(folder, days=0)
    except (UserError, OSError) as error:  # a scheduler that is silent, another user's sweep
        result.kept.append(f"{folder}: frozen code and job folders stay: {error}")
        return
    for kind, inner in (("job folders", "jobs"), ("frozen code", "code")):
        if paths := [path for path in found if path.parent.name == inner]:
            again = partial(unneeded, folder, days=0)
            result.spares.append(Spare(kind, folder, paths, again, folder / LAUNCH_LOCK))


def _of_run(run: Run, result: Reclaim) -> None:
    """Add the checkpoints of a complete run, which a kill in its last moment left."""
    if not run.checkpoints.is_dir() or run.checkpoints.is_symlink() or is_in_use(run):
        return
    try:
        if lookup(read_yaml(run.config_file)[0], KEEP):
            result.kept.append(f"{run.name}: its checkpoints stay ({KEEP}: true)")
            return
    except (UserError, OSError) as error:
        result.kept.append(f"{run.name}: its checkpoints stay: {error}")
        return

    def checkpoints() -> list[Path]:
        return [run.checkpoints] if run.is_complete() and run.checkpoints.is_dir() else []

    result.spares.append(
        Spare("checkpoints", run.folder, checkpoints(), checkpoints, run.lock_file))


def _held(spare: Spare) -> AbstractContextManager[None]:
    return held_lock(spare.lock) if spare.lock is not None else nullcontext()
