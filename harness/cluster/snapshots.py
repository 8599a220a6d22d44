"""The code of a sweep's jobs, frozen when they are submitted.

    runs/<name>/code/<hash>/  copies of the packages, which come first in the jobs' PYTHONPATH

So a job that waits for days, or is requeued, runs the submitted code, whatever has been edited
since. Submitting the same code again uses the same folder.
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
from types import MappingProxyType

from harness.base.errors import UserError
from harness.base.files import own_folder, rename, sync_all
from harness.base.paths import SAFETENSORS, SEARCH_PATH, refuse
from harness.base.unused import mark_used
from harness.cluster.records import Record
from harness.runs.environment import note_git_state
from harness.sweeps.reading import Sweep

SAFE_PATH = "PYTHONSAFEPATH"
"""Keeps Python from putting a job's working folder, perhaps the working tree, first in its path."""
DISTRIBUTION = "svll-reid"
DIGITS = 12
LEFT_OUT = ("__pycache__", ".ipynb_checkpoints")
FUNCTION_KEYS = ("experiment", "prepare", "report")
"""Keys of `run` that name functions; their packages are frozen too."""
MOST_NAMES = 4
"""How many differing files a message names."""


@dataclass(frozen=True)
class Code:
    """The files of the packages that a sweep's jobs import."""

    files: Mapping[str, Path]
    """The present path of each file, by its path in the snapshot."""
    folder: Path
    """The snapshot's folder, which may not exist yet."""

    def freeze(self) -> Path:
        """Create the snapshot unless it exists, whole or not at all; returns its folder.

        Only the owner may enter the folder above, because its files are run. Raises UserError when
        it cannot be written, or when an existing snapshot was changed.
        """
        private = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}.tmp")
        try:
            own_folder(self.folder.parent)
            if self.folder.exists():
                mark_used(self.folder)
                return _unchanged(self.folder)
            for name, source in self.files.items():
                target = private / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
            # the hash of the copies, because a file may have been edited meanwhile
            folder = self.folder.with_name(_digest(_files_in(private)))
            note_git_state(folder, Path(__file__).parents[2])
            sync_all(private)
            try:
                rename(private, folder)
            except OSError:
                if not folder.exists():
                    raise
                return _unchanged(folder)  # another launcher created it just now
            return folder
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(private, ignore_errors=True)


def current_code(sweep: Sweep) -> Code:
    """Return the present code of this project's packages and of those that the sweep names."""
    names = [__package__]
    with suppress(metadata.PackageNotFoundError):
        names += (metadata.distribution(DISTRIBUTION).read_text("top_level.txt") or "").split()
    configs = [trial.config for trial in (*sweep.trials, *sweep.probes)]
    names += [getattr(config.run, key, "") for config in configs for key in FUNCTION_KEYS]
    packages = dict.fromkeys(name.partition(".")[0] for name in names)
    files = {name: path for package in packages for name, path in _package_files(package)}
    return Code(files, code_folder(sweep.folder.resolve()) / _digest(files))


def code_folder(sweep_folder: Path) -> Path:
    """Return where the frozen code of a sweep's jobs is."""
    return sweep_folder / "code"


def check_folders(
    sweep: Sweep, letters: Mapping[str, str] = MappingProxyType({}),
    here: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Raise UserError for folders that a sweep's jobs would not find. letters: what else may not be
    in the path of its folder; here: in that of the current one (see `paths.refuse`)."""
    every = SAFETENSORS | SEARCH_PATH | {**letters}
    refuse(f"{sweep.file}: run.runs", sweep.folder.resolve(), every)
    refuse("the current folder", os.getcwd(), SEARCH_PATH | {**here})


def _unchanged(folder: Path) -> Path:
    if _digest(_files_in(folder)) != folder.name:
        raise UserError(f"{folder}: is not the code that was frozen there, somebody changed it; "
                        "delete the folder and give the command again")
    return folder


def _files_in(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*")
            if path.is_file() and not set(path.parts) & set(LEFT_OUT)}


def _digest(files: Mapping[str, Path]) -> str:
    whole = hashlib.sha256()
    for name in sorted(files):
        content = hashlib.sha256(files[name].read_bytes()).hexdigest()
        whole.update(f"{name} {content}\n".encode())
    return whole.hexdigest()[:DIGITS]


def _package_files(package: str) -> Iterable[tuple[str, Path]]:
    """Yield the files of a package, or of a single-file module, with their paths in a snapshot."""
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        spec = None
    spec = spec or PathFinder.find_spec(package, [os.getcwd()])
    if spec is None or spec.origin in (None, "built-in", "frozen"):
        return
    origin = Path(str(spec.origin))
    if not spec.submodule_search_locations:
        yield origin.name, origin
        return
    for name, path in _files_in(origin.parent).items():
        # hidden files are editors' and may be dangling links; Markdown does not affect results
        if not path.name.startswith(".") and path.suffix != ".md":
            yield str(Path(origin.parent.name, name)), path


def search_path(code: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which Python finds frozen code; none for code "". variables: the
    environment, whose PYTHONPATH is kept."""
    if not code:
        return {}
    # last the command's folder, which may hold modules of the experiment
    places = [code, variables.get("PYTHONPATH", ""), os.getcwd()]
    return {"PYTHONPATH": os.pathsep.join(filter(None, places)), SAFE_PATH: "1"}


def differing(before: Path, now: Code) -> list[str]:
    """Return the names of files that differ between a snapshot and the present code."""
    if before == now.folder:
        return []
    old = _files_in(before)
    return sorted(name for name in old.keys() | now.files.keys()
                  if name not in old or name not in now.files
                  or old[name].read_bytes() != now.files[name].read_bytes())


def differences(sweep: Sweep, signatures: Iterable[str], records: Iterable[Record]) -> list[str]:
    """Return a line for each other code with which some trials were last submitted. signatures:
    these trials. A line has their number and names the files that differ."""
    wanted, newest = set(signatures), {}
    for record in records:
        for signature in wanted & set(record.trials):
            newest[signature] = record.options.get("code", "")
    if not any(newest.values()):
        return []
    now, lines = current_code(sweep), []
    for before in sorted({code for code in newest.values() if code and Path(code) != now.folder}):
        count = sum(code == before for code in newest.values())
        names = differing(Path(before), now) if Path(before).is_dir() else ["its folder is gone"]
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        lines.append(f"{count} with code {Path(before).name}, the working tree is "
                     f"{now.folder.name}; different: {', '.join(names[:MOST_NAMES])}{more}")
    return lines
