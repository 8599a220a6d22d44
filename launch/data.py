"""Check a dataset, split your own images, or draw a synthetic benchmark.

    python launch/data.py check market1501 --root DIR
    python launch/data.py check list --root FILE.csv --content
    python launch/data.py split --root DIR --out FILE.csv --test 0.5 --validation 0.1
    python launch/data.py synthetic --root DIR
    python launch/data.py synthetic --root DIR --size 500 --kind vehicle --seed 2
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.training import progress
from launch.cli import EXIT_STATUS, as_typed, new_app, run, subcommand
from svll.base.protocols import PROTOCOLS

if TYPE_CHECKING:  # numpy and the readers take longer to import than --help should
    from svll.data.checking import CheckResult, PartCounts

SHOWN = 100
"""Broken images that are named; the others are counted."""

app = new_app()


@app.callback(help=as_typed(__doc__ or ""), epilog=EXIT_STATUS)
def _together() -> None:
    """Hold the commands together."""


def main() -> None:
    """Run the command that is typed."""
    run(app)


@subcommand(app)
def check(
    name: Annotated[
        str,
        typer.Argument(
            help="market1501, msmt17, dukemtmc, occluded_duke, veri776, vehicleid_800, _1600 or "
            "_2400; folder (your own images in Market-1501's layout); list (a CSV file)."
        ),
    ],
    root: Annotated[
        Path, typer.Option(help="The dataset's folder or its parent, or a list's CSV file.")
    ],
    content: Annotated[
        bool, typer.Option("--content", help="Also hash the bytes of all images.")
    ] = False,
    threads: Annotated[
        int, typer.Option(min=0, help="Number of decoding threads; 0 uses all cores.")
    ] = 0,
) -> int:
    """Count a dataset's images, and decode each with the decoder that training uses.

        python launch/data.py check market1501 --root DIR
    """
    from svll.data import checking

    found = checking.check(name, root, content=content, threads=threads, bar=progress.counter)
    typer.echo(f"{found.dataset}: {found.protocol} ({PROTOCOLS[found.protocol]})")
    typer.echo(_table(found.parts))
    published = found.published_cameras
    typer.echo(f"cameras      {found.cameras}" + (f", published {published}" if published else ""))
    typer.echo(f"fingerprint  {found.fingerprint}")
    if found.content_hash:
        typer.echo(f"content      {found.content_hash}")
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(_verdict(found))
    return 0 if found.is_sound else 1


def _table(parts: "tuple[PartCounts, ...]") -> str:
    """Return the parts' numbers as lines, with the published ones behind them."""
    lines = [f"{'part':10} {'identities':>10} {'images':>8} {'cameras':>7}   published"]
    for part in parts:
        line = f"{part.name:10} {part.identities:10} {part.images:8} {part.cameras:7}"
        if part.published:
            identities, images = part.published
            line += f"   {identities} identities"
            line += f", {images} images" if images is not None else ""
        lines.append(line)
    return "\n".join(lines)


def _verdict(result: "CheckResult") -> str:
    """Return the broken images by name, or that there is none."""
    if result.is_sound:
        return f"all {result.images} images decode"
    lines = [f"{len(result.faults)} of {result.images} images are missing or broken:"]
    lines += [f"  {path}: {reason}" for path, reason in result.faults[:SHOWN]]
    if len(result.faults) > SHOWN:
        lines.append(f"  and {len(result.faults) - SHOWN} more")
    return "\n".join(lines)


@subcommand(app)
def split(
    root: Annotated[
        Path,
        typer.Option(
            help="A folder with one folder per identity, a folder of images named like "
            "0002_c1s1_000451_00.jpg, or a CSV list without split."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The CSV list to write; it must not exist yet.")],
    test: Annotated[
        float | None,
        typer.Option(help="Share of the identities for query and gallery (0 to 1). [default: 0.5]"),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Share of the other identities for validation (0 to 1). [default: 0.1, "
                     "at least 2 identities; none where there are few]"),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(help="Queries per test identity, if cameras are unknown. [default: 1]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 1,
) -> None:
    """Split your own images by identity into train, validation, query and gallery.

        python launch/data.py split --root DIR --out FILE.csv
    """
    from svll.data import own_split
    from svll.data.readers import csv_list as image_list

    options = own_split.Options(test=test, validation=validation, queries=queries, seed=seed)
    own_split.write_split(root, out, options)
    dataset = image_list.load(out)
    for name, part in dataset.parts().items():
        identities = len(set(part.identities.tolist()))
        typer.echo(f"{name:10} {len(part):6} images of {identities} identities")
    typer.echo(f"{out}: protocol {dataset.protocol}; to use it: data.name=list data.root={out}")


@subcommand(app)
def synthetic(
    root: Annotated[Path, typer.Option(help="The folder to write, in Market-1501's layout.")],
    size: Annotated[
        str, typer.Option(help="tiny, small, or the number of training and of test identities.")
    ] = "small",
    kind: Annotated[Literal["person", "vehicle"], typer.Option(help="What to draw.")] = "person",
    seed: Annotated[int, typer.Option(help="Seed of the drawn world.")] = 1,
) -> None:
    """Draw a synthetic ReID benchmark, unless the folder already holds it.

        python launch/data.py synthetic --root DIR --size 200
    """
    from svll.data.readers.drawn_world import load_world
    from svll.world.world import named_world, write_world

    world = named_world(int(size) if size.isdigit() else size, kind, seed=seed)
    dataset = load_world(write_world(world, root))
    for name in ("train", "query", "gallery"):
        part = getattr(dataset, name)
        identities = len(set(part.identities.tolist()))
        typer.echo(f"{name:8} {len(part):6} images of {identities} identities")
    typer.echo(f"{root}: fingerprint {dataset.fingerprint}")


if __name__ == "__main__":
    main()
