"""The sbatch script of a sweep's jobs, written by submitit."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.paths import NO_UTF8
from harness.base.units import gigabytes, minutes
from harness.cluster.slurm.job import MAX_TIME_OUTS, SIGNAL_DELAY_S
from harness.cluster.snapshots import SAFE_PATH
from harness.sweeps.reading import Sweep

OURS = {"time": "resources.time", "nodes": "resources.nodes", "mem": "resources.memory",
        "ntasks_per_node": "resources.tasks", "cpus_per_task": "resources.cpus",
        "gpus_per_node": "resources.gpus"}
"""Options of sbatch that follow from the sweep's resources, and the key to use instead."""
GPU_OPTIONS = {"gres", "gpus", "gpus_per_task"}
"""Options that request GPUs instead of `resources.gpus`."""
REFUSED = ("array", "output", "error", "open_mode", "wrap", "map_count", "additional_parameters",
           "signal", "use_srun", "num_gpus", "parsable", "wait", "test_only")
"""sbatch options that would break the job-to-trial mapping."""

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
    resources, options = sweep.resources, dict(sweep.slurm)
    known = _executor_class()._valid_parameters()
    faults = [f"slurm.{key}: use {OURS[key]}" if key in OURS else f"slurm.{key}: cannot be changed"
              for key in options if key in OURS or key in REFUSED]
    if faults:
        raise UserError("\n".join(faults))
    # submitit's 90 s could be all of a short limit: the job would be stopped as it starts
    options.setdefault("signal_delay_s", min(90, max(10, 60 * minutes(resources.time) // 5)))
    environment = {
        MAX_TIME_OUTS: resources.max_time_outs, SIGNAL_DELAY_S: options["signal_delay_s"],
        **options.pop("env", {}),
    }
    options.pop("python", None)
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
    setup = [*exports, *options.pop("setup", [])]
    if sweep.code is not None:  # after the user's setup, because loading a module may set it too
        code, here = shlex.quote(str(sweep.code)), shlex.quote(os.getcwd())
        setup.append(f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}:{here} {SAFE_PATH}=1")
    # since 22.05 srun ignores sbatch's --cpus-per-task: every rank would get one core
    srun_args = [f"--cpus-per-task={resources.cpus}", *options.pop("srun_args", [])]
    result: dict[str, Any] = {
        "job_name": job_name, "time": minutes(resources.time), "nodes": resources.nodes,
        "ntasks_per_node": resources.ranks_per_node, "cpus_per_task": resources.cpus,
        "srun_args": srun_args, "setup": setup,
        "wckey": None,  # some sites refuse submitit's default
    }
    if resources.gpus and not GPU_OPTIONS & set(options):
        result["gpus_per_node"] = resources.gpus
    if resources.memory and not {"mem_per_cpu", "mem_per_gpu"} & set(options):
        result["mem"] = f"{round(gigabytes(resources.memory) * 1024)}MB"
    # some sites requeue only jobs that ask for it; preempted trials must resume
    extra: dict[str, Any] = {"requeue": True}
    for key, value in options.items():
        if value is False:
            extra.pop(key, None)
        elif key != "job_name":
            (result if key in known else extra)[key] = value
    return {**result, "additional_parameters": extra}


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


def executor_for(sweep: Sweep, folder: Path, name: str) -> Any:
    """Return submitit's executor for jobs of a sweep, whose files go to `folder`."""
    executor = _executor_class()(folder=folder, python=sweep.slurm.get("python"))
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
