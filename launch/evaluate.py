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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from harness.base.errors import UserError
from harness.base.files import atomic_write, check_writable
from harness.config.build import build, find_recipe, parse_overrides, read_recipe, text_fields
from launch.cli import command
from svll.config import RECIPES, Config
from svll.feature_file import write_features
from svll.protocols import Protocol

if TYPE_CHECKING:  # importing svll.evaluation takes its time (Numba), which --help should not
    from svll.evaluation import KReciprocal, QueryExpansion
    from svll.evaluation.engine.ranks import Share
    from svll.evaluation.ranking import Options
    from svll.evaluation.scores import Score
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
        typer.Option(help="Format of --features from another toolbox. [default: by suffix]"),
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
        str | None, typer.Option(help="With --weights: the recipe of the test sets.")
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
        typer.Option("--normalise/--raw", help="L2-normalise features (--raw: use as stored)."),
    ] = True,
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="cross_camera leaves out the query's identity under its camera; "
                     "other_cameras all images of its camera; all_gallery only the query's own "
                     "image; random_gallery draws one gallery image per identity. "
                     "[default: as the file says, else cross_camera]"),
    ] = None,
    no_camera_filter: Annotated[
        bool, typer.Option("--no-camera-filter", help="Short for --protocol all_gallery.")
    ] = False,
    cross_camera_only: Annotated[
        bool, typer.Option("--cross-camera-only", help="Short for --protocol other_cameras.")
    ] = False,
    multi_query: Annotated[
        bool,
        typer.Option(
            "--multi-query", help="Average each identity's query images per camera."
        ),
    ] = False,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="95 % interval of mAP over the identities.")
    ] = False,
    camera_pairs: Annotated[
        bool,
        typer.Option("--camera-pairs", help="Also for each pair of cameras, under each setting."),
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
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON array: an object for each file and setting."),
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    per_query: Annotated[
        Path | None,
        typer.Option(help="Write each query's metrics and nearest to this CSV file; under "
                     "random_gallery, those of the first draw."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="With --per-query: how many nearest. [default: 10]")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE|KEY=VALUE]...",
            help="Further feature files; with --weights or --run key=value, such as data.root=D; "
                 "with --weights, model.sie=none leaves out side information.",
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
    chosen = _protocol(protocol, no_camera_filter, cross_camera_only)
    from svll.evaluation.engine.ranks import join_ranks
    from svll.evaluation.scores import Extra, score  # Numba

    with ExitStack() as stack:
        share = stack.enter_context(join_ranks(encoding=not features))
        for path in (save, per_query):
            if path is not None and share.index == 0:
                check_writable(path)  # before the work
        if weights is not None:
            used = [] if chosen is None else [f"evaluation.protocol={chosen}"]
            sources = _of_weights(weights, recipe, [*(words or []), *used], save)
        elif run:
            sources = _of_runs(stack, run, words or [], save, chosen)
        else:
            paths = [*(features or []), *(words or [])]
            own_save = save if share.index == 0 else None
            sources = _of_files(stack, paths, features_from, gallery or [], own_save, chosen)
        if multi_query:
            sources = [source.pooled() for source in sources]
        options: Options = {
            "metric": metric, "normalise": normalise, "expand": _expansion(expand, alpha),
            "share": share, "top_k": 0 if per_query is None else top_k or 10,
        }
        threshold = None
        if threshold_from is not None:
            threshold = _threshold(threshold_from, at_fpr, chosen, share)
        extra = Extra(bootstrap, camera_pairs, verification, threshold)
        settings = _settings(grid)
        scores = [s for source in sources for s in score(source, settings, extra, **options)]
        if share.index == 0:
            _show(scores, as_json=as_json, as_csv=as_csv)
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


def _expansion(expand: int | None, alpha: float | None) -> "QueryExpansion | None":
    from svll.evaluation import QueryExpansion

    return None if expand is None else QueryExpansion(expand, alpha or 0.0)


def _protocol(
    given: Protocol | None, no_camera_filter: bool, cross_camera_only: bool
) -> Protocol | None:
    """Return the protocol that was asked for, None for that of each file."""
    short: dict[str, tuple[bool, Protocol]] = {
        "--no-camera-filter": (no_camera_filter, "all_gallery"),
        "--cross-camera-only": (cross_camera_only, "other_cameras"),
    }
    asked: dict[str, Protocol] = {} if given is None else {"--protocol": given}
    asked |= {name: meant for name, (is_set, meant) in short.items() if is_set}
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: choose one")
    return next(iter(asked.values()), None)


# ---- where features come from ----


def _of_files(
    stack: ExitStack, paths: Sequence[str], kind: str | None, gallery: Sequence[str],
    save: Path | None, protocol: Protocol | None,
) -> "list[Source]":
    from svll.evaluation.sources import find_shards, open_source

    if options := [path for path in paths if "=" in path and not Path(path).exists()]:
        raise UserError(f"{', '.join(options)} without --weights or --run has no effect")
    if gallery and len(paths) > 1:
        raise UserError("--gallery goes with one --features file, which gives the queries")
    if save is not None and len(paths) > 1:
        raise UserError("--save goes with one --features file")
    shards = find_shards(gallery)
    sources = [
        stack.enter_context(open_source(Path(path), kind, shards, protocol)) for path in paths
    ]
    if save is not None:
        source = sources[0]
        write_features(
            save, source.groups(), dataset=source.dataset, model=source.where,
            protocol=source.protocol, first_camera=source.first_camera,
        )
    return sources


def _of_runs(
    stack: ExitStack, folders: Sequence[Path], overrides: list[str], save: Path | None,
    protocol: Protocol | None,
) -> "list[Source]":
    from svll.evaluation.sources import open_source
    from svll.runs.make_features import run_features

    if save is not None:
        raise UserError("--save without --weights or --features-from has no effect: a run's "
                        "features are in its folder")
    return [
        stack.enter_context(open_source(path, protocol=protocol))
        for folder in folders for path in run_features(folder, overrides)
    ]


def _of_weights(
    weights: Path, recipe: str | None, overrides: list[str], save: Path | None
) -> "list[Source]":
    if recipe is None:
        raise UserError("--weights also needs --recipe NAME, which names the test set")
    settings = read_recipe(find_recipe(recipe, RECIPES), Config, RECIPES)
    words = parse_overrides(overrides, text_fields(Config))
    config = build(Config, [*settings, *words])
    # the weights have it or not; a recipe's model.sie says how models are trained
    is_off = any(word.key == "model.sie" and word.value == "none" for word in words)
    from svll.evaluation.sources import Source
    from svll.features.from_weights import encode_tests  # torch and DALI: not for feature files

    return [
        Source(
            str(weights), test.name, test.protocol, test.groups["query"], test.groups["gallery"],
            first_camera=test.first_camera,
        )
        for test in encode_tests(weights, config, save, side_information=not is_off)
    ]


def _threshold(
    path: Path, at_fpr: float | None, protocol: Protocol | None, share: "Share"
) -> float:
    """The similarity that tells identities apart on one cache, to be applied to another."""
    from svll.evaluation.scores import verify_source
    from svll.evaluation.sources import open_source

    with open_source(path, protocol=protocol) as source:
        found = verify_source(source, share=share)
    try:
        return found.threshold(at_fpr)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# ---- what is shown ----


def _show(scores: "Sequence[Score]", *, as_json: bool, as_csv: bool) -> None:
    """Print scores as JSON, CSV, lines of one, or a table of several."""
    from svll.evaluation.written import more_lines, protocol_lines, score_lines, to_csv

    if as_json:
        typer.echo(json.dumps([item.as_json() for item in scores]))
        return
    if as_csv:
        typer.echo("".join(to_csv(scores)), nl=False)
        return
    if len(scores) > 1:
        _print_table(scores)
    else:
        typer.echo("\n".join(score_lines(scores[0])))
    for line in (*protocol_lines(scores), *more_lines(scores)):
        typer.echo(line)


def _print_table(scores: "Sequence[Score]") -> None:
    from rich.console import Console
    from rich.table import Table

    from svll.evaluation.written import RANKS, settings_words

    table = Table("file", "dataset", "protocol", "k1", "k2", "weight", "mAP", "mINP",
                  *(f"Rank-{rank}" for rank in RANKS))
    names = _short([item.source.where for item in scores])
    for name, item in zip(names, scores, strict=True):
        numbers = item.result.as_json(RANKS)
        interval = f" [{item.interval[0]:.4f}, {item.interval[1]:.4f}]" if item.interval else ""
        rerank = item.settings["rerank"] or {}
        table.add_row(
            name, item.source.dataset, item.source.protocol,
            *(str(rerank.get(k, "")) for k in ("k1", "k2", "weight")),
            f"{numbers['mAP']:.4f}{interval}", f"{numbers['mINP']:.4f}",
            *(f"{value:.4f}" for value in numbers["cmc"].values()),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe or a log has no width: nothing is cut
    console.print(table)
    said: dict[str, list[str]] = {}
    for name, item in zip(names, scores, strict=True):
        said.setdefault(settings_words(item.settings, rerank=False), []).append(name)
    for words, which in said.items():
        whose = "all" if len(said) == 1 else ", ".join(dict.fromkeys(which))
        typer.echo(f"{whose}: {words}; re-ranked where k1, k2 and weight are given")


def _short(names: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them share."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while len(set(parts)) > 1 and len({part[: shared + 1] for part in parts}) == 1:
        shared += 1
    return [str(Path(*part[shared:])) for part in parts]


def _write_per_query(path: Path, scores: "Sequence[Score]") -> None:
    from svll.evaluation.written import per_query_csv

    try:
        # names that are not UTF-8 keep their bytes, as in the CSV file of a search
        with (
            atomic_write(path) as private,
            private.open("w", encoding="utf-8", errors="surrogateescape") as file,
        ):
            file.writelines(per_query_csv(scores))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    main()
