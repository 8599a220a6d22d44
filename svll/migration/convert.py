"""A YAML file of another project, converted to our settings."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.base.errors import UserError
from harness.base.paths import expanded
from harness.config.sources import Setting
from harness.config.yaml_files import read_yaml, to_text
from svll.migration.fastreid_keys import FAST_REID
from svll.migration.rows import Made, Project, literal
from svll.migration.torchreid_keys import TORCHREID
from svll.migration.yacs_keys import BASELINE, CLIP_REID, TRANS_REID

PROJECTS = (CLIP_REID, BASELINE, TRANS_REID, FAST_REID, TORCHREID)
OF_FAST_REID = ("_BASE_", "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE", "MODEL.HEADS",
                "MODEL.LOSSES", "SOLVER.OPT", "SOLVER.SCHED", "DATASETS.TESTS",
                "DATALOADER.SAMPLER_TRAIN", "INPUT.REA")
MOST_BASES = 10
"""Files that extend one another."""


class Line(NamedTuple):
    """One key of theirs."""

    where: str
    """File and line, or "their default"."""
    key: str
    value: Any
    made: Made


@dataclass(frozen=True)
class Conversion:
    """A file of theirs, with what becomes of each key."""

    path: Path
    project: Project
    lines: tuple[Line, ...]

    @property
    def settings(self) -> list[Setting]:
        base = [Setting(key, value, f"{self.path} ({self.project.name})")
                for key, value in self.project.base.items()]
        return base + [Setting(ours, value, f"{line.where}: {line.key}") for line in self.lines
                       for ours, value in line.made.settings.items()]

    @property
    def loud(self) -> list[str]:
        """What makes the result another one than theirs."""
        keys = [f"{self.path}: {line.key}: {shown(line.value)} (their default) has no "
                f"counterpart: {line.made.note}" if line.where == DEFAULT else
                f"{line.where}: {line.key}: {shown(line.value)} has no counterpart: "
                f"{line.made.note}" for line in self.lines if line.made.is_loud]
        return [*(f"{self.path}: {one}" for one in self.project.differs), *keys]

    def text(self) -> str:
        """Return the conversion as a table, and what has no counterpart."""
        done = [line for line in self.lines if line.made.settings]
        rest = [line for line in self.lines if not line.made.settings and not line.made.is_loud]
        rows = [(_place(line), f"{line.key}: {shown(line.value)}",
                 "  ".join(f"{key}={shown(value)}" for key, value in line.made.settings.items()))
                for line in done]
        rows += [("", f"({self.project.name})", f"{key}={shown(value)}")
                 for key, value in self.project.base.items()]
        more = [(_place(line), f"{line.key}: {shown(line.value)}", line.made.note)
                for line in rest if line.where != DEFAULT]
        width = max((len(row[1]) for row in (*rows, *more)), default=0)
        parts = [f"{self.path} is a configuration of {self.project.name}. Converted:",
                 *_rows(rows, width)]
        if more:
            parts += ["", "Without counterpart; the result is the same:", *_rows(more, width)]
        if self.loud:
            parts += ["", "No equivalent; THE RESULT WILL DIFFER:",
                      *(f"  {one}" for one in self.loud)]
        return "\n".join(parts) + "\n"


DEFAULT = "their default"


def _place(line: Line) -> str:
    return "default" if line.where == DEFAULT else line.where.rpartition(" ")[2]


def _rows(rows: list[tuple[str, str, str]], width: int) -> list[str]:
    return [f"  {place:>7}  {theirs:{width}}  {ours}" for place, theirs, ours in rows]


def shown(value: Any) -> str:
    """Return a value as a user would type it."""
    text = to_text(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def convert(path: Path, value: Mapping[str, Any], lines: Mapping[str, int]) -> Conversion:
    """Return the conversion of a file of another project. Raises UserError for values that its
    project does not have either."""
    given = dict(_given(path, value, lines))
    project = _project(given)
    given.pop("_BASE_", None)
    theirs = {**project.defaults, **{key: one for key, (one, _) in given.items()}}
    found = [_line(project, key, theirs, where) for key, (_, where) in given.items()]
    defaults = (_line(project, key, theirs, DEFAULT) for key in project.defaults
                if key not in given)
    found += [line for line in defaults if line.made.settings or line.made.is_loud]
    return Conversion(path, project, tuple(found))


def _project(given: Mapping[str, Any]) -> Project:
    """Return the project that has such keys."""
    def has(*starts: str) -> bool:
        return any(f"{key}.".startswith(f"{start}.") for key in given for start in starts)

    if not any(key.partition(".")[0].isupper() for key in given):
        return TORCHREID
    if has("SOLVER.STAGE1", "SOLVER.STAGE2"):
        return CLIP_REID
    if has(*OF_FAST_REID):
        return FAST_REID
    name = str(given.get("MODEL.NAME", ("", ""))[0]).lower()
    return BASELINE if name.startswith(("vit-", "rn")) else TRANS_REID


def _given(
    path: Path, value: Mapping[str, Any], lines: Mapping[str, int], depth: int = 0
) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Yield the dotted keys, each with its value and place; those of `_BASE_` first."""
    for base in [value["_BASE_"]] if isinstance(value.get("_BASE_"), str) else []:
        where = f"{path}, line {lines.get('_BASE_', 1)}"
        if depth == MOST_BASES:
            raise UserError(f"{where}: _BASE_: files extend one another too often")
        file = path.parent / expanded(base)
        if not file.is_file():
            raise UserError(f"{where}: _BASE_: no such file: {file}")
        yield from _given(file, *read_yaml(file), depth + 1)
    yield from ((key, (literal(one), f"{path}, line {lines.get(key, 1)}"))
                for key, one in _flat(value, ""))


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        elif item is not None or prefix:  # a section of comments alone is null
            yield f"{prefix}{key}", item


def _line(project: Project, key: str, theirs: Mapping[str, Any], where: str) -> Line:
    """Return what becomes of a key. Raises UserError for a value that it cannot have."""
    row, value = project.row(key), theirs[key]
    if row is None:
        near = difflib.get_close_matches(key, [one.key for one in project.rows], n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return Line(where, key, value, Made(note=f"{project.name} has no such key{meant}",
                                            is_loud=True))
    try:
        return Line(where, key, value, row.make(value, theirs))
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{where}: {key}: {value!r} is not a valid value in {project.name} "
                        f"({error}); its default is {row.default!r}") from None
