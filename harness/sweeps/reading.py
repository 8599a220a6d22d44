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
from harness.config.build import (
    Base,
    Setting,
    build,
    field_types,
    find_recipe,
    parse_overrides,
    read_recipe,
    settings_of,
    signature,
)
from harness.config.yaml_files import read_yaml
from harness.runs.experiment import Experiment, experiment_of
from harness.runs.run import Run
from harness.sweeps.conditions import Condition, read_condition
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

OWN_RUN_KEYS = {"run.name": "name=...", "seed": "seeds=[...]"}
"""Keys of the experiment that the sweep sets itself, and what to write instead."""


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
    parts: dict[str, list[Setting]] = {}
    for key, item in free.items():
        section = schema if key in ("overrides", "search") else object
        where = f"{path}, line {lines.get(key, 1)}"
        parts[key] = _part(key, item, where, lines, path, section, faults)
    return _assemble(
        own, parts, parse_overrides(overrides, texts), faults, near=(path.parent, Path()),
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
    complete: Callable[[Any], Any] = as_it_is,
) -> Sweep:
    """Return the sweep of one trial that a recipe is; see `read_sweep`."""
    own = [Setting("recipe", recipe, "command line")]
    parts: dict[str, list[Setting]] = {key: [] for key in FREE}
    return _assemble(
        own, parts, parse_overrides(overrides, sweep_texts(schema)), [], near=(Path(),),
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
    near: Sequence[Path],
    metrics: Sequence[str] | None,
    complete: Callable[[Any], Any],
) -> Sweep:
    """Check everything, collecting faults, and raise them together."""
    take_words(words, own, parts, schema, faults)
    head = _head(own, schema, faults)
    places = {setting.key: setting.where for setting in own}
    if metrics is not None and head.metric not in metrics:
        faults.append(f"{places.get('metric', file)}: metric: no metric {head.metric!r}"
                      f"{hint(head.metric, metrics)}")
    kinds = field_types(schema)
    dimensions = [d for setting in parts["search"]
                  for d in read_dimension(setting, faults, kinds.get(setting.key, Any))]
    _check_keys(parts, dimensions, faults)
    searched = [d for d in dimensions if d.key == RECIPE]
    faults.extend(_recipe_faults(head, places, searched))
    if not head.recipe and "recipe" not in places and not searched:
        faults.append(f"{file}: recipe: is needed, such as recipe: synthetic")
    constraints = _constraints(head, places.get("constraints", file), faults)
    sound = _check_conditions(dimensions, constraints, schema, faults)
    samples = head.samples if any(d.is_random for d in dimensions) else 1
    if samples != head.samples:
        faults.append(f"{places['samples']}: samples: {head.samples} draws, but no searched key "
                      "is random (choice, uniform, loguniform, randint)")
    scheduler = choose(SCHEDULERS, parts["scheduler"], "scheduler", faults)
    algorithm = choose(ALGORITHMS, parts["algorithm"], "algorithm", faults)
    if scheduler is not None and head.backend != "ray":
        tell_without_ray(scheduler, parts["scheduler"][0].where, faults)
    for place in [s.where for s in parts["algorithm"][:1] if algorithm is not None]:
        faults.extend(_algorithm_faults(place, head, dimensions))
    slurm = read_slurm(parts["slurm"], faults)
    name = head.name or name
    own_name = Setting("run.name", name, places.get("name", file))
    settings = [*parts["overrides"], own_name]
    wanted = {head.recipe: places["recipe"]} if head.recipe else {}
    wanted |= {str(value): d.where for d in searched for value in d.values}
    bases: dict[str, Base[Any]] = {}
    for recipe, where in wanted.items():
        with _collecting(faults):
            recipe_file = find_recipe(recipe, recipes, near=near, where=where)
            found = read_recipe(recipe_file, schema, recipes)
            bases[recipe] = Base(schema, [*found, *settings])
    base = next(iter(bases.values()), Base(schema, settings))
    folder, seed = Path(name), 0  # for faults only: other keys are still looked at
    fixed: dict[str, Any] = {}
    for recipe, one in (bases or {"": base}).items():
        with _collecting(faults):
            fixed[recipe] = one.build()
    for shared in list(fixed.values())[:1]:
        folder, seed = Path(shared.run.runs) / name, shared.seed
    seeds = [Setting("seed", s, places.get("seeds", file)) for s in head.seeds or [seed]]
    sweep = Sweep(
        name=name, file=file, bases=bases or {"": base}, seeds=tuple(seeds), samples=samples,
        space=Space(tuple(dimensions), tuple(constraints), fixed),
        metric=head.metric, mode=head.mode, backend=head.backend, scheduler=scheduler,
        algorithm=algorithm, objectives=_objectives(parts["objectives"], algorithm, faults),
        resources=head.resources, ray=head.ray, slurm=slurm, folder=folder,
        complete=complete, prepare=head.prepare, report=head.report,
    )
    # conditions look at the other keys' values
    usable = sound and len(fixed) == len(bases or {"": base})
    listed = algorithm is None and (usable or not sweep.space.is_conditional)
    listed = listed and (len(bases) == len(wanted) or not searched)
    points = list(sweep.space.points(samples)) if listed else []
    trials = _expand(sweep, points, faults)
    probes: tuple[Trial, ...] = ()
    if algorithm is not None and usable:
        probes = tuple(_expand(sweep, [*sweep.space.points(1), *sweep.space.corners()], faults))
        listed = True
        points = list(sweep.space.points(1))
    if listed and not points and not faults:
        faults.append(f"{places['constraints']}: constraints: no point of the search meets them")
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    if algorithm is not None:
        return dataclasses.replace(with_proposed(sweep), probes=probes)
    return dataclasses.replace(sweep, trials=tuple(trials))


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


def _objectives(
    settings: list[Setting], algorithm: Algorithm | None, faults: list[str]
) -> dict[str, str]:
    for setting in settings:
        if setting.value not in ("max", "min"):
            faults.append(f"{setting.where}: objectives.{setting.key}: expected max or min, found "
                          f"{setting.value!r}")
    if settings and algorithm is None:
        faults.append(f"{settings[0].where}: objectives: only an algorithm weighs them; set "
                      "algorithm: tpe")
    return {setting.key: str(setting.value) for setting in settings}


def _recipe_faults(
    head: SweepFile, places: Mapping[str, str], searched: list[Dimension]
) -> Iterator[str]:
    for dimension in searched:
        if not all(isinstance(value, str) for value in dimension.values) or dimension.is_random:
            yield f"{dimension.where}: recipe: expected {{grid: [names of recipes]}}"
        if head.recipe:
            yield (f"{places['recipe']}: recipe: is searched already ({dimension.where}); leave "
                   "one out")


def _constraints(head: SweepFile, where: str, faults: list[str]) -> list[Condition]:
    found = [read_condition(text, f"{where}: constraints", faults) for text in head.constraints]
    return [condition for condition in found if condition is not None]


def _check_conditions(
    dimensions: list[Dimension], constraints: list[Condition], schema: type, faults: list[str]
) -> bool:
    """Conditions look at keys that there are, and those of a dimension at what is chosen before.

    Returns whether all do.
    """
    before = len(faults)
    # the seed is the sweep's, and the recipe's name is known only where recipes are searched
    known = [key for key in field_types(schema) if key != "seed"]
    known += [RECIPE] if any(dimension.key == RECIPE for dimension in dimensions) else []
    for condition in [*constraints, *(d.when for d in dimensions if d.when)]:
        for name in condition.names:
            if name not in known:
                faults.append(f"{condition.where}: no key {name}{hint(name, known)}")
    for place, dimension in enumerate(dimensions):
        later = {d.key for d in dimensions[place:]}
        for name in dimension.when.names if dimension.when else ():
            if name in later:
                faults.append(f"{dimension.where}: {dimension.key}: when looks at {name}, which "
                              "must be searched above it")
    return len(faults) == before


def _algorithm_faults(
    where: str, head: SweepFile, dimensions: list[Dimension]
) -> Iterator[str]:
    if head.backend != "ray":
        yield f"{where}: algorithm: proposes points as results come in: set backend: ray"
    if not dimensions:
        yield f"{where}: algorithm: nothing is searched"
    for dimension in dimensions:
        if not dimension.is_random:
            yield (f"{dimension.where}: {dimension.key}: a grid is walked through, an algorithm "
                   "chooses: write choice")


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
