"""Metrics of features that are on disk: no model, no images.

    python launch/evaluate.py --features runs/demo/0a1b2c3d/features.h5
    python launch/evaluate.py --features features.h5 --rerank --k1 20 --k2 6 --weight 0.3 --json

The file is HDF5 with the groups query and gallery; each holds features [n, d], identity [n] and
camera [n], so any toolbox can write one. Features are compared at unit length.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import UserError
from harness.features import read_features
from launch.cli import command

if TYPE_CHECKING:  # importing svll.evaluation takes 2 s, which --help should not
    from svll.evaluation import KReciprocal, RankingResult


@command(__doc__)
def main(
    features: Annotated[Path, typer.Option(help="A feature cache, such as a run's features.h5.")],
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Re-rank by k-reciprocal neighbours first.")
    ] = False,
    k1: Annotated[
        int | None, typer.Option(help="Re-ranking: size of a neighbourhood. [default: 20]")
    ] = None,
    k2: Annotated[
        int | None, typer.Option(help="Re-ranking: neighbours averaged over. [default: 6]")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(help="Re-ranking: share of the original distance. [default: 0.3]"),
    ] = None,
    camera_filter: Annotated[
        bool,
        typer.Option(
            "--camera-filter/--no-camera-filter",
            help="Leave out gallery images of the query's own identity and camera.",
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Rank the gallery for every query of a feature cache and print mAP, mINP and CMC."""
    given = {k: v for k, v in {"k1": k1, "k2": k2, "weight": weight}.items() if v is not None}
    if given and not rerank:
        raise UserError(f"--{', --'.join(given)} without --rerank has no effect; add --rerank")
    file = read_features(features, groups=("query", "gallery"))
    from svll.evaluation import KReciprocal, evaluate_protocol

    options = KReciprocal(**given) if rerank else None  # type: ignore[arg-type]
    query, gallery = file.groups["query"], file.groups["gallery"]
    # other toolboxes' files do not say
    protocol = file.protocol or "cross_camera"
    try:
        result = evaluate_protocol(
            protocol, query.features, gallery.features, query.identities, gallery.identities,
            query.cameras, gallery.cameras, camera_filter=camera_filter, rerank=options,
        )  # fmt: skip
    except UserError as error:
        message = str(error).replace("camera_filter=False", "--no-camera-filter")
        raise UserError(f"{features}: {message}") from None
    numbers = {**result.as_json(), "protocol": protocol}
    typer.echo(json.dumps(numbers) if as_json else _table(result, options, protocol))
    return 0


def _table(result: "RankingResult", options: "KReciprocal | None", protocol: str) -> str:
    """The metrics as lines; fractions, as everywhere."""
    cmc = result.as_json()["cmc"]
    lines = {"mAP": result.mAP, "mINP": result.mINP} | {f"Rank-{r}": cmc[r] for r in cmc}
    settings = f"re-ranked: {options}" if options else "not re-ranked"
    skipped = f", {result.skipped} without a match left out" if result.skipped else ""
    numbers = [f"{name:8}{value:.4f}" for name, value in lines.items()]
    return "\n".join([*numbers, f"{result.queries} queries{skipped}; {protocol}, {settings}"])


if __name__ == "__main__":
    main()
