"""Which folders are runs and sweeps, and which of them a user means by a word.

Links are never followed below the folder that the user names.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from harness.base.errors import UserError

Kind = Literal["run", "sweep"]
SIGNATURE = re.compile(r"(pbt-(\d+-)?)?[0-9a-f]{12}")
"""Names of run folders."""
RUN_FILES = {
    "config.yaml", "status.json", "result.json", "metrics.jsonl", "environment.json", "log.txt",
    "checkpoints", "lock.json",
}
"""What tells a run's folder from others, even a damaged one."""
SWEEP_FILE = "sweep.json"
INNER = ("cache", "code", "jobs")
"""Folders beside runs that hold other things; runs of such a name lie directly in them."""
DEPTH = 3
"""How far below a named folder runs are looked for: runs/<group>/<name>/<signature>."""
MOST_NAMED = 5
"""How many folders an error names."""


class Found(NamedTuple):
    """The folder of a run or of a sweep."""

    folder: Path
    kind: Kind
    fault: str = ""
    """Why it could not be looked into."""


def find(folder: Path, depth: int = DEPTH) -> Iterator[Found]:
    """Yield the runs and sweeps in a folder, itself included, in the order of their names.

    A folder that cannot be read is yielded as a run with a fault. Raises UserError for a folder
    that does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name a "
                        "folder of runs")
    yield from _find(folder, folder.resolve().name, depth)


def _find(folder: Path, own_name: str, depth: int) -> Iterator[Found]:
    try:
        with os.scandir(folder) as entries:
            inside = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            yield Found(folder, "run", error.strerror or "cannot be read")
        return
    if _is_run(own_name, inside):
        yield Found(folder, "run")
        return
    if SWEEP_FILE in inside:
        yield Found(folder, "sweep")
    for name in sorted(inside) if depth else ():
        if inside[name] and not name.startswith("."):
            yield from _find(folder / name, name, 1 if name in INNER and depth > 1 else depth - 1)


def _is_run(name: str, inside: Iterable[str]) -> bool:
    names = set(inside)
    if SIGNATURE.fullmatch(name):
        return not names or bool(names & RUN_FILES)
    return "config.yaml" in names and len(names & RUN_FILES) > 1


def look_at(folder: Path) -> Kind | None:
    """Return what a folder is, None for neither a run nor a sweep. Raises OSError."""
    names = os.listdir(folder)
    if _is_run(folder.resolve().name, names):
        return "run"
    return "sweep" if SWEEP_FILE in names else None


def named(word: str, runs: Path) -> Path:
    """Return the folder of the run or sweep that a word means: a path, the name of a sweep, or the
    beginning of a signature, such as 0a1b or loss_weights/0a1b. A path that does not tell the
    names of the folder and its parent, such as `.`, is made absolute.

    runs: where names and signatures are looked for. Raises UserError, which names the nearest, for
    a word that means none or several.
    """
    path = Path(word)
    if os.path.lexists(path):
        if path.is_dir() and look_at(path):
            if path.name in ("", ".."):
                return path.resolve()
            has_names = path.parent.name and ".." not in path.parts
            return path if has_names else path.parent.resolve() / path.name
        inside = [one.folder for one in find(path)] if path.is_dir() else []
        more = f"; it has {_listed(inside)}" if inside else ""
        raise UserError(f"{path}: neither a run's folder nor a sweep's{more}")
    group, _, start = word.rstrip("/").rpartition("/")
    places = [place for place in ([Path(group), runs / group] if group else [runs])
              if place.is_dir()]
    if not places:
        raise UserError(f"{word}: no such run or sweep: there is no folder {runs / group}; name "
                        "another folder of runs with --runs")
    every = [one.folder for one in find(places[0])]
    exact = [one for one in every if one.name == start]
    found = exact or [one for one in every
                      if SIGNATURE.fullmatch(one.name) and one.name.startswith(start)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{word}: {len(found)} runs begin so: {_listed(found)}; write more of it")
    near = difflib.get_close_matches(start, [one.name for one in every], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {_listed(every)}"
    raise UserError(f"{word}: no run or sweep of this name in {places[0]}; "
                    f"{hint if every else 'there is none at all'}")


def _listed(folders: Sequence[Path]) -> str:
    names = [f"{one.parent.name}/{one.name}" for one in folders[:MOST_NAMED]]
    more = f" and {len(folders) - MOST_NAMED} more" if len(folders) > MOST_NAMED else ""
    return ", ".join(names) + more
