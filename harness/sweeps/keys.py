"""The keys of a sweep file, as types: what trials get, how they are searched and ended early."""

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness.base.errors import UserError
from harness.base.units import gigabytes, minutes
from harness.config.build import Setting, build, field_types, text_fields
from harness.config.casts import TRUTHS
from harness.config.yaml_files import ENDINGS, Texts
from harness.sweeps.dimensions import hint

log = logging.getLogger(__name__)

FREE = ("overrides", "search", "scheduler", "algorithm", "objectives", "slurm")
"""Keys of a sweep file that hold mappings of the user's own keys."""
SLURM_LISTS = ("setup", "teardown", "srun_args")
SLURM_FLAGS = {"true": True, "false": False}
"""What an option without a value gets."""
SLURM_WORDS = ("account", "comment", "constraint", "job_name", "kill_on_invalid_dep", "partition",
               "qos", "reservation", "wckey")
"""Options that may be text such as on; for others, true or false is meant."""
SLURM_COUNTS = ("array_parallelism", "signal_delay_s")
"""Options of a job that submitit computes with; all others it writes down as they are."""


@dataclass
class Resources:
    """What one trial gets."""

    nodes: int = 1
    """Nodes of each trial."""
    gpus: int | None = None
    """GPUs on each node; null: on this machine one per rank where there are enough, on SLURM none.
    """
    tasks: int | None = None
    """Ranks on each node; null: one per GPU, or one where there is none."""
    cpus: int = 1
    """Cores of each rank."""
    time: str = "4h"
    """Limit of one SLURM job, such as 90m, 4h or 1d12h; a longer run goes on in a further job."""
    max_time_outs: int = 20
    """How often that limit may end a trial's job, and the trial go on by itself."""
    memory: str | None = None
    """Memory on each node, such as 32GB; null: the partition's default."""

    def faults(self) -> Iterator[tuple[str, str]]:
        least_of = {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1, "max_time_outs": 0}
        for key, least in least_of.items():
            value = getattr(self, key)
            if value is not None and value < least:
                yield key, f"must be at least {least}, found {value}"
        if self.gpus and (self.tasks or 1) > self.gpus:
            yield "tasks", (f"{self.tasks} ranks need a GPU each, found gpus: {self.gpus}; give as "
                            "many, or gpus: 0")
        if not minutes(self.time):
            yield "time", f"{self.time!r} is not a time; write it as 90m, 4h or 1d12h"
        if self.memory is not None and not gigabytes(self.memory):
            yield "memory", f"{self.memory!r} is not a size; write it as 500MB or 32GB"

    @property
    def ranks_per_node(self) -> int:
        return self.tasks if self.tasks is not None else max(1, self.gpus or 0)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def trial_gpus(self) -> int:
        """GPUs of a trial on all its nodes."""
        return self.nodes * (self.gpus or 0)


@dataclass
class Allocation:
    """Backend ray only: the one job in which the trials run."""

    nodes: int = 1
    """Nodes of that job."""
    trials_per_node: int = 1
    """Trials that run side by side on a node; each gets the sweep's `resources`."""
    trials_per_gpu: int = 1
    """How many of them share a GPU; their `resources.gpus` must be 1."""
    dashboard: bool = False
    """Whether Ray's pages are served, on the first node to itself; its log says how to see them."""
    address: str | None = None
    """HOST:PORT of a Ray that is running already, instead of one of the sweep's own; its nodes must
    see the same files."""

    def faults(self) -> Iterator[tuple[str, str]]:
        for key in ("nodes", "trials_per_node", "trials_per_gpu"):
            if getattr(self, key) < 1:
                yield key, f"must be at least 1, found {getattr(self, key)}"


@dataclass
class SweepFile:
    """The keys of a sweep file."""

    name: str = ""
    """Folder of its runs; empty: the file's name."""
    recipe: str = ""
    """What all trials start from: the name of a shipped recipe, or a file as seen from this one's
    folder or the current one."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values that all trials share and that differ from the recipe's."""
    search: dict[str, Any] = field(default_factory=dict)
    """What differs between trials, as `key: {grid: [...]}`; or choice: [...], and uniform,
    loguniform or randint: [low, high]; randint leaves `high` out."""
    seeds: list[int] | None = None
    """Every point is run once per seed; null: with the recipe's."""
    samples: int = 1
    """Draws of the random dimensions; how many points an algorithm proposes."""
    metric: str = ""
    """What ranks the trials."""
    mode: Literal["max", "min"] = "max"
    """Whether the highest or the lowest metric is the best."""
    backend: Literal["array", "ray"] = "array"
    """array: one job per trial; ray: Ray Tune inside one allocation."""
    prepare: bool = False
    """On SLURM, backend array: a job of its own makes what trials share before they start."""
    report: bool = False
    """Likewise: a job after the last trial writes report.html and report.txt."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Backend ray only, `asha: {grace: 2, reduction: 3}`: which trials are ended early."""
    algorithm: dict[str, Any] = field(default_factory=dict)
    """Backend ray only, `tpe` or `gp: {startup: 10}`: what proposes the points, one by one from
    the results so far; without one they are drawn at random."""
    objectives: dict[str, Any] = field(default_factory=dict)
    """Of an algorithm, `images_per_s: max`: what is weighed against the metric; the search is for
    points that nothing beats in everything."""
    constraints: list[str] = field(default_factory=list)
    """Conditions that every point must meet, such as "first.weight + second.weight <= 1".
    """
    resources: Resources = field(default_factory=Resources)
    ray: Allocation = field(default_factory=Allocation)
    slurm: dict[str, Any] = field(default_factory=dict)
    """Anything that sbatch takes; and setup: [lines of shell before Python], teardown: [lines after
    it], python: the interpreter, srun_args: [...], env: {NAME: value}."""

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.name and not re.fullmatch(r"[A-Za-z0-9][\w.\-]*", self.name):
            yield "name", f"{self.name!r} must be a plain folder name (letters, digits, . _ -)"
        if self.samples < 1:
            yield "samples", f"must be at least 1, found {self.samples}"
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            yield "seeds", f"{self.seeds} has a seed twice"
        if self.seeds == []:
            yield "seeds", "is empty; leave it out to use the recipe's seed"


# --- schedulers: which trials are ended early, or changed ---


@dataclass
class Asha:
    """Asynchronous successive halving (Li et al. 2018): at each rung one in so many goes on."""

    kind: ClassVar[str] = "asha"
    grace: int = 1
    """Epochs that every trial may run."""
    reduction: int = 3
    """One trial in so many goes on at each rung."""
    early: str | None = None
    """A number by which epochs are judged, likewise, as long as the sweep's metric is not there."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from _at_least(self, grace=1, reduction=2)


@dataclass
class HyperBand:
    """HyperBand (Li et al. 2017): brackets of trials that are paused and halved together."""

    kind: ClassVar[str] = "hyperband"
    epochs: int = 27
    """Epochs of the trials that go on longest."""
    reduction: int = 3
    """One trial in so many goes on at each halving."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from _at_least(self, epochs=1, reduction=2)


@dataclass
class Median:
    """Median stopping (Golovin et al. 2017): ends trials below the others' median so far."""

    kind: ClassVar[str] = "median"
    grace: int = 2
    """Epochs that every trial may run."""
    trials: int = 3
    """How many must have come so far before one is judged."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from _at_least(self, grace=1, trials=1)


@dataclass
class Pbt:
    """Population based training (Jaderberg et al. 2017): bad trials go on from good ones."""

    kind: ClassVar[str] = "pbt"
    every: int = 2
    """Epochs between comparisons."""
    share: float = 0.25
    """The worst so many go on from the best so many."""
    factor: float = 1.2
    """By which their settings are then moved, up or down."""
    resample: float = 0.25
    """Probability that a setting is drawn anew instead."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from _at_least(self, every=1)
        if not 0 < self.share <= 0.5:
            yield "share", f"must be greater than 0 and at most 0.5, found {self.share}"
        if self.factor <= 1:
            yield "factor", f"must be greater than 1, found {self.factor}"
        if not 0 <= self.resample <= 1:
            yield "resample", f"must lie between 0 and 1, found {self.resample}"


Scheduler = Asha | HyperBand | Median | Pbt
SCHEDULERS: dict[str, type] = {kind.kind: kind for kind in (Asha, HyperBand, Median, Pbt)}


def tell_without_ray(scheduler: Scheduler, where: str, faults: list[str]) -> None:
    """Say what becomes of a scheduler that only `backend: ray` would ask."""
    if isinstance(scheduler, Pbt):
        faults.append(f"{where}: scheduler: pbt needs backend: ray")
    else:
        log.warning("%s: scheduler: %s has no effect without backend: ray; all trials run to "
                    "their ends", where, scheduler.kind)


# --- algorithms: which points are tried next ---


@dataclass
class Proposer:
    """What the algorithms have in common."""

    startup: int = 10
    """Points drawn at random first."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from _at_least(self, startup=1)


class Tpe(Proposer):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), by Optuna."""

    kind: ClassVar[str] = "tpe"


class Gp(Proposer):
    """Bayesian optimisation with a Gaussian process, by Optuna."""

    kind: ClassVar[str] = "gp"


Algorithm = Tpe | Gp
ALGORITHMS: dict[str, type] = {kind.kind: kind for kind in (Tpe, Gp)}


# --- files by name, words of a command line, and sections that are checked one by one ---


def find_sweep(name: str, folder: Path) -> Path:
    """Return a sweep file given by path or, where there is none, by the name of one in `folder`.

    Raises UserError, with the nearest names, when there is neither.
    """
    path, shipped = Path(name), folder / f"{name}.yaml"
    if path.exists() and not path.is_dir():
        return path
    if shipped.is_file():
        return shipped
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    near = difflib.get_close_matches(path.stem, known, n=1)
    near += [str(file) for file in sorted(path.parent.glob("*"))
             if file.suffix in ENDINGS and difflib.get_close_matches(path.stem, [file.stem])]
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(f"--sweep {name}: no such file ({path.absolute()}), and no shipped sweep of "
                    f"this name{meant}\nshipped sweeps ({folder}): {', '.join(known)}")


def sweep_texts(schema: type) -> Texts:
    """Return a function that says whether a dotted key of a sweep file or a command line is text.

    schema: the experiment's configuration. The options of sbatch and the variables are what the
    user wrote, though an account may be 0123 and a variable FALSE.
    """
    of_trials, own = text_fields(schema), text_fields(SweepFile)

    def texts(key: str) -> bool:
        first, _, rest = key.partition(".")
        if first in ("overrides", "search"):
            return of_trials(re.sub(r"\.(grid|choice)$", "", rest))
        return first == "slurm" or own(key) or of_trials(key)

    return texts


def take_words(
    words: list[Setting], own: list[Setting], parts: dict[str, list[Setting]], schema: type,
    faults: list[str],
) -> None:
    """Put each command-line setting where it belongs; later ones replace earlier ones.

    schema: the experiment's configuration, which has all keys that are not the sweep's.
    """
    own_keys = [item.name for item in dataclasses.fields(SweepFile)]
    theirs = {key.partition(".")[0] for key in field_types(schema)}
    for word in words:
        first, _, rest = word.key.partition(".")
        if first not in own_keys:
            near = difflib.get_close_matches(first, [*sorted(theirs), *own_keys], n=1)
            if first not in theirs and near and near[0] in own_keys:
                meant = f"{near[0]}.{rest}" if rest else near[0]
                faults.append(f"{word.where}: no key {word.key}; did you mean {meant}?")
            else:
                parts["overrides"].append(word)
        elif first not in FREE:
            own.append(word)
        elif rest:
            parts[first] = [s for s in parts[first] if s.key != rest]
            parts[first].append(Setting(rest, word.value, word.where))
        elif word.value in (None, "none", {}):
            parts[first] = []
        elif isinstance(word.value, str) and first in ("scheduler", "algorithm"):
            parts[first] = [Setting(word.value, None, word.where)]
        elif isinstance(word.value, dict):
            parts[first] = [Setting(str(k), v, word.where) for k, v in word.value.items()]
        else:
            faults.append(f"{word.where}: {first}: expected a mapping, found {word.value!r}")


def choose(
    kinds: dict[str, type], settings: Iterable[Setting], section: str, faults: list[str]
) -> Any:
    """Return what `scheduler: {asha: {grace: 2}}` or `scheduler: asha` means, None for nothing.

    Options may also be set one by one (`asha.grace`); what is wrong is added to `faults`.
    """
    chosen: dict[str, list[Setting]] = {}
    for setting in settings:
        kind, _, option = setting.key.partition(".")
        where = f"{setting.where}: {section}"
        options = {option: setting.value} if option else setting.value or {}
        if kind not in kinds:
            faults.append(f"{where}: no {section} {kind!r}{hint(kind, [*kinds, 'none'])}")
        elif not isinstance(options, dict):
            faults.append(f"{where}.{kind}: expected a mapping, found {options!r}")
        else:
            chosen.setdefault(kind, []).extend(
                Setting(str(key), value, f"{where}.{kind}") for key, value in options.items()
            )
        if len(chosen) > 1:
            faults.append(f"{where}: expected one of {', '.join(kinds)}, found {', '.join(chosen)}")
            return None
    for kind, options_of in chosen.items():
        try:
            return build(kinds[kind], options_of)
        except UserError as error:
            faults.extend(str(error).splitlines())
    return None


def read_slurm(settings: list[Setting], faults: list[str]) -> dict[str, Any]:
    """Return the `slurm` section, checked as far as that goes without knowing sbatch's options."""
    for setting in settings:
        key = setting.key.replace("-", "_")
        if re.fullmatch(r"[a-z][a-z0-9_]*", key):
            faults.extend(
                f"{setting.where}: slurm.{key}: {fault}"
                for fault in _slurm_faults(key, setting.value)
            )
        else:
            faults.append(f"{setting.where}: slurm: {setting.key!r} is not an option's name")
    return {
        s.key.replace("-", "_"): _meant(s.key.replace("-", "_"), s.value) for s in settings
        if s.value is not None
    }


def _meant(key: str, value: Any) -> Any:
    """Return what stands for an option: a flag, a number to compute with, or text."""
    if key == "env" and isinstance(value, dict):
        return {name: "" if text is None else text for name, text in value.items()}
    if isinstance(value, str) and key in SLURM_COUNTS and value.isdecimal():
        return int(value)
    return SLURM_FLAGS.get(value.lower(), value) if isinstance(value, str) else value


def _slurm_faults(key: str, value: Any) -> Iterator[str]:
    """Say what cannot be put into a job's script."""
    if key in SLURM_LISTS:
        if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
            yield "expected a list of texts"
    elif key == "env":
        if not isinstance(value, dict):
            yield "expected NAME: value pairs"
        for name in value if isinstance(value, dict) else ():
            if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
                yield f"{name!r} is no variable's name"
            elif isinstance(value[name], list | dict):
                yield f"{name}: expected one value, found {value[name]!r}"
    elif value is None:
        return
    elif key in SLURM_COUNTS:
        if not re.fullmatch(r"0*[1-9]\d*", str(value)):
            yield f"expected a whole number of at least 1, found {value!r}"
    elif key == "python" and not isinstance(value, str):
        yield f"expected a text, found {value!r}"
    elif not isinstance(value, str | int | float | bool):
        yield f"expected one value, found {value!r}"
    elif isinstance(value, str) and "\n" in value:
        yield "must be one line"
    elif key not in SLURM_WORDS and str(value).lower() in TRUTHS.keys() - SLURM_FLAGS.keys():
        yield f"write true or false, found {value!r}"


def _at_least(node: object, **least: int) -> Iterator[tuple[str, str]]:
    for key, value in least.items():
        if getattr(node, key) < value:
            yield key, f"must be at least {value}, found {getattr(node, key)}"
