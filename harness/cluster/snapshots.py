"""The code of a sweep's jobs, frozen when they are submitted.

    runs/<name>/code/<hash>/  the packages as they were; jobs find them first, by PYTHONPATH

A job that waits for days, or is put back into the queue, runs what was submitted, whatever has
been edited since. The same code submitted again is the same folder.
"""

import hashlib
import importlib.util
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from harness.base.errors import UserError
from harness.base.files import own_folder
from harness.cluster.records import Record
from harness.runs.environment import note_git_state
from harness.sweeps.reading import Sweep

SAFE_PATH = "PYTHONSAFEPATH"
"""Set, it keeps the folder that a job starts in, the working tree perhaps, from coming first."""
DISTRIBUTION = "svll-reid"
DIGITS = 12
LEFT_OUT = ("__pycache__", ".ipynb_checkpoints")
NAMED_BY = ("experiment", "prepare", "report")
"""Keys of `run` that name functions; their packages are frozen too."""
NAMED = 4
"""How many differing files are named."""


@dataclass(frozen=True)
class Code:
    """The files of the packages that a sweep's jobs import."""

    files: Mapping[str, Path]
    """Where each is now, by its path in the snapshot."""
    folder: Path
    """Where the snapshot is, or would be."""

    def freeze(self) -> Path:
        """Make the snapshot unless it is there, whole or not at all; returns its folder.

        Only the owner may enter the folder above, as what lies there is run. Raises UserError when
        it cannot be written, or when a snapshot that is there was changed.
        """
        private = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            own_folder(self.folder.parent)
            if self.folder.exists():
                return _unchanged(self.folder)
            for name, source in self.files.items():
                target = private / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
            # what was copied, should a file have been edited since it was looked at
            folder = self.folder.with_name(_digest(_inside(private)))
            note_git_state(folder, Path(__file__).parents[2])
            try:
                private.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                return _unchanged(folder)  # another launcher was as quick
            return folder
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(private, ignore_errors=True)


def working(sweep: Sweep) -> Code:
    """Return the code as it is now: this project's packages, and those that the sweep names."""
    places = [trial.config.run for trial in sweep.trials[:1]]
    named = [getattr(place, key, "") for place in places for key in NAMED_BY]
    packages = dict.fromkeys([*_own_packages(), *(name.partition(".")[0] for name in named)])
    files = {name: path for package in packages for name, path in _files(package)}
    return Code(files, sweep.folder.resolve() / "code" / _digest(files))


def _own_packages() -> list[str]:
    """Return the packages that were installed together with this one."""
    own = __package__.partition(".")[0]
    with suppress(metadata.PackageNotFoundError):
        text = metadata.distribution(DISTRIBUTION).read_text("top_level.txt") or ""
        return [own, *(name for name in text.split() if name != own)]
    return [own]


def _unchanged(folder: Path) -> Path:
    """Return the folder of a snapshot whose files are those that its name stands for."""
    if _digest(_inside(folder)) != folder.name:
        raise UserError(
            f"{folder}: is not the code that was frozen there, somebody changed it; delete the "
            "folder and give the command again"
        )
    return folder


def _inside(folder: Path) -> dict[str, Path]:
    """Return the files of a snapshot by their paths in it."""
    return {
        str(path.relative_to(folder)): path for path in folder.rglob("*")
        if path.is_file() and not set(path.parts) & set(LEFT_OUT)
    }


def _digest(files: Mapping[str, Path]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        content = hashlib.sha256(files[name].read_bytes()).hexdigest()
        whole.update(f"{name} {content}\n".encode())
    return whole.hexdigest()[:DIGITS]


def _files(package: str) -> Iterable[tuple[str, Path]]:
    """Yield the files of a package, or of a module that is a single file, by their places."""
    try:
        found = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        found = None
    found = found or PathFinder.find_spec(package, [os.getcwd()])
    if found is None or found.origin in (None, "built-in", "frozen"):
        return
    origin = Path(str(found.origin))
    if not found.submodule_search_locations:
        yield origin.name, origin
        return
    root = origin.parent
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in LEFT_OUT)
        for name in sorted(files):
            path = Path(folder) / name
            # editors leave files and links there; what only people read changes nothing
            if not name.startswith(".") and not name.endswith(".md") and path.is_file():
                yield str(path.relative_to(root.parent)), path


def search_path(code: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which Python finds frozen code, given those that there are."""
    if not code:
        return {}
    # last the folder of the command, where modules beside the experiment may be
    places = [code, variables.get("PYTHONPATH", ""), os.getcwd()]
    return {"PYTHONPATH": os.pathsep.join(filter(None, places)), SAFE_PATH: "1"}


def differing(before: Path, now: Code) -> list[str]:
    """Return which files differ between a snapshot and the code as it is now."""
    if before == now.folder:
        return []
    old = _inside(before)
    return sorted(
        name for name in old.keys() | now.files.keys()
        if name not in old or name not in now.files
        or old[name].read_bytes() != now.files[name].read_bytes()
    )


def mixed(sweep: Sweep, signatures: Iterable[str], records: Iterable[Record]) -> list[str]:
    """Say how many trials were last submitted with other code than there is now, and what differs.

    signatures: the trials that matter. Returns one line for each such code.
    """
    wanted, newest = set(signatures), {}
    for record in records:
        for signature in wanted & set(record.trials):
            newest[signature] = record.options.get("code", "")
    if not any(newest.values()):
        return []
    now, told = working(sweep), []
    for before in sorted({code for code in newest.values() if code and Path(code) != now.folder}):
        count = sum(code == before for code in newest.values())
        names = differing(Path(before), now) if Path(before).is_dir() else ["its folder is gone"]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        told.append(
            f"{count} with code {Path(before).name}, the working tree is {now.folder.name}; "
            f"different: {', '.join(names[:NAMED])}{more}"
        )
    return told
