"""One run in the foreground, or one rank of it under torchrun, deepspeed or srun.

    python launch/train.py --recipe synthetic
    python launch/train.py --recipe synthetic stage1.lss_weight=0 seed=2
    torchrun --nproc-per-node 2 launch/train.py --recipe synthetic
"""

from pathlib import Path
from typing import Annotated

import typer

from harness.config import build, find_recipe, parse_overrides, read_recipe, signature, to_yaml
from harness.runs import Run
from launch.cli import command, print_result
from svll.config import RECIPES, Config


@command(__doc__)
def main(
    recipe: Annotated[str, typer.Option(help="A recipe's name or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value ..., such as stage2.lr=1e-5")
    ] = None,
) -> int:
    """Train and test one configuration; going on where an earlier attempt stopped."""
    file = find_recipe(recipe, RECIPES)
    config = build(Config, [*read_recipe(file, Config), *parse_overrides(overrides or [])])
    run = Run(Path(config.run.runs).absolute() / (config.run.name or file.stem) / signature(config))
    run.create(to_yaml(config))
    from harness.trial import execute

    outcome = execute(run)
    if outcome == "complete":
        print_result(run)
        return 0
    status = run.status()
    typer.echo(f"{outcome}: {status.get('error') or status.get('reason')}", err=True)
    typer.echo(f"log: {run.log_file}", err=True)
    return 1


if __name__ == "__main__":
    main()
