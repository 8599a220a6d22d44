"""The keys of a sweep file: resources of trials, what is searched, which trials end early."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness.base.errors import UserError, collecting, hint
from harness.base.paths import is_utf8
from harness.base.units import gigabytes, minutes, time_fault
from harness.config.build import build
from harness.config.casts import TRUTHS
from harness.config.fields import field_types, text_fields
from harness.config.sources import Setting
from harness.config.yaml_files import ENDINGS, VERBATIM, NotYaml, Texts, parse

FREE = ("overrides", "search", "scheduler", "algorithm", "objectives", "slurm")
"""Keys of a sweep file whose mappings have keys of other schemas, or any keys."""
SLURM_LISTS = ("setup", "teardown", "srun_args", "wrap")
SLURM_FLAGS = (
    "contiguous", "exclusive", "get_user_env", "hold", "ignore_pbs", "nice", "no_kill",
    "no_requeue", "overcommit", "oversubscribe", "propagate", "reboot", "requeue", "spread_job",
    "use_min_nodes", "verbose",
)
"""Options of sbatch that need no value. `true` is a text for all others: without a value they would
take the next option for it."""
NULLS = ("~", "null", "Null", "NULL")
OTHER_TOOLS = {
    "parameters": "search", "params": "search", "param_space": "search", "search_space": "search",
    "hparams": "search", "num_samples": "samples", "run_cap": "samples", "n_trials": "samples",
    "search_alg": "algorithm", "sampler": "algorithm", "pruner": "scheduler",
    "early_terminate": "scheduler", "resources_per_trial": "resources",
    "direction": "mode", "goal": "mode", "time_budget_s": "resources.time",
    "method": "search: {KEY: {grid: [...]}} (bayes: algorithm: gp; random: choice, uniform ... and "
              "samples)",
    "config": "recipe and overrides", "defaults": "recipe", "program": "recipe",
    "max_concurrent_trials": "slurm.array_parallelism, ray.trials_per_node or --jobs",
    "project": "run.wandb in overrides",
    # options of schedulers and algorithms
    "grace_period": "grace", "reduction_factor": "reduction", "max_t": "epochs", "eta": "reduction",
    "min_iter": "grace", "min_samples_required": "trials", "perturbation_interval": "every",
    "quantile_fraction": "share", "resample_probability": "resample",
    "n_startup_trials": "startup", "n_initial_points": "startup",
}
"""Keys of W&B's, Ray's, Hydra's and Optuna's sweeps, with ours."""
KINDS_ELSEWHERE = {"asynchyperband": "asha", "asha": "asha", "halving": "asha",
                   "hyperband": "hyperband", "median": "median", "population": "pbt",
                   "optuna": "tpe", "tpe": "tpe", "hyperopt": "tpe", "bayes": "gp", "gp": "gp"}
"""Parts of other tools' names of schedulers and algorithms, with ours."""
SLURM_COUNTS = ("array_parallelism", "signal_delay_s")
"""Options with which submitit computes; it copies all others into the script."""


class Options:
    """Base of sections whose integers have lower bounds, which `least` holds by key."""

    kind: ClassVar[str]
    least: ClassVar[Mapping[str, int]] = {}

    def faults(self) -> Iterator[tuple[str, str]]:
        for key, least in self.least.items():
            value = getattr(self, key)
            if value is not None and value < least:
                yield key, f"must be at least {least}, found {value}"


@dataclass
class Resources(Options):
    """Resources of one trial."""

    least: ClassVar = {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1, "max_time_outs": 0}
    nodes: int = 1
    """Nodes per trial."""
    gpus: int | None = None
    """GPUs per node; null: on this machine one per rank if there are enough, on SLURM none."""
    tasks: int | None = None
    """Ranks per node; null: one per GPU, or one without GPUs."""
    cpus: int = 1
    """Cores per rank."""
    time: str = "4h"
    """Time limit of one SLURM job, such as 90m, 1d12h, 12:00:00 or 1-12:00:00; a bare number is
    minutes. Longer runs resume in another job."""
    max_time_outs: int = 20
    """How often a trial, or a search's job, resumes by itself after the time limit."""
    memory: str | None = None
    """Memory per node, such as 32GB; null: the partition's default."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if self.gpus and (self.tasks or 1) > self.gpus:
            yield "tasks", (f"{self.tasks} ranks need a GPU each, found gpus: {self.gpus}; set "
                            f"gpus: {self.tasks}, or gpus: 0")
        if not minutes(self.time):
            yield "time", time_fault(self.time)
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
        """GPUs per trial, over all nodes."""
        return self.nodes * (self.gpus or 0)


@dataclass
class Allocation(Options):
    """Backend ray only: the job in which all trials run."""

    least: ClassVar = {"nodes": 1, "trials_per_node": 1, "trials_per_gpu": 1}
    nodes: int = 1
    """Nodes of the job."""
    trials_per_node: int = 1
    """Trials that run at the same time on a node, each with the sweep's `resources`."""
    trials_per_gpu: int = 1
    """Trials that share a GPU; needs `resources.gpus: 1`."""
    dashboard: bool = False
    """Serve Ray's dashboard on the first node, to this node only; the log says how to open it."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster, whose nodes must see the same files; null: start one."""


@dataclass
class SweepFile(Options):
    """The keys of a sweep file."""

    least: ClassVar = {"samples": 1, "search_seed": 0}
    name: str = ""
    """Name of the folder of its runs; empty: the file's name."""
    recipe: str = ""
    """Recipe of all trials: the name of a shipped one, or a file, relative to this file or the
    current folder. `+` joins several, such as market1501+clipreid; later ones win."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values of all trials that replace the recipe's."""
    search: dict[str, Any] = field(default_factory=dict)
    """Values that differ between trials: `key: {grid: [...]}`, or choice: [...], or uniform,
    loguniform or randint: [low, high]; randint excludes `high`."""
    seeds: list[int] | None = None
    """Every point runs once per seed; null: only with the recipe's seed."""
    samples: int = 1
    """Number of random draws, or of points that an algorithm proposes."""
    search_seed: int = 0
    """Another number gives another random search of the same space: other draws, proposals and, in
    population based training, other changes."""
    metric: str = ""
    """Metric that ranks the trials."""
    mode: Literal["max", "min"] = "max"
    """Whether higher or lower metrics are better."""
    backend: Literal["array", "ray"] = "array"
    """array: one job per trial; ray: Ray Tune inside one allocation."""
    prepare: bool = False
    """Backend array on SLURM: a separate job first makes the files that trials share."""
    report: bool = False
    """Backend array on SLURM: a job after the last trial writes report.html and report.txt."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Backend ray only: early stopping of trials, such as `asha: {grace: 2, reduction: 3}`."""
    algorithm: dict[str, Any] = field(default_factory=dict)
    """Backend ray only: proposes each point from the results so far, such as `tpe` or
    `gp: {startup: 10}`; without one, points are drawn at random."""
    objectives: dict[str, Any] = field(default_factory=dict)
    """Further objectives of an algorithm, such as `images_per_s: max`; it then searches for
    Pareto-optimal points."""
    constraints: list[str] = field(default_factory=list)
    """Conditions on every point, such as "first.weight + second.weight <= 1"."""
    resources: Resources = field(default_factory=Resources)
    ray: Allocation = field(default_factory=Allocation)
    slurm: dict[str, Any] = field(default_factory=dict)
    """Options of sbatch; also setup: [shell lines before Python], teardown: [shell lines after it],
    python: the interpreter, wrap: [words before it, such as apptainer, exec, image.sif],
    srun_args: [...], env: {NAME: value}."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if self.name and not re.fullmatch(r"[A-Za-z0-9][\w.\-]*", self.name):
            yield "name", f"{self.name!r} must be a plain folder name (letters, digits, . _ -)"
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            yield "seeds", f"{self.seeds} has a seed twice"
        if self.seeds == []:
            yield "seeds", "is empty; leave it out to use the recipe's seed"


# --- schedulers: which trials are stopped early, or changed ---


@dataclass
class Asha(Options):
    """Asynchronous successive halving (Li et al. 2018): one in `reduction` trials passes a rung."""

    kind = "asha"
    least: ClassVar = {"grace": 1, "reduction": 2}
    grace: int = 1
    """Epochs that every trial runs at least."""
    reduction: int = 3
    """One in so many trials continues at each rung."""
    early: str | None = None
    """Metric that judges epochs before the sweep's metric exists."""


@dataclass
class HyperBand(Options):
    """HyperBand (Li et al. 2017): brackets of trials that are paused and halved together."""

    kind = "hyperband"
    least: ClassVar = {"epochs": 1, "reduction": 2}
    epochs: int = 27
    """Epochs of the longest trials."""
    reduction: int = 3
    """One in so many trials continues at each halving."""


@dataclass
class Median(Options):
    """Median stopping (Golovin et al. 2017): ends trials below the others' median so far."""

    kind = "median"
    least: ClassVar = {"grace": 1, "trials": 1}
    grace: int = 2
    """Epochs that every trial runs at least."""
    trials: int = 3
    """Trials that must have reached an epoch before another is judged by it."""


@dataclass
class Pbt(Options):
    """Population based training (Jaderberg et al. 2017): bad trials continue from good ones."""

    kind = "pbt"
    least: ClassVar = {"every": 1}
    every: int = 2
    """Epochs between comparisons."""
    share: float = 0.25
    """Share of the worst trials, which continue from the same share of the best."""
    factor: float = 1.2
    """Factor by which their settings are then raised or lowered."""
    resample: float = 0.25
    """Probability that a setting is redrawn instead."""

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        if not 0 < self.share <= 0.5:
            yield "share", f"must be greater than 0 and at most 0.5, found {self.share}"
        if self.factor <= 1:
            yield "factor", f"must be greater than 1, found {self.factor}"
        if not 0 <= self.resample <= 1:
            yield "resample", f"must lie between 0 and 1, found {self.resample}"


Scheduler = Asha | HyperBand | Median | Pbt
SCHEDULERS: dict[str, type] = {kind.kind: kind for kind in (Asha, HyperBand, Median, Pbt)}


# --- algorithms: which points are tried next ---


@dataclass
class Proposer(Options):
    """Options of all algorithms."""

    least: ClassVar = {"startup": 1}
    startup: int = 10
    """Random points before the first proposal."""


class Tpe(Proposer):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), by Optuna."""

    kind = "tpe"


class Gp(Proposer):
    """Bayesian optimisation with a Gaussian process, by Optuna."""

    kind = "gp"


Algorithm = Tpe | Gp
ALGORITHMS: dict[str, type] = {kind.kind: kind for kind in (Tpe, Gp)}


# --- files by name, command-line settings, sections that are checked one by one ---


def find_sweep(name: str, folder: Path) -> Path:
    """Return a sweep file given by its path or, where there is none, by its name in `folder`.
    Raises UserError, with the nearest names, when there is neither."""
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
    """Return a function that returns whether a dotted key of a sweep file holds strings only.

    schema: the experiment's configuration. Options of sbatch and variables are strings: an account
    may be 0123, a variable FALSE or empty.
    """
    of_trials, own = text_fields(schema), text_fields(SweepFile)

    def texts(key: str) -> bool | str:
        first, _, rest = key.partition(".")
        if first in ("overrides", "search"):
            return of_trials(re.sub(r"\.(grid|choice)$", "", rest))
        return VERBATIM if first == "slurm" and rest else own(key) or of_trials(key)

    return texts


def grid_words(words: Iterable[str], schema: type) -> list[str]:
    """Translate words of a sweep without a file: `key=a,b` and, if the key holds no list,
    `key=[a,b]` become `search.key={grid: [a,b]}`, `key={uniform: [0,1]}` becomes a search, and
    `seed=1,2` becomes `seeds=[1,2]`. All other words stay as they are."""
    kinds, texts = field_types(schema), text_fields(schema)
    return [_grid_word(word, kinds, texts) for word in words]


def _grid_word(word: str, kinds: Mapping[str, Any], texts: Texts) -> str:
    key, _, text = (part.strip() for part in word.partition("="))
    if key not in kinds or not text:
        return word
    try:
        values = parse(f"[{text}]", texts, key)[0]
    except NotYaml:
        return word
    is_list = len(values) == 1 and isinstance(values[0], list) and not _holds(kinds[key], list)
    listed = text if is_list else f"[{text}]"
    if key == "seed":
        return f"seeds={listed}"
    if len(values) == 1 and isinstance(values[0], dict) and not _holds(kinds[key], dict):
        return f"search.{key}={text}"
    return f"search.{key}={{grid: {listed}}}" if is_list or len(values) > 1 else word


def _holds(kind: Any, container: type) -> bool:
    """Return whether a field of this type takes a list (or tuple), or a mapping."""
    kinds = [typing.get_origin(one) for one in (kind, *typing.get_args(kind))]
    return container in kinds or (container is list and tuple in kinds)


def sort_settings(
    settings: Iterable[Setting], own: list[Setting], parts: dict[str, list[Setting]],
    schema: type, faults: list[str],
) -> None:
    """Sort command-line settings into the sweep's own keys and `parts`; later ones win. schema: the
    experiment's configuration; all keys that are not the sweep's belong to it."""
    own_keys = [item.name for item in dataclasses.fields(SweepFile)]
    theirs = {key.partition(".")[0] for key in field_types(schema)}
    for setting in settings:
        first, _, rest = setting.key.partition(".")
        if first in FREE and rest:
            parts[first] = [one for one in parts[first] if one.key != rest]
            parts[first].append(dataclasses.replace(setting, key=rest))
        elif first in FREE:
            parts[first] = entries(setting, faults)
        elif first in own_keys:
            own.append(setting)
        else:
            near = difflib.get_close_matches(first, [*sorted(theirs), *own_keys], n=1)
            if first not in theirs and near and near[0] in own_keys:
                meant = f"{near[0]}.{rest}" if rest else near[0]
                faults.append(f"{setting.where}: no key {setting.key}; did you mean {meant}?")
            else:
                parts["overrides"].append(setting)


def entries(mapping: Setting, faults: list[str]) -> list[Setting]:
    """Return the entries of a mapping in `FREE`, with the place of the mapping."""
    key, value, where = mapping.key, mapping.value, mapping.where
    if value in (None, "none", {}):
        return []
    if isinstance(value, str) and key in ("scheduler", "algorithm"):
        return [Setting(value, None, where)]
    if isinstance(value, dict):
        return [Setting(str(name), item, where) for name, item in value.items()]
    faults.append(f"{where}: {key}: expected a mapping, found {value!r}")
    return []


def choose(
    kinds: dict[str, type], settings: Iterable[Setting], section: str, faults: list[str]
) -> Any:
    """Return the scheduler or algorithm that `{asha: {grace: 2}}` or `asha` names, None for none.
    Options may also be set one by one (`asha.grace`)."""
    chosen: dict[str, list[Setting]] = {}
    for setting in settings:
        kind, _, option = setting.key.partition(".")
        where = f"{setting.where}: {section}"
        options = {option: setting.value} if option else setting.value
        options = {} if options is None else options
        if kind not in kinds:
            known = [*kinds, "none"]
            ours = [ours for part, ours in KINDS_ELSEWHERE.items()
                    if part in kind.lower() and ours in kinds]
            meant = f"; did you mean {ours[0]}?" if ours else hint(kind, known)
            faults.append(f"{where}: no {section} {kind!r}{meant}")
        elif not isinstance(options, dict):
            faults.append(f"{where}.{kind}: expected a mapping, found {options!r}")
        else:
            chosen.setdefault(kind, [])
            for key, value in options.items():
                if key in OTHER_TOOLS:
                    faults.append(f"{where}.{kind}: no key {key}; did you mean {OTHER_TOOLS[key]}?")
                else:
                    chosen[kind].append(Setting(str(key), value, f"{where}.{kind}"))
        if len(chosen) > 1:
            faults.append(f"{where}: expected one of {', '.join(kinds)}, found {', '.join(chosen)}")
            return None
    for kind, options_of in chosen.items():
        with collecting(faults):
            return build(kinds[kind], options_of)
    return None


def read_slurm(settings: list[Setting], faults: list[str]) -> dict[str, Any]:
    """Return the checked section `slurm`, whose values are strings as they were written, except
    flags and integers for submitit. sbatch itself checks the names of its options."""
    options: dict[str, Any] = {}
    for setting in settings:
        key, where, value = setting.key.replace("-", "_"), f"{setting.where}: slurm", setting.value
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
            faults.append(f"{where}: {setting.key!r} is not an option's name")
            continue
        if value in NULLS:
            continue
        if found := [*_slurm_faults(key, value), *_letter_faults(value)]:
            faults.extend(f"{where}.{key}: {fault}" for fault in found)
        elif key in options:
            faults.append(f"{where}.{key}: is set twice, also with - for _")
        elif key in SLURM_COUNTS:
            options[key] = int(value)
        else:
            options[key] = TRUTHS.get(value.lower(), value) if key in SLURM_FLAGS else value
    return options


def _slurm_faults(key: str, value: Any) -> Iterator[str]:
    """Yield messages about values that cannot be part of a job's script."""
    if key in SLURM_LISTS:
        if not isinstance(value, list) or not all(isinstance(x, str) and x for x in value):
            yield "expected a list of strings"
    elif key == "env":
        if not isinstance(value, dict):
            yield "expected NAME: value pairs"
        for name in value if isinstance(value, dict) else ():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                yield f"{name!r} is not a variable name"
            elif not isinstance(value[name], str):
                yield f"{name}: expected one value, found {value[name]!r}"
    elif value in (None, ""):
        yield "is empty; write a value, or null to leave it out"
    elif not isinstance(value, str):
        yield f"expected one value, found {value!r}"
    elif "\n" in value:
        yield "must be one line"
    elif key in SLURM_COUNTS and not re.fullmatch(r"0*[1-9][0-9]{0,8}", value):
        yield f"expected an integer of at least 1, found {value!r}"
    elif key in SLURM_FLAGS and value.lower() in TRUTHS.keys() - {"true", "false"}:
        yield f"write true or false, found {value!r}"
    elif key in SLURM_FLAGS and value.lower() == "false" and key != "requeue":
        yield "sbatch cannot negate it; write null to leave it out"


def _letter_faults(value: Any) -> Iterator[str]:
    """Yield messages about texts of an option that the script of a job cannot hold."""
    several = value.values() if isinstance(value, dict) else value
    for text in [value] if isinstance(value, str) else several or ():
        if isinstance(text, str) and ("\0" in text or not is_utf8(text)):
            yield f"{text!r}: a NUL character, or bytes that are not UTF-8, cannot be in a script"
