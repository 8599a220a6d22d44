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

from harness.base.paths import typed
from harness.training import progress
from launch.cli import EXIT_STATUS, Version, as_typed, new_app, run, subcommand
from svll.base.protocol_names import PROTOCOLS

if TYPE_CHECKING:  # numpy and the readers take longer to import than --help should
    from svll.base.records import Dataset
    from svll.data.checking import PartCounts

SHOWN = 100
"""How many broken images are named; the others are counted."""

app = new_app()


@app.callback(help=as_typed(__doc__ or ""), epilog=EXIT_STATUS)
def _together(version: Version = False) -> None:
    """Group the commands."""


def main() -> None:
    """Run the command line."""
    run(app)


@subcommand(app)
def check(
    name: Annotated[str, typer.Argument(
        help="market1501, msmt17, dukemtmc, occluded_duke, veri776, vehicleid_800, _1600 or _2400; "
        "folder (your own images in Market-1501's layout); list (a CSV file).")],
    root: Annotated[Path, typer.Option(help="Folder of the dataset, its parent, or a CSV list.")],
    content: Annotated[bool, typer.Option(
        "--content", help="Also hash the bytes of all images.")] = False,
    threads: Annotated[int, typer.Option(
        min=0, max=1024, help="Number of decoding threads; 0 uses all cores.")] = 0,
) -> int:
    """Count a dataset's images, and decode each with the decoder that training uses.

        python launch/data.py check market1501 --root DIR
    """
    from svll.data import checking

    result = checking.check(name, root, content=content, threads=threads, bar=progress.counter)
    dataset, benchmark, faults = result.dataset, result.benchmark, result.faults
    published = benchmark.published if benchmark else None
    typer.echo("\n".join([
        f"{dataset.title}: {dataset.protocol} ({PROTOCOLS[dataset.protocol]})",
        f"{'part':10} {'identities':>10} {'images':>8} {'cameras':>7}   published",
        *map(_row, checking.part_counts(dataset, benchmark)),
        f"cameras      {checking.cameras(dataset.parts().values())}"
        + (f", published {published.cameras}" if published else ""),
        f"fingerprint  {dataset.fingerprint}",
        *([f"content      {result.content_hash}"] if result.content_hash else []),
        *(f"note: {note}" for note in checking.notes(dataset)),
    ]))
    count = len(dataset.files())
    if not faults:
        typer.echo(f"all {count} images decode")
        return 0
    typer.echo(f"{len(faults)} of {count} images are missing or broken:")
    for path, reason in faults[:SHOWN]:
        typer.echo(f"  {path}: {reason}")
    if left := len(faults[SHOWN:]):
        typer.echo(f"  and {left} more")
    return 1


def _row(part: "PartCounts") -> str:
    """Return a part's counts as a line, with the published ones at its end."""
    line = f"{part.name:10} {part.identities:10} {part.images:8} {part.cameras:7}"
    if part.published is None:
        return line
    identities, images = part.published
    return f"{line}   {identities} identities" + (f", {images} images" if images else "")


@subcommand(app)
def split(
    root: Annotated[Path, typer.Option(
        help="A folder with one folder per identity, a folder of images named like "
        "0002_c1s1_000451_00.jpg, or a CSV list without split.")],
    out: Annotated[Path, typer.Option(help="The CSV list to write; it must not exist yet.")],
    test: Annotated[float | None, typer.Option(
        help="Share of the identities for query and gallery (0 to 1). [default: 0.5]")] = None,
    validation: Annotated[float | None, typer.Option(
        help="Share of the other identities for validation (0 to 1). [default: 0.1, at least 2 "
        "identities; none where there are few]")] = None,
    queries: Annotated[int | None, typer.Option(
        help="Queries per test identity, if cameras are unknown. [default: 1]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 1,
) -> None:
    """Split your own images by identity into train, validation, query and gallery.

        python launch/data.py split --root DIR --out FILE.csv
    """
    from svll.data import own_split
    from svll.data.readers import csv_list

    options = own_split.Options(test=test, validation=validation, queries=queries, seed=seed)
    own_split.write_split(root, out, options)
    dataset = csv_list.load(out)
    _print_parts(dataset, 10)
    typer.echo(f"{out}: protocol {dataset.protocol}; to use it: data.name=list "
               f"{typed(out, 'data.root=')}")


def _print_parts(dataset: "Dataset", width: int) -> None:
    for name, part in dataset.parts().items():
        identities = len(set(part.identities.tolist()))
        typer.echo(f"{name:{width}} {len(part):6} images of {identities} identities")


@subcommand(app)
def synthetic(
    root: Annotated[Path, typer.Option(help="The folder to write, in Market-1501's layout.")],
    size: Annotated[str, typer.Option(
        help="tiny, small, or the number of training and of test identities.")] = "small",
    kind: Annotated[Literal["person", "vehicle"], typer.Option(help="What to draw.")] = "person",
    seed: Annotated[int, typer.Option(help="Seed of the drawn world.")] = 1,
) -> None:
    """Draw a synthetic ReID benchmark, unless the folder already holds it.

        python launch/data.py synthetic --root DIR --size 200
    """
    from svll.data.readers.drawn_world import load_world
    from svll.world.world import named_world, write_world

    dataset = load_world(write_world(named_world(size, kind, seed), root))
    _print_parts(dataset, 8)
    typer.echo(f"{root}: fingerprint {dataset.fingerprint}")


if __name__ == "__main__":
    main()
