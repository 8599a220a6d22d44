"""Sweeps: one YAML file becomes a list of trials, each with its configuration and run folder.

    trials = grid x samples of the random dimensions x seeds

The file's own keys are the fields of `SweepFile`; everything below `search` and `overrides` is a
key of the experiment's configuration. A trial is named by the signature of its resolved
configuration, so the same point has the same folder whichever backend runs it.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from harness.config import (
    Base,
    Setting,
    build,
    find_recipe,
    parse_overrides,
    read_recipe,
    read_yaml,
    settings_of,
    signature,
)
from harness.dimensions import Dimension, hint, read_dimension
from harness.errors import UserError
from harness.runs import Run
from harness.units import gigabytes, minutes

log = logging.getLogger(__name__)

FREE = ("overrides", "search", "scheduler", "slurm")
"""Keys of a sweep file that hold mappings of the user's own keys."""
OWN_RUN_KEYS = {"run.name": "name=...", "seed": "seeds=[...]"}
"""Keys of the experiment that the sweep sets itself, and what to write instead."""


@dataclass
class Resources:
    """What one trial gets."""

    nodes: int = 1
    gpus: int = 0
    """GPUs on each node."""
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
        if not minutes(self.time):
            yield "time", f"{self.time!r} is not a time; write it as 90m, 4h or 1d12h"
        if self.memory is not None and not gigabytes(self.memory):
            yield "memory", f"{self.memory!r} is not a size; write it as 500MB or 32GB"

    @property
    def ranks_per_node(self) -> int:
        return self.tasks if self.tasks is not None else max(1, self.gpus)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass
class Allocation:
    """Backend ray only: the one job in which the trials run."""

    nodes: int = 1
    trials_per_node: int = 1
    """Trials that run side by side on a node; each gets the sweep's `resources`."""

    def faults(self) -> Iterator[tuple[str, str]]:
        for key in ("nodes", "trials_per_node"):
            if getattr(self, key) < 1:
                yield key, f"must be at least 1, found {getattr(self, key)}"


@dataclass
class SweepFile:
    """The keys of a sweep file."""

    name: str = ""
    """Folder of its runs; empty: the file's name."""
    recipe: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values that all trials share and that differ from the recipe's."""
    search: dict[str, Any] = field(default_factory=dict)
    """What differs between trials: `key: {grid: [...]}`, or choice, uniform, ..."""
    seeds: list[int] | None = None
    """Every point is run once per seed; null: with the recipe's."""
    samples: int = 1
    """Draws of the random dimensions."""
    metric: str = "validation.mAP"
    """What ranks the trials."""
    mode: Literal["max", "min"] = "max"
    backend: Literal["array", "ray"] = "array"
    """array: one job per trial; ray: Ray Tune inside one allocation."""
    prepare: bool = False
    """On SLURM, backend array: a job of its own makes what trials share before they start."""
    report: bool = False
    """Likewise: a job after the last trial writes report.txt."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Backend ray only, `asha: {grace: 2, reduction: 3}`: which trials are ended early."""
    resources: Resources = field(default_factory=Resources)
    ray: Allocation = field(default_factory=Allocation)
    slurm: dict[str, Any] = field(default_factory=dict)
    """Anything that sbatch takes, and setup, python, srun_args, env."""

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.name and not re.fullmatch(r"[A-Za-z0-9][\w.\-]*", self.name):
            yield "name", f"{self.name!r} must be a plain folder name (letters, digits, . _ -)"
        if self.samples < 1:
            yield "samples", f"must be at least 1, found {self.samples}"
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            yield "seeds", f"{self.seeds} has a seed twice"
        if self.seeds == []:
            yield "seeds", "is empty; leave it out to use the recipe's seed"


@dataclass(frozen=True)
class Scheduler:
    """How Ray Tune ends trials early: `none`, or `asha` with its options."""

    kind: Literal["none", "asha"] = "none"
    grace: int = 1
    """Epochs that every trial may run."""
    reduction: int = 3
    """At each rung one in so many trials goes on."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read and found without fault."""

    name: str
    file: str
    """The sweep file or the recipe it comes from, as the user would find it again."""
    base: Base[Any]
    """Settings that all trials share."""
    dimensions: tuple[Dimension, ...]
    seeds: tuple[Setting, ...]
    samples: int
    metric: str
    mode: Literal["max", "min"]
    backend: Literal["array", "ray"]
    scheduler: Scheduler
    resources: Resources
    ray: Allocation
    slurm: dict[str, Any]
    folder: Path
    """runs/<name>."""
    complete: Callable[[Any], Any]
    """What a checked configuration still goes through before it is signed."""
    trials: tuple["Trial", ...] = ()
    prepare: bool = False
    report: bool = False
    first: int | None = None
    """How many of the trials are dealt with now; None: all."""
    code: Path | None = None
    """The frozen code of its jobs; None: they run what is installed."""

    @property
    def selected_on(self) -> str:
        """The label of everything that is ranked by this sweep's metric."""
        part = "validation" if self.metric.startswith("validation.") else "test"
        return f"selected on {part}"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    index: int
    point: dict[str, Any]
    """The searched keys' values."""
    seed: int
    config: Any
    signature: str
    run: Run

    @property
    def title(self) -> str:
        """The point in few words: the last part of each key is enough for a reader."""
        words = [f"{key.split('.')[-1]}={_plain(value)}" for key, value in self.point.items()]
        return " ".join([*words, f"seed={self.seed}"])


# --- reading ---


def read_sweep(
    path: Path,
    *,
    schema: type,
    recipes: Path,
    overrides: Iterable[str] = (),
    metrics: Sequence[str] | None = None,
    complete: Callable[[Any], Any] = lambda config: config,
) -> Sweep:
    """Read and check a sweep file, with `key=value` words of a command line on top.

    schema: the experiment's configuration; it must have the keys seed, run.runs and run.name.
    metrics: what trials may be ranked by; None: anything. complete: called with every trial's
    configuration, returns the one that is signed and run. A word whose first part is a key of
    `SweepFile` changes the sweep (`resources.cpus=4`), any other the configuration of every trial.
    Raises UserError with every fault of every trial at once.
    """
    value, lines = read_yaml(path)
    free = {key: value.pop(key, None) for key in FREE}
    faults: list[str] = []
    own = settings_of(value, lines, path, SweepFile)
    parts: dict[str, list[Setting]] = {}
    for key, item in free.items():
        section = schema if key in ("overrides", "search") else object
        where = f"{path}, line {lines.get(key, 1)}"
        parts[key] = _part(key, item, where, lines, path, section, faults)
    return _assemble(
        own, parts, parse_overrides(overrides), faults,
        name=path.stem, file=str(path), schema=schema, recipes=recipes, metrics=metrics,
        complete=complete,
    )


def recipe_sweep(
    recipe: str,
    *,
    schema: type,
    recipes: Path,
    overrides: Iterable[str] = (),
    metrics: Sequence[str] | None = None,
    complete: Callable[[Any], Any] = lambda config: config,
) -> Sweep:
    """Return the sweep of one trial that a recipe is; see `read_sweep`."""
    own = [Setting("recipe", recipe, "command line")]
    parts: dict[str, list[Setting]] = {key: [] for key in FREE}
    return _assemble(
        own, parts, parse_overrides(overrides), [],
        name=Path(recipe).stem, file=recipe, schema=schema, recipes=recipes, metrics=metrics,
        complete=complete,
    )


def expand(sweep: Sweep) -> list[Trial]:
    """Return the trials in order, those that are dealt with now.

    The order is that of grid points, draws within a point, seeds within a draw.
    """
    return list(sweep.trials[: sweep.first])


def make_trial(sweep: Sweep, index: int, point: Mapping[str, Any], seed: Setting) -> Trial:
    """Return the trial of a point. Raises UserError when its configuration has faults."""
    places = {dimension.key: dimension.where for dimension in sweep.dimensions}
    searched = [Setting(key, value, places.get(key, "search")) for key, value in point.items()]
    config = sweep.complete(sweep.base.build([*searched, seed]))
    name = signature(config)
    return Trial(index, dict(point), config.seed, config, name, Run(sweep.folder / name))


def _part(
    key: str,
    value: Any,
    where: str,
    lines: Mapping[str, int],
    path: Path,
    schema: type,
    faults: list[str],
) -> list[Setting]:
    """Return the entries of one of the free mappings, flat."""
    if value is None or value == "none":
        return []
    if not isinstance(value, dict):
        faults.append(f"{where}: {key}: expected a mapping, found {value!r}")
        return []
    if dataclasses.is_dataclass(schema):
        return settings_of(value, lines, path, schema, f"{key}.")
    return [
        Setting(str(name), item, f"{path}, line {lines.get(f'{key}.{name}', 1)}")
        for name, item in value.items()
    ]


def _assemble(
    own: list[Setting],
    parts: dict[str, list[Setting]],
    words: list[Setting],
    faults: list[str],
    *,
    name: str,
    file: str,
    schema: type,
    recipes: Path,
    metrics: Sequence[str] | None,
    complete: Callable[[Any], Any],
) -> Sweep:
    """Check everything, collecting faults, and raise them together."""
    _take_words(words, own, parts, faults)
    head = _head(own, faults)
    places = {setting.key: setting.where for setting in own}
    if not head.recipe and "recipe" not in places:
        faults.append(f"{file}: recipe: is needed, such as recipe: synthetic")
    if metrics is not None and head.metric not in metrics:
        faults.append(f"{places.get('metric', file)}: metric: no metric {head.metric!r}"
                      f"{hint(head.metric, metrics)}")
    dimensions = [d for setting in parts["search"] for d in read_dimension(setting, faults)]
    _check_keys(parts, dimensions, faults)
    samples = head.samples if any(d.is_random for d in dimensions) else 1
    if samples != head.samples:
        faults.append(f"{places['samples']}: samples: {head.samples} draws, but no searched key "
                      "is random (choice, uniform, loguniform, randint)")
    scheduler = _scheduler(parts["scheduler"], faults)
    slurm = _slurm(parts["slurm"], faults)
    name = head.name or name
    own_name = Setting("run.name", name, places.get("name", file))
    settings = [*parts["overrides"], own_name]
    with _collecting(faults):
        if head.recipe:
            recipe = find_recipe(head.recipe, recipes, where=places["recipe"])
            settings = [*read_recipe(recipe, schema), *settings]
    base: Base[Any] = Base(schema, settings)
    folder, seed = Path(name), 0  # these are for faults only: other keys are still looked at
    with _collecting(faults):
        shared = base.build()
        folder, seed = Path(shared.run.runs) / name, shared.seed
    seeds = [Setting("seed", s, places.get("seeds", file)) for s in head.seeds or [seed]]
    sweep = Sweep(
        name=name, file=file, base=base, dimensions=tuple(dimensions), seeds=tuple(seeds),
        samples=samples,
        metric=head.metric, mode=head.mode, backend=head.backend, scheduler=scheduler,
        resources=head.resources, ray=head.ray, slurm=slurm, folder=folder,
        complete=complete, prepare=head.prepare, report=head.report,
    )
    trials = _expand(sweep, faults)
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    return dataclasses.replace(sweep, trials=tuple(trials))


def _head(own: list[Setting], faults: list[str]) -> SweepFile:
    """Return the sweep's own keys; those with faults keep their defaults, so that the rest of the
    file can still be checked."""
    good, defaults = [], Base(SweepFile, [])
    for setting in own:
        with _collecting(faults):
            defaults.build([setting])
            good.append(setting)
    return build(SweepFile, good)


def _take_words(
    words: list[Setting], own: list[Setting], parts: dict[str, list[Setting]], faults: list[str]
) -> None:
    """Put each command-line setting where it belongs; later ones replace earlier ones."""
    own_keys = {item.name for item in dataclasses.fields(SweepFile)}
    for word in words:
        first, _, rest = word.key.partition(".")
        if first not in own_keys:
            parts["overrides"].append(word)
        elif first not in FREE:
            own.append(word)
        elif rest:
            parts[first] = [s for s in parts[first] if s.key != rest]
            parts[first].append(Setting(rest, word.value, word.where))
        elif word.value in (None, "none", {}):
            parts[first] = []
        elif isinstance(word.value, dict):
            parts[first] = [Setting(str(k), v, word.where) for k, v in word.value.items()]
        else:
            faults.append(f"{word.where}: {first}: expected a mapping, found {word.value!r}")


def _check_keys(
    parts: dict[str, list[Setting]], dimensions: list[Dimension], faults: list[str]
) -> None:
    """No key may be set in two places, nor one that the sweep itself decides."""
    searched = {d.key: d.where for d in dimensions}
    for setting in parts["overrides"]:
        if setting.key in searched:
            faults.append(f"{setting.where}: {setting.key} is searched already "
                          f"({searched[setting.key]})")
    for setting in [*parts["overrides"], *parts["search"]]:
        if setting.key == "run.name" or (setting.key == "seed" and setting in parts["search"]):
            faults.append(f"{setting.where}: {setting.key} is the sweep's own to set; write "
                          f"{OWN_RUN_KEYS[setting.key]}")


def _scheduler(settings: list[Setting], faults: list[str]) -> Scheduler:
    if not settings:
        return Scheduler()
    first, *more = settings
    if first.key != "asha" or more:
        found = ", ".join(s.key for s in settings)
        faults.append(f"{first.where}: scheduler: expected asha or none, found {found}")
        return Scheduler()
    options = first.value or {}
    known = {"grace": 1, "reduction": 2}
    if not isinstance(options, dict):
        faults.append(f"{first.where}: scheduler.asha: expected a mapping, found {options!r}")
        return Scheduler()
    for key, value in options.items():
        if key not in known:
            faults.append(f"{first.where}: scheduler.asha: no key {key}{hint(key, list(known))}")
        elif type(value) is not int or value < known[key]:
            faults.append(f"{first.where}: scheduler.asha.{key}: expected a whole number, at "
                          f"least {known[key]}, found {value!r}")
    return Scheduler("asha", **{k: v for k, v in options.items() if k in known})


def _slurm(settings: list[Setting], faults: list[str]) -> dict[str, Any]:
    """Check the `slurm` section as far as that goes without knowing sbatch's options."""
    for setting in settings:
        key, value = setting.key.replace("-", "_"), setting.value
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
            faults.append(f"{setting.where}: slurm: {setting.key!r} is not an option's name")
        elif key in ("setup", "srun_args"):
            if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
                faults.append(f"{setting.where}: slurm.{key}: expected a list of texts")
        elif key == "env":
            if not isinstance(value, dict):
                faults.append(f"{setting.where}: slurm.env: expected NAME: value pairs")
            for name in value if isinstance(value, dict) else ():
                if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
                    faults.append(f"{setting.where}: slurm.env: {name!r} is no variable's name")
        elif not isinstance(value, str | int | float | bool | None):
            faults.append(f"{setting.where}: slurm.{key}: expected one value, found {value!r}")
        elif isinstance(value, str) and "\n" in value:
            faults.append(f"{setting.where}: slurm.{key}: must be one line")
    return {s.key.replace("-", "_"): s.value for s in settings if s.value is not None}


@contextmanager
def _collecting(faults: list[str]) -> Iterator[None]:
    """Add what a UserError says to `faults` and go on after the body."""
    try:
        yield
    except UserError as error:
        faults.extend(str(error).splitlines())


# --- expanding ---


def _points(sweep: Sweep) -> Iterator[dict[str, Any]]:
    grid = [d for d in sweep.dimensions if not d.is_random]
    drawn = [d for d in sweep.dimensions if d.is_random]
    for values in product(*(d.values for d in grid)):
        for n in range(sweep.samples):
            point = dict(zip((d.key for d in grid), values, strict=True))
            point.update({d.key: d.draw(n) for d in drawn})
            yield {d.key: point[d.key] for d in sweep.dimensions}


def _expand(sweep: Sweep, faults: list[str]) -> list[Trial]:
    """Build every trial; what is wrong with any of them is added to `faults`."""
    trials: dict[str, Trial] = {}
    for point in _points(sweep):
        for seed in sweep.seeds:
            with _collecting(faults):
                trial = make_trial(sweep, len(trials), point, seed)
                twin = trials.setdefault(trial.signature, trial)
                if twin is not trial:
                    _tell_duplicate(sweep, twin, trial, faults)
    return list(trials.values())


def _tell_duplicate(sweep: Sweep, first: Trial, second: Trial, faults: list[str]) -> None:
    """A grid that names one run twice is a mistake; draws may fall on the same point by chance."""
    if any(d.is_random for d in sweep.dimensions):
        log.info("drawn twice, run once: %s", first.title)
        return
    where = sweep.dimensions[0].where if sweep.dimensions else sweep.file
    for dimension in sweep.dimensions:
        if first.point[dimension.key] != second.point[dimension.key] or len(
            {json.dumps(v) for v in dimension.values}
        ) < len(dimension.values):
            where = f"{dimension.where}: {dimension.key}"
    faults.append(f"{where}: two trials are one and the same run: {first.title} and {second.title}")


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
