"""Sweeps: one YAML file becomes a list of trials, each with its configuration and run folder.

    trials = points of the search (see `points`) x seeds

The file's own keys are the fields of `SweepFile`; everything below `search` and `overrides` is a
key of the experiment's configuration. A trial is named by the signature of its resolved
configuration, so the same point has the same folder whichever backend runs it.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.base.errors import UserError, collecting, hint
from harness.config.build import Base, build
from harness.config.fields import field_types
from harness.config.recipes import named_recipe, recipe_stem
from harness.config.signature import signature
from harness.config.sources import Setting, parse_overrides, settings_of
from harness.config.yaml_files import read_yaml
from harness.runs.experiment import Experiment, experiment_of
from harness.runs.run import Run
from harness.sweeps import keys, rules
from harness.sweeps.conditions import read_condition
from harness.sweeps.dimensions import Dimension, read_dimension
from harness.sweeps.keys import FREE, Pbt, SweepFile
from harness.sweeps.space import RECIPE, Point, Space, read_points

log = logging.getLogger(__name__)

MOST_TRIALS = 100_000
"""A larger sweep would take minutes to read, each time."""


@dataclass(frozen=True)
class Sweep:
    """A sweep whose file was read and has no fault."""

    name: str
    file: str
    """The sweep file or the recipe, as the user gave it."""
    bases: Mapping[str, Base[Any]]
    """Settings that all trials share, by recipe; more than one where recipes are searched."""
    space: Space
    seeds: tuple[Setting, ...]
    samples: int
    metric: str
    mode: Literal["max", "min"]
    backend: Literal["array", "ray"]
    scheduler: keys.Scheduler | None
    algorithm: keys.Algorithm | None
    resources: keys.Resources
    ray: keys.Allocation
    slurm: dict[str, Any]
    folder: Path
    """runs/<name>."""
    complete: Callable[[Any], Any]
    """Called with each checked configuration; returns the one that is signed and run."""
    objectives: Mapping[str, str] = field(default_factory=dict)
    """Further objectives of an algorithm: `max` or `min` by key."""
    trials: tuple["Trial", ...] = ()
    """The known trials: an algorithm proposes its points one after the other."""
    to_propose: int = 0
    """How many points an algorithm still has to propose."""
    probes: tuple["Trial", ...] = ()
    """Trials that an algorithm may propose: checked, never run."""
    prepare: bool = False
    report: bool = False
    first: int | None = None
    """Only this many trials are launched or shown now; None: all."""
    code: Path | None = None
    """The frozen code of its jobs; None: they run what is installed."""
    words: tuple[str, ...] = ()
    """The recipe and settings of a sweep without a file, as they were typed."""
    origin: str = ""
    """The folder of the sweep file, or of the recipes where a recipe is the sweep; tells sweeps of
    one name apart that share a folder of runs."""

    @property
    def base(self) -> Base[Any]:
        """The settings of the first recipe."""
        return next(iter(self.bases.values()))

    @property
    def experiment(self) -> Experiment:
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
    point: Point
    seed: int
    config: Any
    signature: str
    run: Run

    @property
    def title(self) -> str:
        """The point in short: the last part of each key with its value, and the seed."""
        words = []
        for key, value in [*self.point.items(), ("seed", self.seed)]:
            text = f"{value:g}" if isinstance(value, float) else value
            words.append(f"{key.split('.')[-1]}={text}")
        return " ".join(words)


# --- reading ---


def as_it_is(config: Any) -> Any:
    """Return a configuration that needs no completion."""
    return config


@dataclass(frozen=True)
class _Draft:
    """A sweep file, or a recipe in its place, before it is checked."""

    name: str
    """The sweep's name where `own` sets none."""
    file: str
    own: list[Setting]
    parts: dict[str, list[Setting]]
    """The entries of the mappings in `FREE`."""
    near: tuple[Path, ...]
    """Folders from which the path of a recipe may start."""
    schema: type
    recipes: Path
    metrics: Sequence[str] | None
    complete: Callable[[Any], Any]

    def place(self, key: str) -> str:
        """Return where one of the sweep's own keys was set: the file, if nowhere."""
        return {setting.key: setting.where for setting in self.own}.get(key, self.file)


def read_sweep(
    source: Path | str, *, schema: type, recipes: Path, overrides: Iterable[str] = (),
    metrics: Sequence[str] | None = None, complete: Callable[[Any], Any] = as_it_is,
    name: str | None = None,
) -> Sweep:
    """Read and check a sweep file (a path) or a recipe (a string), which is a sweep of one trial.

    name: makes a recipe a sweep of this name, whose `overrides` may give several values (see
    `grid_words`), and several recipes joined by commas.

    schema: the experiment's configuration; it must have the keys seed, run.runs and run.name.
    overrides: `key=value` settings of the command line. If their first part is a key of
    `SweepFile`, they change the sweep (`resources.cpus=4`), otherwise the configuration of every
    trial. metrics: what trials may be ranked by; None: anything. complete: called with every
    trial's configuration, returns the one that is signed and run.
    Raises UserError with every fault of every trial at once.
    """
    texts = keys.sweep_texts(schema)
    faults: list[str] = []
    words = (source, *overrides) if isinstance(source, str) and name is not None else ()
    if isinstance(source, str):
        own, parts = _own_words(source, name)
        name = name or recipe_stem(source)
        overrides = keys.grid_words(overrides, schema) if words else overrides
    else:
        value, lines = read_yaml(source, texts)
        parts = {key: _part(key, value.pop(key, None), (source, lines), schema, faults)
                 for key in FREE}
        name, own = source.stem, settings_of(value, lines, source, SweepFile)
    near = (Path(),) if isinstance(source, str) else (source.parent, Path())
    keys.sort_settings(parse_overrides(overrides, texts), own, parts, schema, faults)
    draft = _Draft(name, str(source), own, parts, near, schema, recipes, metrics, complete)
    origin = recipes if isinstance(source, str) else source.parent
    read = _checked(draft, faults)
    return dataclasses.replace(read, origin=str(origin.resolve()), words=words)


def _own_words(recipe: str, name: str | None) -> tuple[list[Setting], dict[str, list[Setting]]]:
    """Return the sweep's own settings and its mappings in `FREE` where a recipe is the sweep."""
    parts: dict[str, list[Setting]] = {key: [] for key in FREE}
    if name is None:
        return [Setting(RECIPE, recipe, "command line")], parts
    own, recipes = [Setting("name", name, "--sweep-name")], recipe.split(",")
    if len(recipes) > 1:
        parts["search"] = [Setting(RECIPE, {"grid": recipes}, "--recipe")]
    else:
        own.append(Setting(RECIPE, recipe, "command line"))
    return own, parts


def expand(sweep: Sweep) -> list[Trial]:
    """Return the first `sweep.first` trials: by grid point, draws in it, seeds of each draw."""
    return list(sweep.trials[: sweep.first])


def make_trial(sweep: Sweep, index: int, point: Point, seed: Setting) -> Trial:
    """Return the trial of a point. Raises UserError when its configuration has faults."""
    places = {dimension.key: dimension.where for dimension in sweep.space.dimensions}
    searched = [Setting(key, value, places.get(key, "search"))
                for key, value in point.items() if key != RECIPE]
    base = sweep.bases[point[RECIPE]] if RECIPE in point else sweep.base
    config = sweep.complete(base.build([*searched, seed]))
    name = signature(config)
    if isinstance(sweep.scheduler, Pbt):
        # its settings change during the run, and with another seed in another way
        name = f"pbt-{sweep.space.seed}-{name}" if sweep.space.seed else f"pbt-{name}"
    return Trial(index, dict(point), config.seed, config, name, Run(sweep.folder / name))


def _part(
    key: str, value: Any, file: tuple[Path, Mapping[str, int]], schema: type, faults: list[str]
) -> list[Setting]:
    """Return the entries of a mapping in `FREE`; `file`: its path and keys' lines."""
    path, lines = file
    if isinstance(value, dict) and key in ("overrides", "search"):
        return settings_of(value, lines, path, schema, f"{key}.")
    line = lines.get(key, 1)
    found = keys.entries(Setting(key, value, f"{path}, line {line}"), faults)
    return [Setting(one.key, one.value, f"{path}, line {lines.get(f'{key}.{one.key}', line)}")
            for one in found]


def _checked(draft: _Draft, faults: list[str]) -> Sweep:
    """Return a checked sweep. Raises UserError with all faults, and those in `faults`."""
    parts = draft.parts
    head = _head(draft, faults)
    if draft.metrics is not None and head.metric not in draft.metrics:
        faults.append(f"{draft.place('metric')}: metric: no metric {head.metric!r}"
                      f"{hint(head.metric, draft.metrics)}")
    space, sound = _space(draft, head, faults)
    samples = head.samples if space.is_random else 1
    if samples != head.samples:
        faults.append(f"{draft.place('samples')}: samples: {head.samples} draws, but no searched "
                      "key is random (choice, uniform, loguniform, randint)")
    scheduler = keys.choose(keys.SCHEDULERS, parts["scheduler"], "scheduler", faults)
    algorithm = keys.choose(keys.ALGORITHMS, parts["algorithm"], "algorithm", faults)
    if head.search_seed and not (space.is_random or isinstance(scheduler, Pbt)):
        faults.append(f"{draft.place('search_seed')}: search_seed: nothing is drawn: no searched "
                      "key is random (choice, uniform, loguniform, randint)")
    if scheduler is not None and head.backend != "ray":
        rules.check_scheduler(scheduler, parts["scheduler"][0].where, faults)
    if algorithm is not None:
        place = parts["algorithm"][0].where
        faults.extend(rules.algorithm_faults(place, head, space.dimensions))
    slurm = keys.read_slurm(parts["slurm"], faults)
    name = head.name or draft.name
    bases, are_all = _bases(draft, name, head.recipe, space.dimensions, faults)
    fixed: dict[str, Any] = {}
    for recipe, base in bases.items():
        with collecting(faults):
            fixed[recipe] = base.build()
    shared = next(iter(fixed.values()), None)  # None: a fault; the other keys are still checked
    seeds = head.seeds or [shared.seed if shared else 0]
    sweep = Sweep(
        **{key: getattr(head, key) for key in
           ("metric", "mode", "backend", "resources", "ray", "prepare", "report")},
        name=name, file=draft.file, bases=bases, samples=samples,
        seeds=tuple(Setting("seed", seed, draft.place("seeds")) for seed in seeds),
        space=dataclasses.replace(space, fixed=fixed), scheduler=scheduler, algorithm=algorithm,
        objectives=rules.read_objectives(parts["objectives"], algorithm, faults), slurm=slurm,
        folder=Path(shared.run.runs if shared else "") / name,
        complete=draft.complete if are_all else as_it_is,
    )
    usable = sound and len(fixed) == len(bases)  # conditions use the other keys' values
    if algorithm is None:
        usable = usable or not space.is_conditional
    usable = usable and (are_all or all(d.key != RECIPE for d in space.dimensions))
    return _with_trials(sweep, usable, draft.place("constraints"), faults)


def _space(draft: _Draft, head: SweepFile, faults: list[str]) -> tuple[Space, bool]:
    """Return what is searched, and whether all conditions can be evaluated."""
    kinds = field_types(draft.schema)
    dimensions = [d for setting in draft.parts["search"]
                  for d in read_dimension(setting, faults, kinds.get(setting.key, Any))]
    rules.check_keys(draft.parts, dimensions, faults)
    place, where = draft.place(RECIPE), f"{draft.place('constraints')}: constraints"
    faults.extend(rules.recipe_faults(head, place, dimensions))
    if not head.recipe and place == draft.file and all(d.key != RECIPE for d in dimensions):
        faults.append(f"{draft.file}: recipe: is needed, such as recipe: synthetic")
    conditions = [read_condition(text, where, faults) for text in head.constraints]
    constraints = [condition for condition in conditions if condition is not None]
    sound = rules.check_conditions(dimensions, constraints, draft.schema, faults)
    return Space(tuple(dimensions), tuple(constraints), {}, head.search_seed), sound


def _bases(
    draft: _Draft, name: str, recipe: str, dimensions: Sequence[Dimension], faults: list[str]
) -> tuple[dict[str, Base[Any]], bool]:
    """Return the settings that trials share by recipe, and whether all recipes were found. If none
    was found, the defaults are used, so that other keys can still be checked."""
    settings = [*draft.parts["overrides"], Setting("run.name", name, draft.place("name"))]
    wanted = {recipe: draft.place(RECIPE)} if recipe else {}
    wanted |= {str(value): d.where for d in dimensions if d.key == RECIPE for value in d.values}
    bases: dict[str, Base[Any]] = {}
    for one, where in wanted.items():
        with collecting(faults):
            own = named_recipe(one, draft.schema, draft.recipes, near=draft.near, where=where)
            bases[one] = Base(draft.schema, [*own, *settings])
    return bases or {"": Base(draft.schema, settings)}, len(bases) == len(wanted)


def _with_trials(sweep: Sweep, usable: bool, where: str, faults: list[str]) -> Sweep:
    """Return the sweep with its trials, or with those that its algorithm proposed and may propose.

    usable: whether its points can be listed. where: the place of the constraints. Raises UserError
    with all faults.
    """
    searches = sweep.algorithm is not None
    samples, points = 1 if searches else sweep.samples, list[Point]()
    count = sweep.space.size(samples) * len(sweep.seeds)
    if count > MOST_TRIALS:
        faults.append(f"{sweep.file}: {count} trials (grid x samples x seeds), at most "
                      f"{MOST_TRIALS} are possible; search with choice, and draw fewer samples")
    elif usable:
        try:
            points = list(sweep.space.points(samples))
        except UserError as error:
            faults.append(f"{where}: {error}")
    if not points and not faults:
        faults.append(f"{where}: constraints: no point of the search meets them")
    corners = sweep.space.corners() if searches and points else ()
    trials = _expand(sweep, [*points, *corners], faults)
    if searches:
        return dataclasses.replace(with_proposed(sweep), probes=trials)
    return dataclasses.replace(sweep, trials=trials)


def with_proposed(sweep: Sweep) -> Sweep:
    """Return the sweep with the trials of the points that its algorithm has proposed so far. Raises
    UserError when one of them has faults, as the sweep file may have been edited since."""
    space = sweep.space
    points = [one for one in read_points(sweep.folder, space.seed) if space.holds(one)]
    trials = _expand(sweep, points, [])
    every = space.every()
    most = sweep.samples if every is None else min(sweep.samples, len(every))
    return dataclasses.replace(sweep, trials=trials, to_propose=max(0, most - len(points)))


def _head(draft: _Draft, faults: list[str]) -> SweepFile:
    """Return the sweep's own keys; those with faults keep their defaults, so that the rest of the
    file can still be checked."""
    good = [Setting("metric", experiment_of(draft.schema).metric, "default")]
    defaults = Base(SweepFile, [])
    for setting in draft.own:
        first = setting.key.partition(".")[0]
        if first in keys.OTHER_TOOLS:
            faults.append(f"{setting.where}: no key {setting.key}; did you mean "
                          f"{keys.OTHER_TOOLS[first]}?")
            continue
        if setting.key == "metric" and isinstance(setting.value, dict):
            faults.append(f"{setting.where}: metric: expected its name; write metric: NAME and "
                          "mode: max (or min)")
            continue
        with collecting(faults):
            defaults.build([setting])
            good.append(setting)
    return build(SweepFile, good)


def _expand(sweep: Sweep, points: Iterable[Point], faults: list[str]) -> tuple[Trial, ...]:
    """Return the trials of all points. Raises UserError with their faults and `faults`."""
    trials: dict[str, Trial] = {}
    for point in points:
        for seed in sweep.seeds:
            with collecting(faults):
                trial = make_trial(sweep, len(trials), point, seed)
                first = trials.setdefault(trial.signature, trial)
                if first is trial:
                    continue
                if sweep.space.is_random:  # by chance; the corners of a search may coincide too
                    log.info("drawn twice, run once: %s", first.title)
                else:
                    faults.append(f"{_place_of_twins(sweep, first, trial)}: two trials are the "
                                  f"same run: {first.title} and {trial.title}")
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    return tuple(trials.values())


def _place_of_twins(sweep: Sweep, first: Trial, second: Trial) -> str:
    """Return the place of the last grid that repeats a value or does not change the run."""
    where = sweep.space.dimensions[0].where if sweep.space.dimensions else sweep.file
    for one in sweep.space.dimensions:
        if one.key in first.point and one.key in second.point and (
            first.point[one.key] != second.point[one.key]
            or len({json.dumps(value) for value in one.values}) < len(one.values)
        ):
            where = f"{one.where}: {one.key}"
    return where
