"""Sweeps: one YAML file becomes a list of trials, each with its configuration and run folder.

    trials = points of the search (see `points`) x seeds

The file's own keys are the fields of `SweepFile`; everything below `search` and `overrides` is a
key of the experiment's configuration. A trial is named by the signature of its resolved
configuration, so the same point has the same folder whichever backend runs it.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError
from harness.config.build import Base, build
from harness.config.fields import field_types
from harness.config.recipes import named_recipe, recipe_stem
from harness.config.sources import Setting, parse_overrides, settings_of
from harness.config.values import signature
from harness.config.yaml_files import read_yaml
from harness.runs.experiment import Experiment, experiment_of
from harness.runs.run import Run
from harness.sweeps import rules
from harness.sweeps.dimensions import Dimension, hint, read_dimension
from harness.sweeps.keys import (
    ALGORITHMS,
    FREE,
    SCHEDULERS,
    Algorithm,
    Allocation,
    Pbt,
    Resources,
    Scheduler,
    SweepFile,
    choose,
    read_slurm,
    sweep_texts,
    take_words,
    tell_without_ray,
)
from harness.sweeps.space import RECIPE, Space, read_points

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read and found without fault."""

    name: str
    file: str
    """The sweep file or the recipe it comes from, as the user would find it again."""
    bases: Mapping[str, Base[Any]]
    """Settings that all trials share, by recipe; more than one where recipes are searched."""
    space: Space
    seeds: tuple[Setting, ...]
    samples: int
    metric: str
    mode: Literal["max", "min"]
    backend: Literal["array", "ray"]
    scheduler: Scheduler | None
    algorithm: Algorithm | None
    resources: Resources
    ray: Allocation
    slurm: dict[str, Any]
    folder: Path
    """runs/<name>."""
    complete: Callable[[Any], Any]
    """What a checked configuration still goes through before it is signed."""
    objectives: Mapping[str, str] = field(default_factory=dict)
    """What an algorithm weighs against the metric: `max` or `min` by key."""
    trials: tuple["Trial", ...] = ()
    """Those that are known: an algorithm proposes its points one after the other."""
    to_propose: int = 0
    """How many points an algorithm still has to propose."""
    probes: tuple["Trial", ...] = ()
    """Trials that an algorithm may propose: they were checked, and are not run."""
    prepare: bool = False
    report: bool = False
    first: int | None = None
    """How many of the trials are dealt with now; None: all."""
    code: Path | None = None
    """The frozen code of its jobs; None: they run what is installed."""

    @property
    def base(self) -> Base[Any]:
        """The settings of the first recipe."""
        return next(iter(self.bases.values()))

    @property
    def experiment(self) -> Experiment:
        """What the experiment tells of itself."""
        return experiment_of(self.base.schema)

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


def as_it_is(config: Any) -> Any:
    """Return a configuration that needs no completion."""
    return config


@dataclass(frozen=True)
class _Asked:
    """A sweep file, or a recipe in its place, before it is checked."""

    name: str
    """What the sweep is called unless `own` says so."""
    file: str
    own: list[Setting]
    parts: dict[str, list[Setting]]
    """The entries of the mappings in `FREE`."""
    near: tuple[Path, ...]
    """From where a recipe's path may be meant."""
    schema: type
    recipes: Path
    metrics: Sequence[str] | None
    complete: Callable[[Any], Any]

    def sets(self, key: str) -> bool:
        return any(setting.key == key for setting in self.own)

    def place(self, key: str) -> str:
        """Return where one of the sweep's own keys was set: the file, if nowhere."""
        return {setting.key: setting.where for setting in self.own}.get(key, self.file)


def read_sweep(
    path: Path,
    *,
    schema: type,
    recipes: Path,
    overrides: Iterable[str] = (),
    metrics: Sequence[str] | None = None,
    complete: Callable[[Any], Any] = as_it_is,
) -> Sweep:
    """Read and check a sweep file, with `key=value` words of a command line on top.

    schema: the experiment's configuration; it must have the keys seed, run.runs and run.name.
    metrics: what trials may be ranked by; None: anything. complete: called with every trial's
    configuration, returns the one that is signed and run. A word whose first part is a key of
    `SweepFile` changes the sweep (`resources.cpus=4`), any other the configuration of every trial.
    Raises UserError with every fault of every trial at once.
    """
    texts = sweep_texts(schema)
    value, lines = read_yaml(path, texts)
    free = {key: value.pop(key, None) for key in FREE}
    faults: list[str] = []
    own = settings_of(value, lines, path, SweepFile)
    parts = {
        key: _part(key, item, (path, lines),
                   schema if key in ("overrides", "search") else object, faults)
        for key, item in free.items()
    }
    asked = _Asked(
        path.stem, str(path), own, parts, (path.parent, Path()), schema, recipes, metrics, complete
    )
    return _assemble(asked, parse_overrides(overrides, texts), faults)


def recipe_sweep(
    recipe: str,
    *,
    schema: type,
    recipes: Path,
    overrides: Iterable[str] = (),
    metrics: Sequence[str] | None = None,
    complete: Callable[[Any], Any] = as_it_is,
) -> Sweep:
    """Return the sweep of one trial that a recipe is; see `read_sweep`."""
    asked = _Asked(
        recipe_stem(recipe), recipe, [Setting("recipe", recipe, "command line")],
        {key: [] for key in FREE}, (Path(),), schema, recipes, metrics, complete,
    )
    return _assemble(asked, parse_overrides(overrides, sweep_texts(schema)), [])


def expand(sweep: Sweep) -> list[Trial]:
    """Return the trials in order, those that are dealt with now.

    The order is that of grid points, draws within a point, seeds within a draw.
    """
    return list(sweep.trials[: sweep.first])


def make_trial(sweep: Sweep, index: int, point: Mapping[str, Any], seed: Setting) -> Trial:
    """Return the trial of a point. Raises UserError when its configuration has faults."""
    places = {dimension.key: dimension.where for dimension in sweep.space.dimensions}
    searched = [
        Setting(key, value, places.get(key, "search")) for key, value in point.items()
        if key != RECIPE
    ]
    base = sweep.bases[point[RECIPE]] if RECIPE in point else sweep.base
    config = sweep.complete(base.build([*searched, seed]))
    name = signature(config)
    if isinstance(sweep.scheduler, Pbt):
        name = f"pbt-{name}"  # its settings change on the way: it is no run of this configuration
    return Trial(index, dict(point), config.seed, config, name, Run(sweep.folder / name))


def _part(
    key: str, value: Any, file: tuple[Path, Mapping[str, int]], schema: type, faults: list[str]
) -> list[Setting]:
    """Return the entries of one of the free mappings, flat; `file`: its path and keys' lines."""
    path, lines = file
    where = f"{path}, line {lines.get(key, 1)}"
    if value is None or value == "none":
        return []
    if isinstance(value, str) and key in ("scheduler", "algorithm"):
        return [Setting(value, None, where)]
    if not isinstance(value, dict):
        faults.append(f"{where}: {key}: expected a mapping, found {value!r}")
        return []
    if dataclasses.is_dataclass(schema):
        return settings_of(value, lines, path, schema, f"{key}.")
    return [
        Setting(str(name), item, f"{path}, line {lines.get(f'{key}.{name}', 1)}")
        for name, item in value.items()
    ]


def _assemble(asked: _Asked, words: list[Setting], faults: list[str]) -> Sweep:
    """Check everything, collecting faults, and raise them together."""
    parts = asked.parts
    take_words(words, asked.own, parts, asked.schema, faults)
    head = _head(asked.own, asked.schema, faults)
    if asked.metrics is not None and head.metric not in asked.metrics:
        faults.append(f"{asked.place('metric')}: metric: no metric {head.metric!r}"
                      f"{hint(head.metric, asked.metrics)}")
    space, sound = _space(asked, head, faults)
    samples = head.samples if space.is_random else 1
    if samples != head.samples:
        faults.append(f"{asked.place('samples')}: samples: {head.samples} draws, but no searched "
                      "key is random (choice, uniform, loguniform, randint)")
    scheduler = choose(SCHEDULERS, parts["scheduler"], "scheduler", faults)
    algorithm = choose(ALGORITHMS, parts["algorithm"], "algorithm", faults)
    if scheduler is not None and head.backend != "ray":
        tell_without_ray(scheduler, parts["scheduler"][0].where, faults)
    for place in [s.where for s in parts["algorithm"][:1] if algorithm is not None]:
        faults.extend(rules.algorithm_faults(place, head, space.dimensions))
    slurm = read_slurm(parts["slurm"], faults)
    name = head.name or asked.name
    bases, are_all = _bases(asked, head, space.dimensions, faults)
    folder, seed = Path(name), 0  # for faults only: other keys are still looked at
    fixed: dict[str, Any] = {}
    for recipe, base in bases.items():
        with _collecting(faults):
            fixed[recipe] = base.build()
    for shared in list(fixed.values())[:1]:
        folder, seed = Path(shared.run.runs) / name, shared.seed
    sweep = Sweep(
        name=name, file=asked.file, bases=bases, samples=samples,
        seeds=tuple(Setting("seed", s, asked.place("seeds")) for s in head.seeds or [seed]),
        space=dataclasses.replace(space, fixed=fixed),
        metric=head.metric, mode=head.mode, backend=head.backend,
        scheduler=scheduler, algorithm=algorithm,
        objectives=rules.read_objectives(parts["objectives"], algorithm, faults),
        resources=head.resources, ray=head.ray, slurm=slurm, folder=folder,
        complete=asked.complete if are_all else as_it_is, prepare=head.prepare, report=head.report,
    )
    can_choose = are_all or all(d.key != RECIPE for d in space.dimensions)
    usable = sound and len(fixed) == len(bases)  # conditions look at the other keys' values
    if algorithm is None:
        usable = usable or not space.is_conditional
    return _with_trials(sweep, usable and can_choose, asked.place("constraints"), faults)


def _space(asked: _Asked, head: SweepFile, faults: list[str]) -> tuple[Space, bool]:
    """Return what is searched, and whether all conditions can be looked at."""
    kinds = field_types(asked.schema)
    dimensions = [d for setting in asked.parts["search"]
                  for d in read_dimension(setting, faults, kinds.get(setting.key, Any))]
    rules.check_keys(asked.parts, dimensions, faults)
    searched = [d for d in dimensions if d.key == RECIPE]
    faults.extend(rules.recipe_faults(head, asked.place(RECIPE), searched))
    if not head.recipe and not asked.sets(RECIPE) and not searched:
        faults.append(f"{asked.file}: recipe: is needed, such as recipe: synthetic")
    constraints = rules.read_constraints(head, asked.place("constraints"), faults)
    sound = rules.check_conditions(dimensions, constraints, asked.schema, faults)
    return Space(tuple(dimensions), tuple(constraints), {}), sound


def _bases(
    asked: _Asked, head: SweepFile, dimensions: Sequence[Dimension], faults: list[str]
) -> tuple[dict[str, Base[Any]], bool]:
    """Return the settings that trials share by recipe, and whether all recipes were found.

    Without any the defaults are there, so that other keys can still be looked at.
    """
    own_name = Setting("run.name", head.name or asked.name, asked.place("name"))
    settings = [*asked.parts["overrides"], own_name]
    wanted = {head.recipe: asked.place(RECIPE)} if head.recipe else {}
    wanted |= {str(value): d.where for d in dimensions if d.key == RECIPE for value in d.values}
    bases: dict[str, Base[Any]] = {}
    for recipe, where in wanted.items():
        with _collecting(faults):
            found = named_recipe(
                recipe, asked.schema, asked.recipes, near=asked.near, where=where
            )
            bases[recipe] = Base(asked.schema, [*found, *settings])
    return bases or {"": Base(asked.schema, settings)}, len(bases) == len(wanted)


def _with_trials(sweep: Sweep, usable: bool, where: str, faults: list[str]) -> Sweep:
    """Return the sweep with its trials, or with those that its algorithm has proposed and may.

    usable: whether its points can be listed. where: the place of the constraints. Raises UserError
    with all faults.
    """
    searches = sweep.algorithm is not None
    points = list(sweep.space.points(1 if searches else sweep.samples)) if usable else []
    corners = sweep.space.corners() if searches and usable else ()
    trials = tuple(_expand(sweep, [*points, *corners], faults))
    if not points and not faults:
        faults.append(f"{where}: constraints: no point of the search meets them")
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    if searches:
        return dataclasses.replace(with_proposed(sweep), probes=trials)
    return dataclasses.replace(sweep, trials=trials)


def with_proposed(sweep: Sweep) -> Sweep:
    """Return the sweep with the trials of the points that its algorithm has proposed so far.

    Raises UserError when one of them has faults, as the sweep file may have been edited since.
    """
    points = [point for point in read_points(sweep.folder) if sweep.space.holds(point)]
    faults: list[str] = []
    trials = _expand(sweep, points, faults)
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    every = sweep.space.every()
    most = sweep.samples if every is None else min(sweep.samples, len(every))
    left = max(0, most - len(points))
    return dataclasses.replace(sweep, trials=tuple(trials), to_propose=left)


def _head(own: list[Setting], schema: type, faults: list[str]) -> SweepFile:
    """Return the sweep's own keys; those with faults keep their defaults, so that the rest of the
    file can still be checked."""
    good = [Setting("metric", experiment_of(schema).metric, "default")]
    defaults = Base(SweepFile, [])
    for setting in own:
        with _collecting(faults):
            defaults.build([setting])
            good.append(setting)
    return build(SweepFile, good)


@contextmanager
def _collecting(faults: list[str]) -> Iterator[None]:
    """Add what a UserError says to `faults` and go on after the body."""
    try:
        yield
    except UserError as error:
        faults.extend(str(error).splitlines())


# --- expanding ---


def _expand(
    sweep: Sweep, points: Iterable[Mapping[str, Any]], faults: list[str]
) -> list[Trial]:
    """Build every trial; what is wrong with any of them is added to `faults`."""
    trials: dict[str, Trial] = {}
    for point in points:
        for seed in sweep.seeds:
            with _collecting(faults):
                trial = make_trial(sweep, len(trials), point, seed)
                twin = trials.setdefault(trial.signature, trial)
                if twin is not trial:
                    _tell_duplicate(sweep, twin, trial, faults)
    return list(trials.values())


def _tell_duplicate(sweep: Sweep, first: Trial, second: Trial, faults: list[str]) -> None:
    """A grid that names one run twice is a mistake; draws may fall on the same point by chance."""
    if sweep.space.is_random:  # and the corners of a search may coincide
        log.info("drawn twice, run once: %s", first.title)
        return
    dimensions = sweep.space.dimensions
    where = dimensions[0].where if dimensions else sweep.file
    for dimension in dimensions:
        if dimension.key not in first.point or dimension.key not in second.point:
            continue
        if first.point[dimension.key] != second.point[dimension.key] or len(
            {json.dumps(v) for v in dimension.values}
        ) < len(dimension.values):
            where = f"{dimension.where}: {dimension.key}"
    faults.append(f"{where}: two trials are one and the same run: {first.title} and {second.title}")


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
