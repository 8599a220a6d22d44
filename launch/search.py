"""The gallery images that look most like each query image, as a page and a table.

    python launch/search.py --weights runs/market1501/0a1b2c3d4e5f --query queries --gallery photos
    python launch/search.py --weights model.pth --query a.jpg --gallery photos --threshold 0.7
    python launch/search.py --weights RUN --query a.jpg --gallery photos --at-fpr 0.001 --out found

Writes search.html and search.csv. Which images are accepted as the query's identity is decided by
a threshold on the cosine similarity, found on the labelled test features of a run: its own ones
where --weights is the folder of a run that has them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.base.errors import UserError
from harness.base.files import check_writable
from harness.base.paths import shown
from launch.cli import command

if TYPE_CHECKING:  # torch
    from svll.search.search import Found, Threshold

PRINTED = 20
"""Queries whose nearest image is printed."""


@command(__doc__)
def main(
    weights: Annotated[
        Path, typer.Option(help="Folder of a finished run, weights file, or published .pth.")
    ],
    query: Annotated[Path, typer.Option(help="One image, or a folder with images below it.")],
    gallery: Annotated[Path, typer.Option(help="Folder whose images are searched.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("results"),
    top_k: Annotated[int, typer.Option(min=1, help="How many nearest of each query.")] = 10,
    threshold: Annotated[
        float | None, typer.Option(help="Accept from this similarity on, from -1 to 1.")
    ] = None,
    threshold_from: Annotated[
        Path | None,
        typer.Option(help="Find the threshold on these labelled features of the same model. "
                     "[default: features.h5 of the run]"),
    ] = None,
    at_fpr: Annotated[
        float | None,
        typer.Option(help="Find it where the false positive rate is this. "
                     "[default: where both error rates are equal]"),
    ] = None,
) -> int:
    """Search, write, and print the nearest image of each query."""
    if threshold is not None and (threshold_from is not None or at_fpr is not None):
        raise UserError("--threshold gives the threshold; leave out --threshold-from and --at-fpr")
    from svll.search.page import write_search
    from svll.search.search import search  # torch, Numba: not for --help

    check_writable(out / "search.html")  # before hours of encoding
    found = search(
        weights, query, gallery, top_k=top_k,
        threshold=_threshold(weights, threshold, threshold_from, at_fpr),
    )
    try:
        files = write_search(found, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    _print(found)
    for file in files:
        typer.echo(shown(file))
    return 0


def _threshold(
    weights: Path, given: float | None, source: Path | None, at_fpr: float | None
) -> "Threshold | None":
    """What was given, or what is found on the features that were given, or on the run's own."""
    from svll.search.search import calibrated_threshold, given_threshold, own_features

    if given is not None:
        return given_threshold(given)
    path = source or own_features(weights)
    if path is not None:
        return calibrated_threshold(path, at_fpr)
    if at_fpr is not None and weights.exists():  # search() reports missing weights
        raise UserError(
            f"--at-fpr {at_fpr:g} without features to find the threshold on has no effect; add "
            "--threshold-from FEATURES.h5"
        )
    return None


def _print(found: "Found") -> None:
    from svll.search.search import name_in

    for answer in found.answers[:PRINTED]:
        best = "nothing else in the gallery"
        if answer.hits:
            hit = answer.hits[0]
            name = name_in(hit.path, found.gallery)
            best = f"{name}  {hit.similarity:.4f}  {hit.word}".rstrip()
        typer.echo(f"{name_in(answer.query, found.query)} -> {best}")
    if len(found.answers) > PRINTED:
        typer.echo(f"... and {len(found.answers) - PRINTED} more queries")
    typer.echo(found.verdict)


if __name__ == "__main__":
    main()
