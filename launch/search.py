"""Search a folder for the images most similar to each query image: a page and a table.

    python launch/search.py --weights runs/market1501/0a1b2c3d4e5f --query queries --gallery photos
    python launch/search.py --weights model.pth --query a.jpg --gallery photos --threshold 0.7
    python launch/search.py --weights RUN --query a.jpg --gallery photos --at-fpr 0.001 --out found

Writes search.html and search.csv. Features of the gallery are kept in .svll-search beside OUT: the
next search encodes only images that are new or changed. Images whose cosine similarity reaches a
threshold are accepted as the query's identity. The threshold is found on labelled test features of
the same model: those of --threshold-from, else those in the run's folder.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.base.errors import UserError, WrongUsage
from harness.base.files import check_writable
from harness.base.paths import shown
from launch.cli import command

if TYPE_CHECKING:  # torch
    from svll.search.search import SearchResults
    from svll.search.threshold import Threshold

KEPT = ".svll-search"  # folder of the galleries' features, beside the results
PRINTED = 20  # queries whose nearest image is printed


@command(__doc__)
def main(
    weights: Annotated[Path, typer.Option(
        help="A weights file, a finished run's folder, or a published .pth.")],
    query: Annotated[Path, typer.Option(help="An image, or a folder of images.")],
    gallery: Annotated[Path, typer.Option(help="The folder of images to search.")],
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("results"),
    top_k: Annotated[int, typer.Option(min=1, help="Number of nearest images per query.")] = 10,
    threshold: Annotated[float | None, typer.Option(
        help="Lowest cosine similarity to accept, -1 to 1.")] = None,
    threshold_from: Annotated[Path | None, typer.Option(
        help="A labelled feature file of the same model to find the threshold on. [default: "
             "features.h5 of the run]")] = None,
    at_fpr: Annotated[float | None, typer.Option(
        help="Highest false positive rate on those features. [default: where both error rates are "
             "equal]")] = None,
) -> int:
    """Search, write, and print the nearest image of each query."""
    if threshold is not None and (threshold_from is not None or at_fpr is not None):
        raise WrongUsage("--threshold gives the threshold; leave out --threshold-from and --at-fpr")
    from svll.search.page import check_out, write_search
    from svll.search.search import search  # torch, Numba: not for --help

    for name in ("search.html", "search.csv"):
        check_writable(out / name)  # before hours of encoding
    if check_out(out):
        typer.echo(f"{shown(out)}: replaces the results of an earlier search there", err=True)
    results = search(weights, query, gallery, top_k=top_k, keep=out.absolute().parent / KEPT,
                     threshold=_threshold(weights, threshold, threshold_from, at_fpr))
    try:
        files = write_search(results, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    _print(results)
    for file in files:
        typer.echo(shown(file))
    return 0


def _threshold(
    weights: Path, given: float | None, source: Path | None, at_fpr: float | None
) -> "Threshold | None":
    """Return the given threshold, or the one found on the given features or the run's own."""
    from svll.search.threshold import calibrated_threshold, given_threshold, own_features

    if given is not None:
        return given_threshold(given)
    if path := source or own_features(weights):
        return calibrated_threshold(path, at_fpr)
    if at_fpr is not None and weights.exists():  # search() reports missing weights
        raise UserError(f"--at-fpr {at_fpr:g} has no effect without features to find the threshold "
                        "on; add --threshold-from FEATURES.h5")
    return None


def _print(results: "SearchResults") -> None:
    from svll.search.page import name_in

    for query, hits in results.queries[:PRINTED]:
        nearest = "no other image in the gallery"
        if hits:
            name = name_in(hits[0].path, results.gallery)
            nearest = f"{name}  {hits[0].similarity:.4f}  {hits[0].label}".rstrip()
        typer.echo(f"{name_in(query, results.query)} -> {nearest}")
    if (left := len(results.queries) - PRINTED) > 0:
        typer.echo(f"... and {left} more {'query' if left == 1 else 'queries'}")
    typer.echo(results.criterion)


if __name__ == "__main__":
    main()
