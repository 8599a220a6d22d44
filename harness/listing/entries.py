"""What a list says of each run and sweep: state, best metric, age, size on disk, notes."""

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.base.mappings import is_number, lookup
from harness.base.reading import from_json
from harness.cluster.local.place import living_workers
from harness.cluster.records import read_records
from harness.listing.disk import size_of
from harness.listing.folders import SWEEP_FILE, Found, Kind, find
from harness.listing.notes import Notes, read_notes
from harness.runs.run import Run, state_of

LEFT = "(no longer in the sweep file)"
EPOCH = b'"kind": "epoch"'


@dataclass(frozen=True)
class Metric:
    """By which number runs are compared, and which further one stands in for it."""

    key: str
    instead: str = ""
    """For runs that do not have `key`, such as those without a validation part."""
    mode: str = "max"


@dataclass(frozen=True)
class Entry:
    """A run or a sweep as it is now."""

    folder: Path
    kind: Kind
    state: str
    """Of a sweep: how many runs are in which state."""
    metric: str = ""
    value: float | None = None
    """The metric: of a complete run its result's, else the best so far; of a sweep the best."""
    changed: float = 0.0
    """When the status last changed, in seconds since 1970; 0 if that is not known."""
    size: int = 0
    """Bytes on disk."""
    notes: Notes = field(default_factory=Notes)
    fault: str = ""
    """What is wrong with its files, or the error of a run that failed."""
    runs: int = 0
    """Of a sweep: how many runs it has."""
    in_file: bool = True
    """Of a sweep's run: whether the sweep file still has it."""

    @property
    def name(self) -> str:
        return self.folder.name if self.kind == "sweep" else Run(self.folder).name

    @property
    def remark(self) -> str:
        """The user's notes, and whether the sweep file has lost the run, in one line."""
        return " ".join(filter(None, ["" if self.in_file else LEFT, self.notes.line]))

    def as_json(self) -> dict[str, Any]:
        """Return values that JSON can hold."""
        return {
            "name": self.name, "kind": self.kind, "folder": str(self.folder), "state": self.state,
            "metric": self.metric, "value": self.value, "changed": self.changed,
            "bytes": self.size, "tags": list(self.notes.tags), "note": self.notes.note,
            "fault": self.fault,
            **({"runs": self.runs} if self.kind == "sweep" else {"in_file": self.in_file}),
        }


def list_entries(folders: Iterable[Path], metric: Metric) -> list[Entry]:
    """Return the runs and sweeps in folders, each once; a sweep comes before its runs. metric: of
    runs of no sweep. Raises UserError for a folder that does not exist."""
    every = {one.folder: one for folder in folders for one in find(folder)}
    sweeps = {one.folder: _read_sweep(one.folder, metric)
              for one in every.values() if one.kind == "sweep"}
    runs: dict[Path, list[Entry]] = {}
    for one in every.values():
        if one.kind == "run":
            parent = one.folder.parent
            own_metric = sweeps[parent].metric if parent in sweeps else metric
            runs.setdefault(parent, []).append(run_entry(one, own_metric))
    entries: list[Entry] = []
    for folder in dict.fromkeys([*sweeps, *runs]):
        own = _without_workers(folder, runs.get(folder, []))
        if folder in sweeps:
            dropped = sweeps[folder].dropped
            own = [replace(one, in_file=one.folder.name not in dropped) for one in own]
            entries.append(_sweep_entry(folder, own, sweeps[folder]))
        entries += own
    return entries


def _without_workers(sweep: Path, runs: list[Entry]) -> list[Entry]:
    """Tell which runs wait for workers of this machine that are gone. Jobs of a scheduler are not
    asked for: a list must not wait for that."""
    if all(one.state != "submitted" for one in runs):
        return runs
    try:
        records = read_records(sweep)
    except (UserError, OSError):  # another user's, or damaged: --status tells
        return runs
    newest = {signature: record for record in records for signature in record.trials}
    tokens = {record.token for record in newest.values() if record.cluster == "local"}
    gone = {token for token in tokens if not living_workers(sweep, token)}
    lost = {signature for signature, record in newest.items() if record.token in gone}
    return [replace(one, fault="its worker ended before it began")
            if one.state == "submitted" and one.folder.name in lost else one for one in runs]


def run_entry(found: Found, metric: Metric) -> Entry:
    """Return the entry of one run. Never raises for damaged files: they are its `fault`."""
    run, faults = Run(found.folder), [found.fault]
    state = "unreadable" if found.fault else state_of(run)
    status: dict[str, Any] = {}
    numbers = dict[str, float]()
    try:
        status = run.status()
        faults.append(str(status.get("error", "")) if state == "failed" else "")
        if not run.config_file.exists():
            faults.append("config.yaml is missing")
        numbers = _numbers(run, metric, is_complete=state == "complete")
    except (UserError, OSError) as error:
        faults.append(str(error))
        state = "unreadable"
    notes, notes_fault = _notes(run.folder)
    faults.append(notes_fault)
    key = next((key for key in (metric.key, metric.instead) if key in numbers), "")
    fault = next((" ".join(fault.split()) for fault in faults if fault), "")
    return Entry(run.folder, "run", state, key, numbers.get(key), _changed(run.folder, status),
                 size_of(run.folder), notes, fault)


def _notes(folder: Path) -> tuple[Notes, str]:
    """Return the notes on a folder, and what is wrong with their file."""
    try:
        return read_notes(folder), ""
    except UserError as error:
        return Notes(), str(error)


class _Sweep(NamedTuple):
    """What a list needs of a sweep.json."""

    metric: Metric
    dropped: set[str]
    """The signatures of runs that the sweep file has lost."""
    fault: str
    """What is wrong with it."""


def _read_sweep(folder: Path, otherwise: Metric) -> _Sweep:
    """Return what a list needs of a sweep; otherwise: the metric where its file is damaged."""
    try:
        about = read_json(folder / SWEEP_FILE)
        metric = replace(otherwise, key=str(about["metric"]), mode=str(about["mode"]))
        dropped = {str(one["signature"]) for one in about["trials"] if one.get("dropped")}
        return _Sweep(metric, dropped, "")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        fault = f"{SWEEP_FILE} cannot be read ({error!r}); the next launch writes it"
        return _Sweep(otherwise, set(), fault)


def _numbers(run: Run, metric: Metric, *, is_complete: bool) -> dict[str, float]:
    """Return a run's metrics by key: of its result, or else the best of its epochs."""
    keys = [key for key in (metric.key, metric.instead) if key]
    if is_complete:
        result = run.result()
        return {key: value for key in keys if is_number(value := lookup(result, key))}
    best: dict[str, float] = {}
    better = min if metric.mode == "min" else max
    for line in _epochs(run):
        for key in keys:
            if is_number(value := lookup(line, key)):
                best[key] = better(value, best.get(key, value))
    return best


def _epochs(run: Run) -> list[dict[str, Any]]:
    """Return the lines of epochs in a metric log that may be damaged or still being written. Other
    lines, which are most, are not parsed."""
    try:
        text = run.metrics_file.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.split(b"\n")[:-1]:
        if EPOCH in line:
            try:
                lines.append(dict(from_json(line.decode())))
            except (ValueError, TypeError):
                continue
    return lines


def _changed(folder: Path, status: dict[str, Any]) -> float:
    if "time" in status:
        return float(status["time"])
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _sweep_entry(folder: Path, runs: Sequence[Entry], sweep: _Sweep) -> Entry:
    """Return the entry of a sweep with these runs; the best is of those in the sweep file."""
    metric, _, fault = sweep
    counts = Counter(one.state for one in runs)
    values = [one.value for one in runs
              if one.state == "complete" and one.value is not None and one.metric == metric.key
              and one.in_file]
    notes, notes_fault = _notes(folder)
    inside = {one.folder for one in runs}
    others = [path for path in _inside(folder) if path not in inside]
    return Entry(
        folder, "sweep", ", ".join(f"{count} {state}" for state, count in counts.most_common()),
        metric.key, (min if metric.mode == "min" else max)(values, default=None),
        max((one.changed for one in runs), default=_changed(folder, {})),
        sum(one.size for one in runs) + size_of(*others), notes, fault or notes_fault, len(runs),
    )


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


# --- filters ---


@dataclass(frozen=True)
class Wanted:
    """Which runs are listed; a sweep is listed with any of its runs."""

    states: Sequence[str] = ()
    names: Sequence[str] = ()
    """Parts of <name>/<signature>, in which * and ? stand for other letters."""
    tags: Sequence[str] = ()
    since: float = -math.inf
    """Only runs that changed later, in seconds since 1970."""

    def holds(self, one: Entry, sweeps: Collection[Path] = ()) -> bool:
        """Return whether a run is wanted. sweeps: those with one of the tags, which their runs
        share."""
        return ((not self.states or one.state in self.states)
                and (not self.names or any(fnmatch(one.name, f"*{pattern}*")
                                           for pattern in self.names))
                and (not self.tags or one.folder.parent in sweeps or self.has_tag(one))
                and one.changed >= self.since)

    def has_tag(self, one: Entry) -> bool:
        """Return whether a run or a sweep has one of the tags."""
        return bool({*self.tags} & {*one.notes.tags})


def chosen(entries: Sequence[Entry], wanted: Wanted) -> list[Entry]:
    """Return the runs that are wanted, and the sweeps that have one or, where only tags are wanted,
    a tag."""
    if wanted == Wanted():
        return list(entries)
    tagged = {one.folder for one in entries if one.kind == "sweep" and wanted.has_tag(one)}
    runs = [one for one in entries if one.kind == "run" and wanted.holds(one, tagged)]
    kept = {one.folder for one in runs} | {one.folder.parent for one in runs}
    if wanted == Wanted(tags=wanted.tags):
        kept |= tagged
    return [one for one in entries if one.folder in kept]


def age(changed: float) -> str:
    """Return how long ago that was: 40s, 5m, 3h, 12d; "" if it is not known."""
    if not changed:
        return ""
    seconds = max(0.0, time.time() - changed)
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s"


def in_bytes(size: float) -> str:
    """Return a size for readers: 512 B, 1.5 kB, 20 MB, 3.1 GB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.1f} {units[0]}" if size < 10 and units[0] != "B" else f"{size:.0f} {units[0]}"
