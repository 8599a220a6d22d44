"""Metrics of features that are on disk (no model, no images), or of trained weights on a dataset.

    python launch/evaluate.py --features runs/demo/0a1b2c3d/features.h5
    python launch/evaluate.py --features features.h5 --rerank --k1 20 --k2 6 --weight 0.3 --json
    python launch/evaluate.py --weights FILE --recipe market1501 data.root=DIR --save features.h5

A feature file is HDF5 with the groups query and gallery; each holds features [n, d], identity [n]
and camera [n], so any toolbox can write one. Features are compared at unit length. Weights are
those of a run (file or folder) or a published .pth of CLIP-ReID, SVLL-ReID or TransReID.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from harness.config import build, find_recipe, parse_overrides, read_recipe
from harness.errors import UserError
from harness.features import read_features, write_features
from launch.cli import command
from svll.config import RECIPES, Config

if TYPE_CHECKING:  # importing svll.evaluation takes 2 s, which --help should not
    from harness.features import FeatureGroup
    from svll.evaluation import KReciprocal, RankingResult


@command(__doc__)
def main(
    features: Annotated[
        Path | None, typer.Option(help="A feature cache, such as a run's features.h5.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Or trained weights, to be tested on a recipe's dataset.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="With --weights: whose test sets they are tested on.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="With --weights: write the features here, too.")
    ] = None,
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
    overrides: Annotated[
        list[str] | None, typer.Argument(help="With --weights: key=value ..., such as data.root=D")
    ] = None,
) -> int:
    """Rank the gallery for every query and print mAP, mINP and CMC."""
    given = {k: v for k, v in {"k1": k1, "k2": k2, "weight": weight}.items() if v is not None}
    if given and not rerank:
        raise UserError(f"--{', --'.join(given)} without --rerank has no effect; add --rerank")
    if (features is None) == (weights is None):
        raise UserError("give either --features FILE or --weights FILE --recipe NAME")
    if features is not None:
        extra = {"--recipe": recipe, "--save": save, "key=value": overrides}
        if unused := [name for name, value in extra.items() if value]:
            raise UserError(f"{', '.join(unused)} without --weights has no effect")
        sources = [_from_file(features)]
    else:
        sources = _from_weights(cast(Path, weights), recipe, overrides or [], save)
    from svll.evaluation import KReciprocal

    options = KReciprocal(**given) if rerank else None  # type: ignore[arg-type]
    results = {source.name: _score(source, camera_filter, options) for source in sources}
    _show(sources, results, options, as_json)
    return 0


@dataclass(frozen=True)
class Source:
    """Features to be scored, and where they come from."""

    where: str
    name: str
    protocol: str
    groups: "dict[str, FeatureGroup]"


def _from_file(path: Path) -> Source:
    file = read_features(path, groups=("query", "gallery"))
    # other toolboxes' files do not say their protocol
    return Source(str(path), file.dataset, file.protocol or "cross_camera", file.groups)


def _from_weights(
    weights: Path, recipe: str | None, overrides: list[str], save: Path | None
) -> list[Source]:
    if recipe is None:
        raise UserError("--weights needs --recipe NAME: whose test sets it is tested on")
    settings = read_recipe(find_recipe(recipe, RECIPES), Config)
    config = build(Config, [*settings, *parse_overrides(overrides)])
    from svll.scoring import encode_tests  # torch and DALI: not for feature files

    tests = encode_tests(weights, config)
    for place, test in enumerate(tests):
        if save is not None:
            path = save.with_name(f"{save.stem}.{test.name}{save.suffix}") if place else save
            write_features(
                path, test.groups, dataset=test.name, model=str(weights), protocol=test.protocol
            )
    return [Source(str(weights), test.name, test.protocol, test.groups) for test in tests]


def _score(
    source: Source, camera_filter: bool, options: "KReciprocal | None"
) -> "RankingResult":
    from svll.evaluation import evaluate_protocol

    query, gallery = source.groups["query"], source.groups["gallery"]
    try:
        return evaluate_protocol(
            source.protocol, query.features, gallery.features, query.identities,
            gallery.identities, query.cameras, gallery.cameras, camera_filter=camera_filter,
            rerank=options,
        )  # fmt: skip
    except UserError as error:
        message = str(error).replace("camera_filter=False", "--no-camera-filter")
        raise UserError(f"{source.where}: {message}") from None


def _show(
    sources: list[Source], results: "dict[str, RankingResult]", options: "KReciprocal | None",
    as_json: bool,
) -> None:
    """Print one result as it is, several under their datasets' names."""
    several = len(sources) > 1
    if as_json:
        numbers = {s.name: {**results[s.name].as_json(), "protocol": s.protocol} for s in sources}
        typer.echo(json.dumps(numbers if several else numbers[sources[0].name]))
        return
    for source in sources:
        if several:
            typer.echo(f"{source.name}:")
        typer.echo(_table(results[source.name], options, source.protocol))


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
