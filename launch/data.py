"""Datasets: draw the synthetic one.

    python launch/data.py synthetic --root DIR
    python launch/data.py synthetic --root DIR --size 500 --kind vehicle --seed 2
"""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from launch.cli import as_typed, new_app, run

app = new_app()


@app.callback(help=as_typed(__doc__ or ""))
def main() -> None:
    """Hold the commands together."""


@app.command()
def synthetic(
    root: Annotated[Path, typer.Option(help="The folder to write, in Market-1501's layout.")],
    size: Annotated[
        str, typer.Option(help="tiny, small, or a number of training and test identities.")
    ] = "small",
    kind: Annotated[str, typer.Option(help="person or vehicle.")] = "person",
    seed: Annotated[int, typer.Option(help="Another seed is another world.")] = 1,
) -> None:
    """Draw a synthetic ReID benchmark; nothing is done when the folder has it already."""
    from svll.data.synthetic import load_world, named_world, write_world

    if kind not in ("person", "vehicle"):
        raise typer.BadParameter("must be person or vehicle", param_hint="--kind")
    world = named_world(
        int(size) if size.isdigit() else size, cast(Literal["person", "vehicle"], kind), seed=seed
    )
    dataset = load_world(write_world(world, root))
    for name in ("train", "query", "gallery"):
        part = getattr(dataset, name)
        identities = len(set(part.identities.tolist()))
        typer.echo(f"{name:8} {len(part):6} images of {identities} identities")
    typer.echo(f"{root}: fingerprint {dataset.fingerprint}")


if __name__ == "__main__":
    run(app)
