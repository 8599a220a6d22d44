"""Submit a sweep, follow it, go on with it, cancel it: on SLURM or on this machine.

    python launch/slurm.py --sweep sweeps/loss_weights.yaml --dry-run
    python launch/slurm.py --sweep sweeps/loss_weights.yaml --follow
    python launch/slurm.py --sweep sweeps/loss_weights.yaml slurm.partition=gpu resources.gpus=1
    python launch/slurm.py --recipe market1501 seeds=[1,2,3] data.root=DIR

The same command again submits only what is missing, failed or stopped.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from harness.cluster import array, slurm, table
from harness.cluster.follow import follow as follow_sweep
from harness.errors import UserError
from harness.sweeps import Sweep, read_sweep, recipe_sweep
from launch.cli import command
from svll.config import RECIPES, Config

RESULT_KEYS = ("mAP", "mINP", "cmc.1", "cmc.5", "cmc.10")
METRICS = [*(f"validation.{key}" for key in RESULT_KEYS), *RESULT_KEYS]
"""What trials may be ranked by: the keys of result.json."""
TEST_COLUMNS = {"test mAP": "mAP", "test Rank-1": "cmc.1"}


class Cluster(str, Enum):
    """Where trials run."""

    slurm = "slurm"
    local = "local"


@command(__doc__)
def main(
    sweep: Annotated[Path | None, typer.Option(help="A sweep file.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Or one recipe, as a single trial.")] = None,
    cluster: Annotated[
        Cluster | None, typer.Option(help="Default: slurm where sbatch is, else local.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show trials and what sbatch would get; submit nothing.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show where each trial is.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Submit, then watch until nothing is on its way.")
    ] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End all that is on its way.")] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Local: trials at a time. Default: what the cores allow.", min=1)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value of the trials (stage2.lr=1e-5) or the sweep (seeds=[1,2])"),
    ] = None,
) -> int:
    """Run a sweep. Exit status 0 only when every trial that was waited for is complete."""
    if sum((dry_run, status, follow, cancel)) > 1:
        raise UserError("choose one of --dry-run, --status, --follow, --cancel")
    asked = _read(sweep, recipe, overrides or [])
    place = cluster.value if cluster else "slurm" if slurm.is_here() else "local"
    console = table.wide(Console())
    if dry_run:
        return _dry_run(asked, place, console)
    if status:
        return _status(asked, console)
    if cancel:
        return _cancel(asked, console)
    _submit(asked, place, jobs, console)
    return _follow(asked, console) if follow else 0


def _read(sweep: Path | None, recipe: str | None, overrides: list[str]) -> Sweep:
    if (sweep is None) == (recipe is None):
        raise UserError("give either --sweep FILE or --recipe NAME")
    options = {"schema": Config, "recipes": RECIPES, "overrides": overrides, "metrics": METRICS}
    ...
