"""Submit a sweep, follow it, go on with it, cancel it: on SLURM or on this machine.

    python launch/slurm.py --sweep loss_weights --dry-run
    python launch/slurm.py --sweep loss_weights --follow
    python launch/slurm.py --sweep loss_weights slurm.partition=gpu resources.gpus=1
    python launch/slurm.py --recipe synthetic seeds=[1,2,3] resources.time=1h
    python launch/slurm.py --doctor
    python launch/slurm.py --help-config

The same command again submits only what is missing, stopped or was killed; --retry-failed also what
failed by its own fault.
"""

import dataclasses
from enum import StrEnum
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from harness.base.errors import UserError
from harness.base.units import counted
from harness.cluster import launch as array
from harness.cluster import shares, snapshots
from harness.cluster.records import read_records
from harness.cluster.slurm import script as slurm
from harness.cluster.slurm import site
from harness.reporting import terminal as table
from harness.reporting.follow import follow as follow_sweep
from harness.sweeps.keys import ALGORITHMS, SCHEDULERS, SweepFile, find_sweep
from harness.sweeps.reading import Sweep, Trial, read_sweep, recipe_sweep, with_proposed
from harness.sweeps.space import points_file
from launch.cli import command, print_config_help
from svll.config import RECIPES, SWEEPS, Config
from svll.data.datasets import has_validation
from svll.reuse.fingerprints import pin, weights_file

EARLY = ("prompts.mAP", "prompts.margin")
"""What a scheduler may judge stage 1 by."""
OF_EPOCHS = ("images_per_s", "memory_gb", "loss")
"""What else epochs tell, and a search may weigh."""
RESULT_KEYS = ("mAP", "mINP", "cmc.1", "cmc.5", "cmc.10")
METRICS = [*(f"validation.{key}" for key in RESULT_KEYS), *RESULT_KEYS]
"""What trials may be ranked by: the keys of result.json."""
STATUS_ROWS = 100
"""Of more trials, those that run or are in trouble are shown; the counts are of all."""
TROUBLES = 20
"""Of more trials that ended badly, the first are told."""


@dataclasses.dataclass
class Keys(SweepFile):
    """The keys of a sweep file."""  # as --help-config shows them

    metric: str = Config.experiment.metric


class Cluster(StrEnum):
    """Where trials run."""

    slurm = "slurm"
    local = "local"


@command(__doc__)
def main(
    sweep: Annotated[
        str | None, typer.Option(help="A sweep file, or the name of a shipped sweep.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Or one recipe (name or file), as a single trial.")
    ] = None,
    cluster: Annotated[
        Cluster | None, typer.Option(help="Default: slurm where sbatch is, else local.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show trials and what sbatch gets; submit nothing.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show where each trial is.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Submit, then watch until all have ended.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="End all queued and running trials.")
    ] = False,
    doctor: Annotated[
        bool, typer.Option("--doctor", help="Check each partition (or this machine) by a job.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Local: trials at a time; default: by cores, GPUs.", min=1)
    ] = None,
    first: Annotated[
        int | None, typer.Option(help="Only the sweep's first N trials.", min=1)
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Search on a Ray that is running already, at HOST:PORT.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Submit failed trials as well, once mended.")
    ] = False,
    help_config: Annotated[
        bool,
        typer.Option("--help-config", help="Print a sweep file's keys, or those with a word."),
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the trials (stage2.lr=1e-5) or the sweep (seeds=[1,2])"),
    ] = None,
) -> int:
    """Run a sweep. Exit status 0 only when every trial that was waited for is complete."""
    if help_config:
        return _help_config(overrides or [])
    if sum((dry_run, status, follow, cancel, doctor)) > 1:
        raise UserError("choose one of --dry-run, --status, --follow, --cancel, --doctor")
    if doctor and sweep is None and recipe is None:
        recipe = "synthetic"  # any will do: it is not run
    words = [*(overrides or []), *([f"ray.address={ray_address}"] if ray_address else [])]
    asked = dataclasses.replace(_read(sweep, recipe, words), first=first)
    if first is not None and asked.algorithm is not None:
        raise UserError(f"{asked.file}: --first: an algorithm proposes the points; say how many by "
                        "samples=N")
    place: array.Cluster = "slurm" if slurm.is_here() else "local"
    if cluster is not None:
        place = cluster.value
    if asked.ray.address is not None:
        if asked.backend != "ray":
            raise UserError(f"{asked.file}: ray.address: set backend: ray, which is what uses it")
        place = "local"  # the driver is here, wherever its trials are
    console = table.wide(Console())
    if doctor:
        from harness.cluster.doctor.visit import visit  # late: only this needs it

        return visit(asked, cluster=place == "slurm", console=console)
    if dry_run:
        return _dry_run(asked, place, jobs, console, retry_failed=retry_failed)
    if status:
        return _status(asked, console)
    if cancel:
        return _cancel(asked, console)
    _submit(asked, place, jobs, console, retry_failed=retry_failed)
    return _follow(asked, console) if follow else 0


def _help_config(words: list[str]) -> int:
    kinds = {f"scheduler.{name}.": kind for name, kind in SCHEDULERS.items()}
    kinds |= {f"algorithm.{name}.": kind for name, kind in ALGORITHMS.items()}
    print_config_help({"": Keys, **kinds}, words)
    typer.echo("\nevery other key is one of the trials: python launch/train.py --help-config")
    return 0


def _read(sweep: str | None, recipe: str | None, overrides: list[str]) -> Sweep:
    """Return the sweep that the command line asks for, checked."""
    if (sweep is None) == (recipe is None):
        raise UserError("give either --sweep NAME (or FILE) or --recipe NAME (or FILE)")
    reads = partial(recipe_sweep, recipe or "")
    if sweep is not None:
        reads = partial(read_sweep, find_sweep(sweep, SWEEPS))
    asked = reads(
        schema=Config, recipes=RECIPES, overrides=overrides, metrics=METRICS,
        complete=partial(pin, seen={}),
    )
    early = getattr(asked.scheduler, "early", None)
    if early is not None and early not in EARLY:
        raise UserError(f"{asked.file}: scheduler.early: no run reports {early}; there are "
                        f"{', '.join(EARLY)}")
    unknown = [key for key in asked.objectives if key not in (*METRICS, *EARLY, *OF_EPOCHS)]
    if unknown:
        raise UserError(f"{asked.file}: objectives: no run reports {', '.join(unknown)}; there are "
                        f"{', '.join((*METRICS, *EARLY, *OF_EPOCHS))}")
    if not asked.metric.startswith("validation."):
        return asked
    known = (*asked.trials, *asked.probes)
    if all(has_validation(trial.config.data) for trial in known):
        return asked
    if recipe is not None:
        return dataclasses.replace(asked, metric="mAP")  # nothing is selected among seeds
    raise UserError(
        f"{asked.file}: metric: {asked.metric} needs a validation part; set "
        "data.validation=0.1, or metric=mAP to select on the test set"
    )


def _dry_run(
    sweep: Sweep, cluster: array.Cluster, jobs: int | None, console: Console, *, retry_failed: bool
) -> int:
    views = array.survey(sweep, array.Queue(sweep, patient=True))
    due = len(array.due(views, retry_failed=retry_failed))
    if views:  # an algorithm may have proposed none yet
        console.print(table.live_table(sweep, views, most=len(views)))
    _tell_left_alone(views, console, retry_failed=retry_failed)
    _preflight(sweep, [view.trial for view in array.due(views, retry_failed=retry_failed)])
    more = f", {counted(sweep.to_propose, 'point')} to be proposed" if sweep.to_propose else ""
    if cluster == "local":
        plan = _plan(sweep, due + sweep.to_propose, jobs)
        _say(console, f"{due} to run on this machine{more}, {plan}")
    else:
        try:
            site.check(sweep, array.jobs_of(sweep, due))
        except slurm.NoAnswer as error:
            _say(console, f"not checked against the cluster: {str(error).splitlines()[0]}")
        sweep = dataclasses.replace(sweep, code=snapshots.working(sweep).folder)
        _tell_no_gpu(sweep, console)
        _say(console, f"{due} to submit{more}; sbatch gets:\n\n{_script(sweep, max(1, due))}")
    return 0


def _plan(sweep: Sweep, trials: int, jobs: int | None) -> str:
    """Say how many trials run at a time here, and on which share of this machine."""
    if sweep.ray.address is not None:
        return f"on the Ray at {sweep.ray.address}"
    together = sweep.ray.trials_per_gpu if sweep.backend == "ray" else 1
    return shares.plan(sweep.resources, trials, jobs, together)


def _tell_no_gpu(sweep: Sweep, console: Console) -> None:
    """Say that trials will compute on CPUs where the sweep does not say whether it wants GPUs."""
    if sweep.resources.gpus is None and not slurm.GPU_OPTIONS & set(sweep.slurm):
        _say(console, "each trial asks SLURM for no GPU and computes on the CPU; "
                      "resources.gpus=1 asks for one, resources.gpus=0 hides this line")


def _script(sweep: Sweep, count: int) -> str:
    if sweep.backend == "array":
        return slurm.script(sweep, count)
    from harness.cluster.ray import driver as ray_search  # late: only this backend needs it

    ray_search.check(sweep)
    return slurm.script(ray_search.allocation(sweep), 1)


def _status(sweep: Sweep, console: Console) -> int:
    views = array.survey(sweep, array.Queue(sweep, patient=True))
    if views:
        console.print(table.live_table(sweep, views, most=STATUS_ROWS))
    else:
        _say(console, f"{sweep.name}: {table.counts(views)}")
    _tell_troubles(views, console)
    _tell_left_alone(views, console, retry_failed=False)
    on_their_way = [view.trial.signature for view in views if view.state in array.ALIVE]
    for told in snapshots.mixed(sweep, on_their_way, read_records(sweep.folder)):
        _say(console, f"warning: trials run as they were submitted: {told}")
    return 0


def _cancel(sweep: Sweep, console: Console) -> int:
    ended = array.cancel(sweep)
    _say(console, f"{table.trials(len(ended))} ended; the same command without --cancel goes on")
    return 0


def _submit(
    sweep: Sweep, cluster: array.Cluster, jobs: int | None, console: Console, *, retry_failed: bool
) -> None:
    plan: list[str] = []

    def before(trials: list[Trial]) -> None:
        _preflight(sweep, trials)
        _fetch(trials)
        if cluster == "local":  # of the machine as it is without these trials
            plan.append(_plan(sweep, len(trials) + sweep.to_propose, jobs))

    due = array.launch(sweep, cluster, jobs=jobs, retry_failed=retry_failed, fetch=before)
    where = "to SLURM" if cluster == "slurm" else "on this machine"
    if due:
        _say(console, f"{table.trials(len(due))} submitted {where}; files: {sweep.folder}")
        if cluster == "slurm":
            _tell_no_gpu(sweep, console)
    for told in plan:
        _say(console, told)
    views = array.survey(sweep)
    searched = sweep.algorithm is not None and array.is_searched(sweep)
    if searched:
        _say(console, f"a search goes on {where}; points: {points_file(sweep.folder)}")
    if not due and not searched:
        _say(console, f"nothing to submit, {table.counts(views)}")
    _tell_left_alone(views, console, retry_failed=retry_failed)


def _preflight(sweep: Sweep, trials: list[Trial]) -> None:
    """Refuse now what every job would refuse when it starts."""
    from svll.runs.preflight import preflight_all, quietly  # numpy and the readers: not for --help

    with quietly():  # the jobs say the same
        preflight_all({trial.title: trial.config for trial in trials}, sweep.resources.ranks)


def _fetch(trials: list[Trial]) -> None:
    """Download the weights that trials start from; compute nodes may have no network."""
    models = {(t.config.model.name, t.config.model.weights): t.config.model for t in trials}
    for model in models.values():
        if model.weights not in (None, "shipped") and weights_file(model) is None:
            from svll.models.clip import fetch  # open_clip: seconds

            fetch(model.name, model.weights)


def _tell_left_alone(
    views: list[array.View], console: Console, *, retry_failed: bool
) -> None:
    left = sum(view.state == "failed" and not view.is_due for view in views)
    if left and not retry_failed:
        _say(console, f"{table.trials(left)} failed. Fix the cause, then add --retry-failed.")


def _follow(sweep: Sweep, console: Console) -> int:
    try:
        views = follow_sweep(sweep, console)
    except KeyboardInterrupt:
        _say(console, "no longer followed; the trials go on (--status shows, --cancel ends them)")
        raise
    console.print(table.final_table(sweep, views, Config.experiment.columns))
    _tell_troubles(views, console)
    from svll.reports.report import report_sweep  # matplotlib: a second

    page = report_sweep(sweep.folder)
    _say(console, f"{table.counts(views)}\nfiles: {sweep.folder}\nreport: {page}")
    left = with_proposed(sweep).to_propose if sweep.algorithm is not None else 0
    if left:
        _say(console, f"not proposed yet: {counted(left, 'point')}; the same command goes on")
    return 0 if not left and all(view.state in array.DONE for view in views) else 1


def _tell_troubles(views: list[array.View], console: Console) -> None:
    bad = [view for view in views if view.state in table.BAD]
    for text in table.troubles(bad[:TROUBLES]):
        _say(console, text)
    if len(bad) > TROUBLES:
        _say(console, f"and {table.trials(len(bad) - TROUBLES)} more")


def _say(console: Console, text: str) -> None:
    """Print words as they are: no markup, no wrapping."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
