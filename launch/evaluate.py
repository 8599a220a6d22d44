"""Metrics of features that are on disk (no model, no images), or of trained weights on a dataset.

    python launch/evaluate.py --features runs/synthetic/0a1b2c3d4e5f/features.h5
    python launch/evaluate.py --features features.h5 --rerank --k1 20 --k2 6 --weight 0.3 --json
    python launch/evaluate.py --features runs/*/*/features.h5 --csv
    python launch/evaluate.py --features f.h5 --rerank --k1 10,20,30 --weight 0.1,0.3
    python launch/evaluate.py --features f.h5 --bootstrap --camera-pairs --per-query queries.csv
    python launch/evaluate.py --features f.h5 --verification --threshold-from validation.h5
    python launch/evaluate.py --features pytorch_result.mat --features-from mat --save features.h5
    python launch/evaluate.py --run runs/market1501/0a1b2c3d4e5f
    python launch/evaluate.py --weights FILE --recipe market1501 data.root=DIR --save features.h5
    torchrun --nproc-per-node 4 launch/evaluate.py --features query.h5 --gallery 'shards/*.h5'

A feature file is HDF5 with the groups query and gallery; each holds features [n, d], identity [n]
and camera [n], so any toolbox can write one. Features are compared at unit length, unless --raw is
given. Weights are those of a run (file or folder) or a published .pth of CLIP-ReID, SVLL-ReID or
TransReID.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from harness.config import build, find_recipe, parse_overrides, read_recipe, text_fields
from harness.errors import UserError
from harness.features import write_features
from harness.files import atomic_write, check_writable
from launch.cli import command
from svll.config import RECIPES, Config

if TYPE_CHECKING:  # importing svll.evaluation takes its time (Numba), which --help should not
    from svll.evaluation import KReciprocal
    from svll.evaluation.ranking import Options
    from svll.evaluation.scores import Score
    from svll.evaluation.sharing import Share
    from svll.evaluation.sources import Source

Number = TypeVar("Number", int, float)


@command(__doc__)
def main(
    features: Annotated[
        list[str] | None,
        typer.Option(help="Feature files, such as a run's features.h5; more may follow."),
    ] = None,
    features_from: Annotated[
        Literal["npz", "mat", "pt"] | None,
        typer.Option(help="Of what kind another toolbox' --features are. [default: their suffix]"),
    ] = None,
    gallery: Annotated[
        list[str] | None,
        typer.Option(help="With one --features: shards whose galleries, in turn, are the gallery."),
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of finished runs; features that are missing are made."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Or trained weights, to be tested on a recipe's dataset.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="With --weights: whose test sets they are tested on.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the features as a cache here, too (of --weights, or imported)."),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Re-rank by k-reciprocal neighbours first.")
    ] = False,
    k1: Annotated[
        str | None, typer.Option(help="Re-ranking: size of a neighbourhood, or several, as in "
                                 "10,20. [default: 20]")
    ] = None,
    k2: Annotated[
        str | None, typer.Option(help="Re-ranking: neighbours averaged over. [default: 6]")
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(help="Re-ranking: share of the original distance. [default: 0.3]"),
    ] = None,
    expand: Annotated[
        int | None,
        typer.Option(help="Query expansion: average over so many nearest gallery images."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Query expansion: power of the similarity they count as. [default: 0]"),
    ] = None,
    metric: Annotated[
        Literal["euclidean", "cosine"],
        typer.Option(help="Distance; both rank alike at unit length."),
    ] = "euclidean",
    normalise: Annotated[
        bool,
        typer.Option("--normalise/--raw", help="Bring features to unit length, or do not."),
    ] = True,
    camera_filter: Annotated[
        bool,
        typer.Option(
            "--camera-filter/--no-camera-filter",
            help="Leave out gallery images of the query's own identity and camera.",
        ),
    ] = True,
    cross_camera_only: Annotated[
        bool,
        typer.Option("--cross-camera-only", help="Leave out all of the query's own camera."),
    ] = False,
    multi_query: Annotated[
        bool,
        typer.Option(
            "--multi-query", help="Images of one identity under one camera ask as one, averaged."
        ),
    ] = False,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="95 % interval of mAP over the identities.")
    ] = False,
    camera_pairs: Annotated[
        bool, typer.Option("--camera-pairs", help="Also for each pair of cameras.")
    ] = False,
    verification: Annotated[
        bool,
        typer.Option("--verification", help="Same or not: ROC, EER, TPR at fixed FPR."),
    ] = False,
    threshold_from: Annotated[
        Path | None,
        typer.Option(help="With --verification: find the threshold on this cache, and apply it."),
    ] = None,
    at_fpr: Annotated[
        float | None,
        typer.Option(help="With --threshold-from: where the false positive rate there is this. "
                     "[default: where both error rates are equal]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    per_query: Annotated[
        Path | None, typer.Option(help="Write each query's metrics and nearest to this CSV file.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="With --per-query: how many nearest. [default: 10]")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|KEY=VALUE]...",
            help="Further feature files; with --weights or --run key=value, such as data.root=D.",
        ),
    ] = None,
) -> int:
    """Rank the gallery for every query and print mAP, mINP and CMC."""
    _refuse_without(rerank, "--rerank", {"k1": k1, "k2": k2, "weight": weight})
    _refuse_without(expand is not None, "--expand", {"alpha": alpha})
    _refuse_without(verification, "--verification", {"threshold-from": threshold_from})
    _refuse_without(threshold_from is not None, "--threshold-from", {"at-fpr": at_fpr})
    _refuse_without(per_query is not None, "--per-query", {"top-k": top_k})
    _refuse_without(weights is not None, "--weights", {"recipe": recipe})
    _refuse_without(bool(features), "--features", {
        "features-from": features_from, "gallery": gallery,
    })
    if sum(map(bool, (features, run, weights))) != 1:
        raise UserError(
            "give one of --features FILE, --run DIR, or --weights FILE --recipe NAME"
        )
    if as_json and as_csv:
        raise UserError("--json and --csv: choose one")
    if as_csv and (camera_pairs or verification):
        raise UserError(
            "--csv has one line for each file and setting, and no room for --camera-pairs or "
            "--verification; --json has"
        )
    grid = _grid(k1, k2, weight) if rerank else []
    from svll.evaluation.scores import Extra, score  # Numba
    from svll.evaluation.sharing import join_ranks

    with ExitStack() as stack:
        share = stack.enter_context(join_ranks(encoding=not features))
        for path in (save, per_query):
            if path is not None and share.index == 0:
                check_writable(path)  # before the work
        if weights is not None:
            sources = _of_weights(weights, recipe, words or [], save)
        elif run:
            sources = _of_runs(stack, run, words or [], save)
        else:
            paths = [*(features or []), *(words or [])]
            own_save = save if share.index == 0 else None
            sources = _of_files(stack, paths, features_from, gallery or [], own_save)
        if multi_query:
            sources = [source.pooled() for source in sources]
        options = _options(metric, normalise, camera_filter, cross_camera_only, expand, alpha)
        options |= {"share": share, "top_k": 0 if per_query is None else top_k or 10}
        threshold = None
        if threshold_from is not None:
            threshold = _threshold(threshold_from, at_fpr, camera_filter, share)
        extra = Extra(bootstrap, camera_pairs, verification, threshold)
        settings = _settings(grid)
        scores = [s for source in sources for s in score(source, settings, extra, **options)]
        if share.index == 0:
            protocols = _protocols(scores, camera_filter, cross_camera_only)
            _show(scores, protocols, as_json=as_json, as_csv=as_csv)
            if per_query is not None:
                _write_per_query(per_query, scores)
    return 0


# ---- what is asked ----


def _refuse_without(there: bool, needed: str, given: dict[str, Any]) -> None:
    """UserError for options that mean nothing without another one."""
    names = [f"--{name}" for name, value in given.items() if value]
    if names and not there:
        raise UserError(f"{', '.join(names)} without {needed} has no effect; add {needed}")


def _grid(k1: str | None, k2: str | None, weight: str | None) -> list[dict[str, Any]]:
    """All combinations of the values given for re-ranking."""
    values: dict[str, list[Any]] = {
        "k1": _numbers("k1", k1, int), "k2": _numbers("k2", k2, int),
        "weight": _numbers("weight", weight, float),
    }
    given = {name: found for name, found in values.items() if found}
    return [dict(zip(given, point, strict=True)) for point in product(*given.values())]


def _numbers(name: str, text: str | None, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(word) for word in (text or "").split(",") if word]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{name} {text}: expected {what}, as in 20 or 10,20,30") from None


def _settings(grid: list[dict[str, Any]]) -> "list[KReciprocal | None]":
    """The settings to score; several are shown beside what they are to improve on."""
    from svll.evaluation import KReciprocal

    settings: list[KReciprocal | None] = [KReciprocal(**point) for point in grid]
    return settings if len(settings) == 1 else [None, *settings]


def _options(
    metric: Literal["euclidean", "cosine"], normalise: bool, camera_filter: bool,
    cross_camera_only: bool, expand: int | None, alpha: float | None,
) -> "Options":
    from svll.evaluation import QueryExpansion

    return {
        "metric": metric, "normalise": normalise, "camera_filter": camera_filter,
        "cross_camera_only": cross_camera_only,
        "expand": None if expand is None else QueryExpansion(expand, alpha or 0.0),
    }


# ---- where features come from ----


def _of_files(
    stack: ExitStack, paths: Sequence[str], kind: str | None, gallery: Sequence[str],
    save: Path | None,
) -> "list[Source]":
    from svll.evaluation.sources import find_shards, open_source

    if options := [path for path in paths if "=" in path and not Path(path).exists()]:
        raise UserError(f"{', '.join(options)} without --weights or --run has no effect")
    if gallery and len(paths) > 1:
        raise UserError("--gallery goes with one --features file, which gives the queries")
    if save is not None and len(paths) > 1:
        raise UserError("--save goes with one --features file")
    shards = find_shards(gallery)
    sources = [stack.enter_context(open_source(Path(path), kind, shards)) for path in paths]
    if save is not None:
        source = sources[0]
        write_features(
            save, source.groups(), dataset=source.dataset, model=source.where,
            protocol=source.protocol,
        )
    return sources


def _of_runs(
    stack: ExitStack, folders: Sequence[Path], overrides: list[str], save: Path | None
) -> "list[Source]":
    from svll.evaluation.sources import open_source
    from svll.run_features import run_features

    if save is not None:
        raise UserError("--save without --weights or --features-from has no effect: a run's "
                        "features are in its folder")
    return [
        stack.enter_context(open_source(path))
        for folder in folders for path in run_features(folder, overrides)
    ]


def _of_weights(
    weights: Path, recipe: str | None, overrides: list[str], save: Path | None
) -> "list[Source]":
    if recipe is None:
        raise UserError("--weights needs --recipe NAME: whose test sets it is tested on")
    settings = read_recipe(find_recipe(recipe, RECIPES), Config, RECIPES)
    words = parse_overrides(overrides, text_fields(Config))
    config = build(Config, [*settings, *words])
    from svll.evaluation.sources import Source
    from svll.scoring import encode_tests  # torch and DALI: not for feature files

    return [
        Source(
            str(weights), test.name, test.protocol, test.groups["query"], test.groups["gallery"]
        )
        for test in encode_tests(weights, config, save)
    ]


def _threshold(
    path: Path, at_fpr: float | None, camera_filter: bool, share: "Share"
) -> float:
    """The similarity that tells identities apart on one cache, to be applied to another."""
    from svll.evaluation.scores import verify_source
    from svll.evaluation.sources import open_source

    with open_source(path) as source:
        found = verify_source(source, camera_filter=camera_filter, share=share)
    try:
        return found.threshold(at_fpr)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# ---- what is shown ----


def _show(
    scores: "Sequence[Score]", protocols: Iterator[str], *, as_json: bool, as_csv: bool
) -> None:
    """Print one score as lines or an object, several as a table or a list.

    protocols: what is to be said of the protocols to people who read it.
    """
    from svll.evaluation.scores import to_csv

    several = len(scores) > 1
    if as_json:
        found = [item.as_json(several=several) for item in scores]
        typer.echo(json.dumps(found if several else found[0]))
    elif as_csv:
        typer.echo("".join(to_csv(scores)), nl=False)
    elif several:
        _print_table(scores)
    else:
        typer.echo("\n".join(_lines(scores[0])))
    if not as_json and not as_csv:
        typer.echo("\n".join(protocols))
        for item in scores[:1] if len({id(s.source) for s in scores}) == 1 else scores:
            for line in _more_lines(item):
                typer.echo(line)


def _lines(item: "Score") -> Iterator[str]:
    """The metrics; fractions, as everywhere."""
    result = item.result
    cmc = result.as_json()["cmc"]
    numbers = {"mAP": result.mAP, "mINP": result.mINP} | {f"Rank-{r}": cmc[r] for r in cmc}
    for name, value in numbers.items():
        interval = ""
        if name == "mAP" and item.interval:
            interval = f"  (95 %: {item.interval[0]:.4f} to {item.interval[1]:.4f})"
        yield f"{name:8}{value:.4f}{interval}"
    settings = f"re-ranked: {item.setting}" if item.setting else "not re-ranked"
    skipped = f", {result.skipped} without a match left out" if result.skipped else ""
    yield f"{result.queries} queries{skipped}; {item.source.protocol}, {settings}"


def _protocols(
    scores: "Sequence[Score]", camera_filter: bool, cross_camera_only: bool
) -> Iterator[str]:
    """What each protocol leaves out of the gallery, or the options do in its stead."""
    from svll.data.checking import PROTOCOLS

    for name in dict.fromkeys(item.source.protocol for item in scores):
        told = PROTOCOLS[name]
        if cross_camera_only:
            told = "all gallery images of the query's own camera are left out (--cross-camera-only)"
        elif name == "cross_camera" and not camera_filter:
            told = "no gallery image is left out (--no-camera-filter)"
        yield f"{name}: {told}"


def _print_table(scores: "Sequence[Score]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "k1", "k2", "weight", "mAP", "mINP", "Rank-1", "Rank-5", "Rank-10")
    names = _short([item.source.where for item in scores])
    for name, item in zip(names, scores, strict=True):
        numbers = item.result.as_json()
        interval = f" [{item.interval[0]:.4f}, {item.interval[1]:.4f}]" if item.interval else ""
        cmc = [f"{value:.4f}" for value in numbers["cmc"].values()]
        table.add_row(
            name, *map(str, item.columns), f"{numbers['mAP']:.4f}{interval}",
            f"{numbers['mINP']:.4f}", *cmc,
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe or a log has no width: nothing is cut
    console.print(table)


def _short(names: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them share."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while len(set(parts)) > 1 and len({part[: shared + 1] for part in parts}) == 1:
        shared += 1
    return [str(Path(*part[shared:])) for part in parts]


def _more_lines(item: "Score") -> Iterator[str]:
    """Camera pairs and verification."""
    if item.camera_pairs:
        yield f"\n{item.source.where}: query camera, gallery camera, queries, mAP, Rank-1"
        for pair in item.camera_pairs:
            yield (
                f"{pair.query_camera:6}{pair.gallery_camera:6}{pair.queries:8}  {pair.mAP:.4f}  "
                f"{pair.rank1:.4f}"
            )
    if item.verification:
        yield from _verification_lines(item)


def _verification_lines(item: "Score") -> Iterator[str]:
    numbers = item.as_json()["verification"]
    equal = numbers["eer_threshold"]
    yield (
        f"\n{item.source.where}: same identity or not, {numbers['genuine_pairs']:,} genuine and "
        f"{numbers['impostor_pairs']:,} impostor pairs"
    )
    yield f"AUC {numbers['auc']:.4f}"
    yield (
        f"EER {numbers['eer']:.4f} at similarity {equal['similarity']:.4f} "
        f"(distance {equal['distance']:.4f})"
    )
    for rate, found in numbers["tpr_at_fpr"].items():
        if found is not None:
            yield _rates(f"FPR at most {rate}", found)
    yield from numbers["notes"]
    if "applied" in numbers:
        yield _rates("threshold given", numbers["applied"])


def _rates(name: str, found: dict[str, Any]) -> str:
    precision = "none" if found["precision"] is None else f"{found['precision']:.4f}"
    return (
        f"{name}: TPR {found['tpr']:.4f} FPR {found['fpr']:.2e} precision {precision} "
        f"accuracy {found['accuracy']:.4f} at similarity {found['threshold']:.4f}"
    )


def _write_per_query(path: Path, scores: "Sequence[Score]") -> None:
    from svll.evaluation.scores import per_query_csv

    try:
        with atomic_write(path) as private, private.open("w", encoding="utf-8") as file:
            file.writelines(per_query_csv(scores))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    main()
