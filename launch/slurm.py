"""Submit, follow, resume or cancel a sweep, on SLURM or on this machine.

    python launch/slurm.py --sweep loss_weights --dry-run
    python launch/slurm.py --sweep loss_weights --follow
    python launch/slurm.py --sweep loss_weights slurm.partition=gpu resources.gpus=1
    python launch/slurm.py --recipe synthetic seeds=[1,2,3] resources.time=1h
    python launch/slurm.py --sweep-name tokens --recipe synthetic model.prompt_tokens=2,4 seed=1,2
    python launch/slurm.py --doctor
    python launch/slurm.py --help-config

The same command again submits only trials that are missing, stopped or killed; --retry-failed adds
failed ones.
"""

import dataclasses
import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.base.errors import UserError, WrongUsage
from harness.base.paths import expanded
from harness.base.units import counted
from harness.cluster import snapshots
from harness.cluster.known_places import all_places, default_place, place_named
from harness.cluster.launch import PLANS, due, launch, shared_with
from harness.cluster.launch import cancel as cancel_sweep
from harness.cluster.place import NoAnswer, Place
from harness.cluster.records import read_records
from harness.cluster.states import ALIVE, DONE, TrialState, is_searched, survey
from harness.config.build import build
from harness.config.completion import keys_of, recipes_in, sweeps_in
from harness.config.fields import field_types, text_fields
from harness.config.recipes import recipe_files
from harness.config.sources import parse_overrides
from harness.listing.tables import states_as_json
from harness.reporting import terminal as table
from harness.reporting.follow import follow as follow_sweep
from harness.reporting.terminal import say
from harness.sweeps.keys import ALGORITHMS, SCHEDULERS, SweepFile, find_sweep
from harness.sweeps.reading import Sweep, Trial, read_sweep, with_proposed
from harness.sweeps.space import points_file
from harness.sweeps.sweep_results import words_of
from launch.cli import as_called, command, print_config_help, refuse_without
from svll.config import RECIPES, SWEEPS, Config
from svll.data.datasets import has_validation
from svll.migration.recognition import read_foreign
from svll.migration.typed_words import OPTIONS, refuse_words_of_others
from svll.reuse.fingerprints import pin, weights_file

EARLY = ("prompts.mAP", "prompts.margin")
"""Metrics by which a scheduler may judge stage 1."""
OF_EPOCHS = ("images_per_s", "memory_gb", "loss")
"""Further numbers of an epoch that can be objectives."""
RESULT_KEYS = ("mAP", "mINP", "cmc.1", "cmc.5", "cmc.10")
METRICS = [*(f"validation.{key}" for key in RESULT_KEYS), *RESULT_KEYS]
"""Metrics that can rank trials: keys of result.json."""
TROUBLES = 20
"""Of more failed trials, only the first are listed."""


@dataclasses.dataclass
class Keys(SweepFile):
    """The keys of a sweep file."""  # as --help-config shows them

    metric: str = Config.experiment.metric


class Cluster(StrEnum):
    """Where trials run."""

    slurm = "slurm"
    local = "local"


@command(__doc__, OPTIONS)
def main(
    sweep: Annotated[str | None, typer.Option(
        help="A sweep file, or the name of a shipped sweep.",
        autocompletion=sweeps_in(SWEEPS))] = None,
    recipe: Annotated[str | None, typer.Option(
        help="Or a recipe (name, file or A+B+C), as a single trial.",
        autocompletion=recipes_in(RECIPES))] = None,
    sweep_name: Annotated[str | None, typer.Option(
        help="With --recipe: a grid of this name; KEY=A,B searches a key.")] = None,
    cluster: Annotated[Cluster | None, typer.Option(
        help="Default: slurm where sbatch is, else local.")] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Show trials and the sbatch script; submit nothing.")] = False,
    status: Annotated[bool, typer.Option(
        "--status", help="Show the trials' states; without a sweep, all that is in runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --status: print JSON.")] = False,
    every: Annotated[bool, typer.Option(
        "--all", help=f"Show all trials, not only the first {table.ROWS}.")] = False,
    follow: Annotated[bool, typer.Option(
        "--follow", help="Submit, then watch until all have ended.")] = False,
    cancel: Annotated[bool, typer.Option(
        "--cancel", help="End all queued and running trials.")] = False,
    doctor: Annotated[bool, typer.Option(
        "--doctor", help="Check each partition (or this machine) with a job.")] = False,
    jobs: Annotated[int | None, typer.Option(
        help="Local: trials at a time; default: by cores and GPUs.", min=1)] = None,
    first: Annotated[int | None, typer.Option(
        help="Only the sweep's first N trials.", min=1)] = None,
    ray_address: Annotated[str | None, typer.Option(
        help="Search on a running Ray at HOST:PORT.")] = None,
    retry_failed: Annotated[bool, typer.Option(
        "--retry-failed", help="Submit failed trials too.")] = False,
    help_config: Annotated[bool, typer.Option(
        "--help-config", help="Print a sweep file's keys, or those with a word.")] = False,
    overrides: Annotated[list[str] | None, typer.Argument(
        help="key=value of trials (stage2.lr=1e-5) or of the sweep (seeds=[1,2])",
        autocompletion=keys_of(Keys, Config))] = None,
) -> int:
    """Run a sweep. Exit status 0 only if every trial that it waited for is complete."""
    if help_config:
        return _help_config(overrides or [])
    if sum((dry_run, status, follow, cancel, doctor)) > 1:
        raise WrongUsage("choose one of --dry-run, --status, --follow, --cancel, --doctor")
    refuse_without("--status, --dry-run or --follow", status or dry_run or follow, {"--all": every})
    refuse_without("--status", status, {"--json": as_json})
    if status and sweep is None and recipe is None and sweep_name is None:
        return _list(overrides or [], every=every, as_json=as_json)
    if doctor and sweep is None and recipe is None and sweep_name is None:
        recipe = "synthetic"  # any recipe; it is not run
    settings = [*(overrides or []), *([f"ray.address={ray_address}"] if ray_address else [])]
    asked = dataclasses.replace(_read(sweep, recipe, settings, sweep_name), first=first)
    if first is not None and asked.algorithm is not None:
        raise UserError(f"{asked.file}: --first: an algorithm proposes the points; set their "
                        "number with samples=N")
    place = place_named(cluster.value if cluster is not None else default_place())
    if asked.ray.address is not None:
        if asked.backend != "ray":
            raise UserError(f"{asked.file}: ray.address needs backend: ray")
        place = place_named("local")  # the driver is here, wherever its trials are
    console, most = table.wide(Console()), None if every else table.ROWS
    if doctor:
        from harness.cluster.doctor.diagnosis import diagnose  # late: only --doctor needs it

        return diagnose(asked, cluster=place.name == "slurm", console=console)
    if dry_run:
        return _dry_run(asked, place, jobs, console, most, retry_failed=retry_failed)
    if status:
        return _status(asked, console, most, as_json=as_json)
    if cancel:
        ended = table.trials(len(cancel_sweep(asked)))
        say(console, f"{ended} ended; the same command without --cancel resumes")
        return 0
    _submit(asked, place, jobs, console, retry_failed=retry_failed)
    return _follow(asked, console, most) if follow else 0


def _help_config(words: list[str]) -> int:
    kinds = {f"scheduler.{name}.": kind for name, kind in SCHEDULERS.items()}
    kinds |= {f"algorithm.{name}.": kind for name, kind in ALGORITHMS.items()}
    print_config_help({"": Keys, **kinds}, words)
    typer.echo(as_called("\nevery other key is one of the trials: python launch/train.py "
                         "--help-config"))
    return 0


def _read(
    sweep: str | None, recipe: str | None, overrides: list[str], name: str | None = None
) -> Sweep:
    """Return the sweep that the command line asks for, checked. name: of a sweep without a file."""
    if name is not None and sweep is not None:
        raise WrongUsage("--sweep-name makes a sweep without a file; to rename the sweep of a file "
                         "write name=NAME")
    if name is not None and recipe is None:
        runs = [word.partition("=")[2] for word in overrides if word.startswith("run.runs=")]
        recipe, *words = words_of(Path(expanded([Config().run.runs, *runs][-1])), name)
        overrides = [*words, *overrides]
    if (sweep is None) == (recipe is None):
        raise WrongUsage("give either --sweep NAME (or FILE) or --recipe NAME (or FILE)")
    refuse_words_of_others(overrides, field_types(Config))
    reads = partial(read_sweep, recipe or "", name=name)
    if sweep is not None:
        reads = partial(read_sweep, find_sweep(sweep, SWEEPS))
    asked = reads(schema=Config, recipes=RECIPES, overrides=overrides, metrics=METRICS,
                  complete=partial(pin, seen={}))
    early = getattr(asked.scheduler, "early", None)
    for key, names, known in (("scheduler.early", [early] if early else [], EARLY),
                              ("objectives", asked.objectives, (*METRICS, *EARLY, *OF_EPOCHS))):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"{asked.file}: {key}: no run reports {', '.join(unknown)}; choose one "
                            f"of {', '.join(known)}")
    if not asked.metric.startswith("validation."):
        return asked
    if all(has_validation(trial.config.data) for trial in (*asked.trials, *asked.probes)):
        return asked
    if recipe is not None and not asked.space.dimensions:
        return dataclasses.replace(asked, metric="mAP")  # nothing is selected among seeds
    raise UserError(f"{asked.file}: metric: {asked.metric} needs a validation part; set "
                    "data.validation=0.1, or metric=mAP to select on the test set")


def _dry_run(
    sweep: Sweep, place: Place, jobs: int | None, console: Console, most: int | None, *,
    retry_failed: bool,
) -> int:
    for name in sweep.bases:
        for file in recipe_files(name, RECIPES, (Path(sweep.file).parent, Path())):
            if converted := read_foreign(file):
                say(console, converted.text())
    states = survey(sweep, all_places(patient=True), retry_failed=retry_failed)
    waiting = due(states, retry_failed=retry_failed)
    if states:  # an algorithm may have proposed none yet
        _print_trials(sweep, states, console, most)
    _print_failed(states, console, retry_failed=retry_failed)
    _preflight(sweep, [one.trial for one in waiting])
    count, code = len(waiting), snapshots.current_code(sweep).folder
    job, job_count = PLANS[sweep.backend].jobs(dataclasses.replace(sweep, code=code), count)
    try:
        place.check(job, job_count)
    except NoAnswer as error:
        say(console, f"not checked against the cluster: {str(error).splitlines()[0]}")
    more = f", {counted(sweep.to_propose, 'point')} to be proposed" if sweep.to_propose else ""
    say(console, f"{count} to run {place.title}{more}",
        place.describe(sweep, count + sweep.to_propose, jobs),
        place.preview(job, max(1, job_count)))
    return 0


def _print_trials(
    sweep: Sweep, states: list[TrialState], console: Console, most: int | None
) -> None:
    say(console, f"{sweep.name}: {table.counts(states)}")
    for part in table.trial_rows(sweep, states, most=most, width=console.width):
        console.print(part)


def _list(overrides: list[str], *, every: bool, as_json: bool) -> int:
    """List the runs and sweeps in the folder of runs."""
    place = build(Config, parse_overrides(overrides, text_fields(Config))).run
    from launch.runs import print_listing  # late: it is another command

    print_listing([Path(place.runs)], every=every, as_json=as_json)
    return 0


def _status(sweep: Sweep, console: Console, most: int | None, *, as_json: bool) -> int:
    faults: list[str] = []
    states = survey(sweep, all_places(patient=True), faults=faults)
    if as_json:
        typer.echo(json.dumps({**states_as_json(sweep, states), "faults": faults}, indent=2))
        return int(bool(faults))
    _print_trials(sweep, states, console, most)
    _print_troubles(states, console)
    _print_failed(states, console, retry_failed=False)
    notes = [one.note for one in states]
    try:
        records = read_records(sweep.folder)
    except UserError as error:  # another user's, or damaged
        say(console, f"warning: {error}")
        return int(bool(faults))
    say(console, *(f"warning: {fault}" for fault in faults if fault not in notes))
    alive = [one.trial.signature for one in states if one.state in ALIVE]
    for line in snapshots.differences(sweep, alive, records):
        say(console, f"warning: trials run as they were submitted: {line}")
    say(console, *(f"warning: {line}" for line in shared_with(sweep, records)))
    return int(bool(faults))


def _submit(
    sweep: Sweep, place: Place, jobs: int | None, console: Console, *, retry_failed: bool
) -> None:
    described: list[str] = []

    def before(trials: list[Trial]) -> None:
        _preflight(sweep, trials)
        _fetch(trials)
        # the machine's state before these trials
        described.append(place.describe(sweep, len(trials) + sweep.to_propose, jobs))

    waiting = launch(sweep, place.name, jobs=jobs, retry_failed=retry_failed, fetch=before)
    if waiting:
        submitted = f"{table.trials(len(waiting))} submitted {place.title}"
        say(console, f"{submitted}; files: {sweep.folder}")
    say(console, *described)
    places = all_places(patient=True)  # it was submitted, whatever answers now
    states = survey(sweep, places)
    searched = sweep.algorithm is not None and is_searched(sweep, places)
    if searched:
        say(console, f"A search is running {place.title}; points: {points_file(sweep.folder)}")
    if not waiting and not searched:
        say(console, f"nothing to submit, {table.counts(states)}")
    _print_failed(states, console, retry_failed=retry_failed)


def _preflight(sweep: Sweep, trials: list[Trial]) -> None:
    """Refuse now what every job would refuse when it starts."""
    from svll.runs.preflight import preflight_all, quietly  # numpy and the readers: not for --help

    with quietly():  # the jobs log the same
        preflight_all({trial.title: trial.config for trial in trials}, sweep.resources.ranks)


def _fetch(trials: list[Trial]) -> None:
    """Download the weights that trials start from; compute nodes may have no network."""
    models = {(t.config.model.name, t.config.model.weights): t.config.model for t in trials}
    for model in models.values():
        if model.weights not in (None, "shipped") and weights_file(model) is None:
            from svll.models.clip import fetch  # open_clip: seconds

            fetch(model.name, model.weights)


def _print_failed(states: list[TrialState], console: Console, *, retry_failed: bool) -> None:
    left = sum(one.state == "failed" and not one.is_due for one in states)
    if left and not retry_failed:
        say(console, f"{table.trials(left)} failed. Fix the cause, then add --retry-failed.")


def _follow(sweep: Sweep, console: Console, most: int | None) -> int:
    try:
        states = follow_sweep(sweep, console)
    except KeyboardInterrupt:
        say(console, "no longer followed; trials continue (--status shows, --cancel ends them)")
        raise
    for part in table.final_table(sweep, states, Config.experiment.columns, width=console.width,
                                  most=most):
        console.print(part)
    _print_troubles(states, console)
    say(console, table.counts(states), f"files: {sweep.folder}", "Writing the report ...")
    from svll.reports.report import report_sweep  # matplotlib: a second

    say(console, *map(as_called, report_sweep(sweep.folder)))
    left = with_proposed(sweep).to_propose if sweep.algorithm is not None else 0
    if left:
        say(console, f"not proposed yet: {counted(left, 'point')}; the same command continues")
    return 0 if not left and all(one.state in DONE for one in states) else 1


def _print_troubles(states: list[TrialState], console: Console) -> None:
    bad = [one for one in states if one.state in table.BAD]
    say(console, *table.troubles(bad[:TROUBLES]))
    if len(bad) > TROUBLES:
        say(console, f"and {table.trials(len(bad) - TROUBLES)} more")


if __name__ == "__main__":
    main()
