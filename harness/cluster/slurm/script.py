"""The sbatch script of a sweep's jobs, written by submitit."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.mappings import leaves
from harness.base.paths import NO_UTF8
from harness.base.units import gigabytes, minutes
from harness.cluster.slurm.job import MAX_TIME_OUTS, NO_GPU, SIGNAL_DELAY_S, save_time_s
from harness.cluster.snapshots import SAFE_PATH
from harness.config.values import to_mapping
from harness.sweeps.reading import Sweep

OURS = {"time": "resources.time", "nodes": "resources.nodes", "mem": "resources.memory",
        "ntasks": "resources.tasks", "ntasks_per_node": "resources.tasks",
        "cpus_per_task": "resources.cpus", "gpus_per_node": "resources.gpus"}
"""Options of sbatch that follow from the sweep's resources, and the key to use instead."""
GPU_OPTIONS = ("gres", "gpus", "gpus_per_task")
"""Options that can request GPUs instead of `resources.gpus`."""
OF_GPUS = ("gpu", "mps", "shard")
"""Beginnings of generic resources that are GPUs, or parts of one."""
REFUSED = ("array", "output", "error", "open_mode", "map_count", "additional_parameters",
           "signal", "use_srun", "num_gpus", "parsable", "wait", "test_only", "quiet", "clusters",
           "stderr_to_stdout")
"""sbatch options that would break the job-to-trial mapping."""
DEFAULTS = {f"SBATCH_{key.upper()}": key for key in
            ("account", "constraint", "partition", "qos", "reservation", "wckey")}
"""Variables of sbatch that stand for options which the sweep leaves out. All others are hidden from
sbatch, because it would prefer them to the script."""

IN_QUOTES = str.maketrans({letter: f"\\{letter}" for letter in '"\\`'})
"""How double quotes keep letters."""
NO_TEXT = {NO_UTF8: "cannot be in a script for sbatch"}
UNREADABLE = {
    "%": "begins a placeholder such as %j in the names of SLURM's logs",
    "\\": "changes how SLURM reads the names of logs", "\n": "ends an option of sbatch",
}
"""What the path of a sweep's folder may not hold, and why; NO_TEXT: the current folder's."""


def parameters(sweep: Sweep, *, job_name: str) -> dict[str, Any]:
    """Return the parameters of submitit's SlurmExecutor for one trial of a sweep.

    Options that submitit does not know go to sbatch unchanged. Raises UserError naming every key of
    the `slurm` section that cannot be used.
    """
    resources, options = sweep.resources, options_of(sweep)
    known = _executor_class()._valid_parameters()
    faults = [f"slurm.{key}: use {OURS[key]}" if key in OURS else f"slurm.{key}: cannot be changed"
              for key in options if key in OURS or key in REFUSED]
    faults += _gpu_faults(sweep)
    if faults:
        raise UserError("\n".join(faults))
    # submitit's 90 s could be all of a short limit: the job would be stopped as it starts
    options.setdefault("signal_delay_s", int(save_time_s(60 * minutes(resources.time))))
    has_gpu = gpus_per_node(sweep) > 0
    environment = {
        MAX_TIME_OUTS: resources.max_time_outs, SIGNAL_DELAY_S: options["signal_delay_s"],
        NO_GPU: int(not has_gpu), **({} if has_gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        **options.pop("env", {}),
    }
    for key in ("python", "wrap"):  # of the command, see `python_of`
        options.pop(key, None)
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
    setup = [*exports, *options.pop("setup", [])]
    if sweep.code is not None:  # after the user's setup, because loading a module may set it too
        code, here = shlex.quote(str(sweep.code)), shlex.quote(os.getcwd())
        setup.append(f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}:{here} {SAFE_PATH}=1")
    # since 22.05 srun ignores sbatch's --cpus-per-task: every rank would get one core
    srun_args = [f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1",
                 *options.pop("srun_args", [])]
    if "export" in options:  # which srun would take over: NONE would hide `env` and `setup`
        srun_args = ["--export=ALL", *srun_args]
    result: dict[str, Any] = {
        "job_name": _escaped(job_name), "time": minutes(resources.time), "nodes": resources.nodes,
        "ntasks_per_node": resources.ranks_per_node, "cpus_per_task": resources.cpus,
        "srun_args": srun_args, "setup": setup,
        "wckey": None,  # some sites refuse submitit's default
    }
    if resources.gpus and not gpu_option(sweep):
        result["gpus_per_node"] = resources.gpus
    if resources.memory and not {"mem_per_cpu", "mem_per_gpu"} & set(options):
        result["mem"] = f"{max(1, round(gigabytes(resources.memory) * 1024))}MB"  # 0: all of it
    # some sites requeue only jobs that ask for it; preempted trials must resume
    requeue = options.pop("requeue", "no_requeue" not in options)
    extra: dict[str, Any] = {"requeue" if requeue else "no_requeue": True}
    for key, value in options.items():
        if key != "job_name":
            (result if key in known else extra)[key] = _escaped(value)
    return {**result, "additional_parameters": extra}


def gpu_option(sweep: Sweep) -> str:
    """Return the option of sbatch by which a sweep requests GPUs, "" for none."""
    return next((key for key in GPU_OPTIONS if key in sweep.slurm and _gpu_words(sweep, key)), "")


def _gpu_words(sweep: Sweep, option: str) -> list[str]:
    """Return the parts of an option that request GPUs, such as gpu:a100:2."""
    words = [word.strip() for word in str(sweep.slurm[option]).split(",")]
    return [word for word in words if option != "gres" or word.startswith(OF_GPUS)]


def gpus_per_node(sweep: Sweep) -> int:
    """Return how many GPUs a sweep requests on each node of a job."""
    resources, option = sweep.resources, gpu_option(sweep)
    if not option:
        return resources.gpus or 0
    numbers = [word.rpartition(":")[2] for word in _gpu_words(sweep, option)
               if not word.startswith(OF_GPUS[1:])]  # else parts of one
    count = sum(int(number) if number.isdigit() else 1 for number in numbers)
    if option == "gpus":
        count //= resources.nodes
    if option == "gpus_per_task":
        count *= resources.ranks_per_node
    return max(1, count)


def _gpu_faults(sweep: Sweep) -> Iterator[str]:
    """Yield messages on options that request other GPUs than `resources` do."""
    key, asked, there = gpu_option(sweep), sweep.resources, gpus_per_node(sweep)
    if not key:
        return
    if sweep.backend == "ray" and not asked.gpus:
        yield (f"slurm.{key}: Ray gives GPUs to trials by resources.gpus, which requests none; set "
               "it too")
    elif (asked.gpus or 0) > there:
        yield (f"slurm.{key}: {sweep.slurm[key]} requests {there} GPUs on a node, resources.gpus "
               f"{asked.gpus}; set one of them only, or both alike")
    elif asked.ranks_per_node > there:
        yield (f"slurm.{key}: {sweep.slurm[key]} requests {there} GPUs on a node for "
               f"{asked.ranks_per_node} ranks (resources.tasks), and each needs one")


def _escaped(value: Any) -> Any:
    """Return an option for a line #SBATCH, where a backslash is special within quotes too."""
    return value.replace("\\", r"\\") if isinstance(value, str) else value


def options_of(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep's `slurm` section, with the environment's `DEFAULTS` where it says nothing."""
    there = {key: os.environ[name] for name, key in DEFAULTS.items() if os.environ.get(name)}
    return {**there, **sweep.slurm}


def variables(sweep: Sweep) -> list[str]:
    """Return lines on what becomes of sbatch's variables in the environment."""
    there = sorted(name for name in os.environ
                   if name.startswith("SBATCH_") or name == "SLURM_CLUSTERS")
    used = [name for name in there if os.environ[name] and name in DEFAULTS
            and DEFAULTS[name] not in sweep.slurm]
    ignored = [name for name in there if name not in used]
    lines = [f"{name}={os.environ[name]} is used, because slurm.{DEFAULTS[name]} is not set"
             for name in used]
    if ignored:
        lines.append(f"ignored: {', '.join(ignored)}; set slurm.KEY or resources.KEY instead")
    return lines


def _executor_class() -> Any:
    """Return submitit's SlurmExecutor, made to write its script where SLURM is not installed."""
    from submitit import SlurmExecutor  # late: takes --status a tenth of a second

    class Executor(SlurmExecutor):
        @classmethod
        def name(cls) -> str:
            return "slurm"

        @classmethod
        def affinity(cls) -> int:
            return 2

    return Executor


def python_of(sweep: Sweep) -> str:
    """Return how the shell of a job starts Python: the interpreter, after the words of
    `slurm.wrap`, in which the shell replaces variables."""
    words = [word.translate(IN_QUOTES) for word in sweep.slurm.get("wrap", [])]
    python = sweep.slurm.get("python") or shlex.quote(sys.executable)
    return " ".join([*(f'"{word}"' for word in words), python])


def inside(sweep: Sweep) -> list[str]:
    """Return the paths that jobs need under the same name within what `slurm.wrap` enters: of the
    sweep, of its configurations, and of this Python where the sweep names no other."""
    configs = [trial.config for trial in (*sweep.trials, *sweep.probes)]
    values = {value for config in configs for value in leaves(to_mapping(config)).values()
              if isinstance(value, str) and os.path.isabs(value) and os.path.exists(value)}
    own = {str(sweep.folder.absolute().parent), os.getcwd()}
    own |= set() if "python" in sweep.slurm else {sys.prefix}
    paths = sorted(values | own)
    return [path for n, path in enumerate(paths)
            if not any(path.startswith(f"{other}/") for other in paths[:n])]


def executor_for(sweep: Sweep, folder: Path, name: str) -> Any:
    """Return submitit's executor for jobs of a sweep, whose files go to `folder`."""
    executor = _executor_class()(folder=folder, python=python_of(sweep))
    executor.update_parameters(**parameters(sweep, job_name=name))
    return executor


def script(sweep: Sweep, count: int) -> str:
    """Return the text of the sbatch script for `count` trials."""
    folder = sweep.folder.resolve() / "jobs" / "TOKEN"
    executor = executor_for(sweep, folder, job_name(sweep, "TOKEN"))
    if count > 1:
        executor.parameters["map_count"] = count
    return str(executor._make_submission_file_text(executor._submitit_command_str, "TOKEN"))


def job_name(sweep: Sweep, token: str) -> str:
    """Return the name that identifies a submission's jobs; see `place.recover`."""
    return f"{sweep.slurm.get('job_name', sweep.name)}.{token}"


def depending_on(options: dict[str, Any], jobs: Sequence[str]) -> dict[str, Any]:
    """Return a sweep's `slurm` section for jobs that wait until others have ended."""
    if not jobs:
        return options
    own = [str(options["dependency"])] if options.get("dependency") else []
    return {**options, "dependency": ",".join([*own, f"afterany:{':'.join(jobs)}"])}
