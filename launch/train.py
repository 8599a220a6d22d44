"""Train and test one configuration in the foreground, or as a rank of torchrun or srun.

    python launch/train.py --recipe synthetic
    python launch/train.py --recipe synthetic stage1.lss_weight=0 seed=2
    python launch/train.py --recipe market1501 --dry-run
    python launch/train.py --data DIR
    python launch/train.py --data DIR --extends market1501 --dry-run
    python launch/train.py --recipe synthetic --profile
    torchrun --nproc-per-node 2 launch/train.py --recipe synthetic
    python launch/train.py --help-config stage1

--data takes your own images: a folder per identity, or names like 0002_c1s1_000451_00.jpg. It
splits them by identity, picks the settings that fit, and says which.

deepspeed can start ranks, too. On SLURM, launch/slurm.py --recipe NAME submits the run as a job
that resumes after preemption or its time limit; srun alone only starts ranks.
"""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from harness.base.errors import UserError, WrongUsage
from harness.base.machine import allotted_gpus
from harness.base.paths import SAFETENSORS, refuse, typed
from harness.base.units import counted
from harness.config.build import build
from harness.config.completion import keys_of, recipes_in
from harness.config.fields import field_types, text_fields
from harness.config.recipes import named_recipe, recipe_files, recipe_stem
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.config.values import to_yaml
from harness.reporting.terminal import wide
from harness.runs import peers
from harness.runs.logs import announce_torch
from harness.runs.run import Run
from harness.runs.stopping import Stopped, stop_on_signals
from launch.cli import as_called, command, print_config_help, print_result, refuse_without
from svll.config import RECIPES, Config
from svll.migration.recognition import read_foreign
from svll.migration.typed_words import OPTIONS, refuse_words_of_others
from svll.reuse.fingerprints import pin
from svll.runs.preflight import preflight, quietly

if TYPE_CHECKING:  # torch: seconds that --help should not take
    from svll.runs.cost_estimate import Estimate
    from svll.runs.own_data import OwnRun

log = logging.getLogger(__name__)
LONGEST = 5
"""Operations of a profile that are printed."""


@command(__doc__, OPTIONS)
def main(
    recipe: Annotated[str | None, typer.Option(
        help="A recipe: name, YAML file or several, A+B+C.",
        autocompletion=recipes_in(RECIPES))] = None,
    data: Annotated[Path | None, typer.Option(
        help="Your own images: a folder (or CSV list), instead of --recipe.")] = None,
    extends: Annotated[str | None, typer.Option(
        help="With --data: the recipe to start from. [default: market1501]",
        autocompletion=recipes_in(RECIPES))] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Print the configuration, memory and hours; no training.")] = False,
    profile: Annotated[bool, typer.Option(
        "--profile", help="Profile both stages; no training.")] = False,
    help_config: Annotated[bool, typer.Option(
        "--help-config", help="Print all keys, or those that contain a given word.")] = False,
    local_rank: Annotated[  # deepspeed passes it; only LOCAL_RANK is used
        int | None, typer.Option("--local_rank", hidden=True)
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(
        help="Settings as key=value, such as stage2.lr=1e-5.",
        autocompletion=keys_of(Config))] = None,
) -> int:
    """Train and test one configuration; resume where an earlier attempt stopped."""
    if help_config:
        print_config_help({"": Config}, overrides or [])
        return 0
    own = _own(recipe, data, extends, overrides or [])
    config = own.config if own else _config(recipe, overrides or [], dry_run=dry_run)
    if dry_run:
        return _dry_run(config)
    from harness.cluster.slurm.job import join_step
    from harness.runs.execute import execute

    join_step()
    rank, world = peers.own_place()
    place = config.run
    pinned = pin(config)
    runs = Path(place.runs).absolute()
    run = Run(runs / (place.name or recipe_stem(recipe or "")) / signature(pinned))
    with peers.together(runs):
        if not run.is_complete():
            refuse("run.runs", run.folder, SAFETENSORS)
            try:
                _check(config, world)
            except Stopped as reason:
                typer.echo(f"stopped {reason}", err=True)
                return 1
        run.create(to_yaml(pinned))
        if profile:
            return _profile(run, pinned)
        outcome = execute(run)
    if outcome == "complete":
        if rank == 0:
            print_result(run)
            if own and data:
                _print_next(run, own, data)
        return 0
    typer.echo(f"{outcome}; log: {run.log_file}", err=True)
    return 1


def _config(recipe: str | None, overrides: list[str], *, dry_run: bool) -> Config:
    """Return the configuration of a recipe with overrides; a dry run prints what was converted from
    another program's. Raises UserError."""
    if recipe is None:
        raise WrongUsage("give --recipe NAME (or FILE), or --data DIR for your own images; --help "
                         "shows examples")
    refuse_words_of_others(overrides, field_types(Config))
    for file in recipe_files(recipe, RECIPES) if dry_run else ():
        if converted := read_foreign(file):
            typer.echo(converted.text())
    given = parse_overrides(overrides, text_fields(Config))
    return build(Config, [*named_recipe(recipe, Config, RECIPES), *given])


def _own(
    recipe: str | None, data: Path | None, extends: str | None, overrides: list[str]
) -> "OwnRun | None":
    """Return the run on a user's own images, which the first rank tells; None without --data."""
    refuse_without("--data", data, {"--extends": extends})
    if data is None:
        return None
    if recipe is not None:
        raise WrongUsage(f"--data starts from the recipe of --extends: write --extends {recipe}")
    refuse_words_of_others(overrides, field_types(Config))
    from harness.cluster.slurm.job import join_step
    from svll.runs.own_data import RECIPE, own_run  # late: numpy and the readers

    join_step()
    own = own_run(data, extends or RECIPE, overrides)
    if peers.own_place()[0] == 0:
        typer.echo("\n".join([*own.found, "The same run by its recipe, here and as a job:"]))
        words = " ".join(map(typed, own.words))
        job = " ".join(typed(_of_sweep(word)) for word in own.words)
        typer.echo(as_called(f"  python launch/train.py --recipe {words}\n"
                             f"  python launch/slurm.py --recipe {job}\n"))
    return own


def _of_sweep(word: str) -> str:
    """Return an override as a sweep takes it: for the run's name its own, a plain folder name."""
    key, _, name = word.partition("=")
    if key != "run.name":
        return word
    name = re.sub(r"[^\w.-]", "_", name)
    return f"name={name}" if re.match("[A-Za-z0-9]", name) else f"name=own{name}"


def _print_next(run: Run, own: "OwnRun", images: Path) -> None:
    """Print the commands that use what was trained."""
    weights = typed(run.folder)
    typer.echo("Search and export:")
    typer.echo(as_called(
        f"  python launch/search.py --weights {weights} --query {typed(own.query)} "
        f"--gallery {typed(images)} --out results\n"
        f"  python launch/export.py --weights {weights} --out model.onnx"
    ))


def _check(config: Config, world: int) -> None:
    """Raise UserError for what the run would refuse; only the first rank reads the datasets."""
    if world == 1:
        _check_gpus()
        with quietly():
            preflight(config)
        return
    with stop_on_signals():
        peers.meet(60 * config.engine.timeout)
        if peers.own_place()[0] == 0:
            announce_torch(log)
        from harness.training import ranks  # late: torch takes seconds

        ranks.init_ranks(config.engine.timeout)
        ranks.check_stop("the ranks joined")
    try:
        with ranks.leader_first() as acts, quietly():
            if acts:
                preflight(config, world)
    except RuntimeError as error:
        if ranks.rank() == 0:
            raise
        raise UserError(str(error)) from None


def _check_gpus() -> None:
    """Raise UserError when torch cannot use the GPUs that this process was given, if any."""
    if allotted_gpus():
        announce_torch(log)
        from harness.training import ranks  # late: torch takes seconds

        ranks.check_gpus()


def _profile(run: Run, config: Config) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a machine without GPU as an error
    from harness.training.ranks import rank
    from svll.runs.profiling import profile_run

    profiles = profile_run(run, config)
    if rank() != 0:
        return 0
    console = wide(Console())
    for one in profiles:
        title = f"{one.stage}: {counted(one.steps, 'step')}, {one.seconds:.3g} s"
        table = Table("kind", "s", "share", "calls", title=title)
        kinds = one.kinds()
        total = sum(kind.seconds for kind in kinds)
        for name, seconds, calls in kinds:
            table.add_row(name, f"{seconds:.3g}", f"{seconds / total:.0%}", f"{calls:,}")
        console.print(table)
        typer.echo(", ".join(f"{name} {s:.3g} s" for name, s in one.phases.items()))
        longest = one.operations[:LONGEST]
        typer.echo("longest: " + ", ".join(f"{o.name} {o.seconds / total:.0%}" for o in longest))
        typer.echo(f"trace, for ui.perfetto.dev: {one.trace}\n")
    return 0


def _dry_run(config: Config) -> int:
    _check_gpus()
    size = preflight(config)
    log.info("measuring a step of each stage: some seconds, minutes for large models")
    from svll.runs.cost_estimate import estimate  # torch

    typer.echo(to_yaml(config))
    typer.echo(f"training part ({size.source}): {size.images} images, {size.identities} "
               f"identities, {size.cameras} cameras, {size.views} views\n")
    costs = estimate(config, size)
    console = wide(Console())
    for table in _tables(costs):
        console.print(table)
    typer.echo(f"For one rank on this machine in {costs.precision}, measured on parts of batches, "
               "several times each.\nbefore: encoding what all steps share, once, before the first "
               "step. Decoding, validation\nand test are not counted.")
    if costs.precision != config.engine.precision:
        typer.echo(f"This machine emulates {config.engine.precision}, many times slower: train "
                   "with engine.precision=fp32.")
    return 0


def _tables(estimate: "Estimate") -> list[Table]:
    groups = Table("stage", "group", "tensors", "parameters", "lr, epoch 1", "lr", "weight decay")
    for stage, name, tensors, parameters, *rates in estimate.groups:
        numbers = (f"{rate:.3g}" for rate in rates)
        groups.add_row(stage, name, str(tensors), f"{parameters:,}", *numbers)
    costs = Table("stage", "steps", "s per step", "before, s", "hours", "memory, GB")
    for cost in estimate.costs:
        seconds = str(cost.step_s), str(cost.before_s), str(cost.hours)
        costs.add_row(cost.stage, f"{cost.steps:,}", *seconds, f"{cost.memory_gb:.2f}")
    return [groups, costs]


if __name__ == "__main__":
    main()
