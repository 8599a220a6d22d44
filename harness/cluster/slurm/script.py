"""Trials on SLURM: what sbatch gets, through submitit; what squeue says; how jobs are ended."""

import getpass
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import UserError
from harness.base.units import gigabytes, minutes
from harness.cluster.rank import MAX_TIME_OUTS, SIGNAL_DELAY_S, run_trial
from harness.cluster.records import EVERY, Record, new_record
from harness.cluster.snapshots import SAFE_PATH
from harness.sweeps.reading import Sweep, Trial

OURS = {
    "time": "resources.time", "nodes": "resources.nodes", "mem": "resources.memory",
    "ntasks_per_node": "resources.tasks", "cpus_per_task": "resources.cpus",
    "gpus_per_node": "resources.gpus",
}
"""Options of sbatch that the sweep's resources decide, and the key to use instead."""
GPU_OPTIONS = {"gres", "gpus", "gpus_per_task"}
"""Options that ask for GPUs in another way than `resources.gpus`, and replace it."""
REFUSED = ("array", "output", "error", "open_mode", "wrap", "map_count", "additional_parameters",
           "signal", "use_srun", "num_gpus", "parsable", "wait", "test_only")
"""Options of sbatch that would part a job from its trial."""
ANSWER_LIMIT_S = 30.0
CANCEL_LIMIT_S = 120.0
IDS_PER_CALL = 500


class NoAnswer(UserError):
    """A command of SLURM is missing, fails, or does not come back."""


def is_here() -> bool:
    """Whether this machine submits to a SLURM cluster."""
    return shutil.which("sbatch") is not None


# --- what sbatch gets ---


def parameters(sweep: Sweep, *, job_name: str) -> dict[str, Any]:
    """Return the parameters of submitit's SlurmExecutor for one trial of a sweep.

    What submitit does not know goes to sbatch as it is. Raises UserError naming every key of the
    `slurm` section that cannot be used.
    """
    resources = sweep.resources
    known = _executor_class()._valid_parameters()
    _check_options(sweep.slurm)
    options = dict(sweep.slurm)
    # submitit's 90 s would be all of a short limit: the job would be stopped as it starts
    options.setdefault("signal_delay_s", min(90, max(10, 60 * minutes(resources.time) // 5)))
    environment = {
        MAX_TIME_OUTS: resources.max_time_outs, SIGNAL_DELAY_S: options["signal_delay_s"],
        **options.pop("env", {}),
    }
    options.pop("python", None)
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in environment.items()]
    setup = [*exports, *options.pop("setup", [])]
    if sweep.code is not None:  # last: loading a module may set it, too
        code = shlex.quote(str(sweep.code))
        here = shlex.quote(os.getcwd())  # last: modules beside the experiment may be there
        setup.append(f"export PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}:{here} {SAFE_PATH}=1")
    # srun forgets sbatch's --cpus-per-task since 22.05: every rank would sit on one core
    srun_args = [f"--cpus-per-task={resources.cpus}", *options.pop("srun_args", [])]
    result: dict[str, Any] = {
        "job_name": job_name, "time": minutes(resources.time), "nodes": resources.nodes,
        "ntasks_per_node": resources.ranks_per_node, "cpus_per_task": resources.cpus,
        "srun_args": srun_args, "wckey": None,  # submitit's own default is refused at some sites
    }
    result["setup"] = setup
    if resources.gpus and not GPU_OPTIONS & set(options):
        result["gpus_per_node"] = resources.gpus
    if resources.memory and not {"mem_per_cpu", "mem_per_gpu"} & set(options):
        result["mem"] = f"{round(gigabytes(resources.memory) * 1024)}MB"
    # some sites forbid requeueing unless the job asks for it; preempted trials must go on
    extra: dict[str, Any] = {"requeue": True}
    for key, value in options.items():
        if value is False:
            extra.pop(key, None)
        elif key != "job_name":
            (result if key in known else extra)[key] = value
    return {**result, "additional_parameters": extra}


def _check_options(options: dict[str, Any]) -> None:
    faults = [
        f"slurm.{key}: use {OURS[key]}" if key in OURS else f"slurm.{key}: cannot be changed"
        for key in options
        if key in OURS or key in REFUSED
    ]
    if faults:
        raise UserError("\n".join(faults))


def _executor_class() -> Any:
    """Return submitit's SlurmExecutor, able to write its script where SLURM is not installed."""
    from submitit import SlurmExecutor  # late: a tenth of a second that --status need not pay

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
    """Return the text of the sbatch script that `count` trials would be submitted with."""
    folder = sweep.folder.resolve() / "jobs" / "TOKEN"
    executor = executor_for(sweep, folder, job_name(sweep, "TOKEN"))
    if count > 1:
        executor.parameters["map_count"] = count
    return str(executor._make_submission_file_text(executor._submitit_command_str, "TOKEN"))


def job_name(sweep: Sweep, token: str) -> str:
    """Return the name under which a submission's jobs are found again; see `recover`."""
    return f"{sweep.slurm.get('job_name', sweep.name)}.{token}"


def depending_on(options: dict[str, Any], jobs: Sequence[str]) -> dict[str, Any]:
    """Return a sweep's `slurm` section for a job that waits until others have ended."""
    if not jobs:
        return options
    own = [str(options["dependency"])] if options.get("dependency") else []
    return {**options, "dependency": ",".join([*own, f"afterany:{':'.join(jobs)}"])}


# --- submitting ---


def submit(sweep: Sweep, trials: list[Trial]) -> Record:
    """Submit one job per trial, as an array of at most `max_array_size`, and return at once.

    The trials' status is `submitted` already, as a job may start before this returns. Raises
    UserError with sbatch's own words. The record stays even then: an sbatch that ran out of time
    may have submitted after all, and the next launch looks for its jobs.
    """
    record = new_record(
        sweep.folder, "slurm", [trial.signature for trial in trials],
        code=str(sweep.code or ""),
    )
    executor = executor_for(sweep, Path(record.folder), job_name(sweep, record.token))
    record.write()
    try:
        with outside_any_job():
            jobs = executor.map_array(run_trial, [str(t.run.folder.resolve()) for t in trials])
    except Exception as error:
        raise UserError(f"sbatch did not take the jobs: {last_line(error)}") from None
    record.jobs = {t.signature: job.job_id for t, job in zip(trials, jobs, strict=True)}
    record.state = "submitted"
    record.write()
    return record


def last_line(error: Exception) -> str:
    """Return the line of a failed command's words that says what was wrong."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()]
    return (told or lines or [repr(error)])[-1].strip()


@contextmanager
def outside_any_job() -> Iterator[None]:
    """Hide a surrounding job's variables from sbatch: it would hand them to the new job."""
    hidden: dict[str, str] = {}
    if "SLURM_JOB_ID" in os.environ:
        prefixes = ("SLURM_", "SRUN_", "SUBMITIT_", "PMI")
        names = [n for n in os.environ if n.startswith(prefixes) and n != "SLURM_CONF"]
        hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def max_array_size() -> int:
    """Return how many tasks an array may have here."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]), re.M)
    return max(1, int(found[1])) if found else 1001


# --- asking and ending ---


def ask(command: Sequence[str]) -> str:
    """Return what a SLURM command prints. Raises NoAnswer when it fails or does not come back."""
    # SQUEUE_STATES and the like would hide jobs from us
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_LIMIT_S, env=environment
        )
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]}: not on PATH; --cluster local runs here") from None
    except subprocess.TimeoutExpired:
        told = f"nothing within {ANSWER_LIMIT_S:.0f} s"
    else:
        if answer.returncode == 0:
            return answer.stdout
        told = answer.stderr.strip() or f"exit status {answer.returncode}"
    raise NoAnswer(
        f"{command[0]}: {told}\nthe SLURM cluster does not answer; try again later, or run on this "
        "machine by --cluster local"
    )


def my_jobs() -> dict[str, tuple[str, str, str]]:
    """Return (state, reason, name) of the user's jobs by id (array_task), in one call."""
    text = ask([
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T|%r|%j",
    ])
    rows = [line.strip().split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
    return {number: (state, reason, name) for number, state, reason, name in rows}


def recover(record: Record, jobs: dict[str, tuple[str, str, str]]) -> None:
    """Settle a submission whose launcher was killed before it stored the job ids.

    A job whose submitit file is in place can run and is adopted; any other is cancelled, and its
    trial is found missing again.
    """
    lost = []
    for number, (_, _, name) in jobs.items():
        if not name.endswith(f".{record.token}"):
            continue
        _, _, index = number.partition("_")
        if not (Path(record.folder) / f"{number}_submitted.pkl").exists():
            lost.append(number)
        elif record.options.get("backend") == "ray":
            record.jobs = {EVERY: number}
        else:
            record.jobs[record.trials[int(index or 0)]] = number
    scancel(lost)
    record.state = "submitted"
    record.write()


def scancel(numbers: Iterable[str]) -> None:
    """Cancel jobs by id."""
    ids = list(numbers)
    for start in range(0, len(ids), IDS_PER_CALL):
        ask(["scancel", "--quiet", *ids[start : start + IDS_PER_CALL]])


def cancel(numbers: set[str]) -> None:
    """Cancel jobs and wait until the cluster has let go of them, so that trials may save.

    Raises UserError when it takes too long.
    """
    scancel(sorted(numbers))
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while left := numbers & set(my_jobs()):
        if time.monotonic() > deadline:
            raise UserError(f"SLURM has not ended these jobs yet: {', '.join(sorted(left))}")
        time.sleep(1.0)
