"""Rank the galleries of saved features, with or without re-ranking: mAP, mINP and CMC.

    python launch/evaluate.py runs/synthetic/0a1b2c3d4e5f
    python launch/evaluate.py features.h5 --rerank --k1 20 --k2 6 --weight 0.3 --json
    python launch/evaluate.py runs/*/*/features.h5 --csv
    python launch/evaluate.py --features f.h5 --rerank --k1 10,20,30 --weight 0.1,0.3
    python launch/evaluate.py f.h5 --bootstrap --camera-pairs --per-query queries.csv
    python launch/evaluate.py pytorch_result.mat
    python launch/evaluate.py --weights FILE --recipe market1501 data.root=DIR --save features.h5
    torchrun --nproc-per-node 4 launch/evaluate.py query.h5 --gallery 'shards/*.h5'

A feature file is HDF5 with the groups query and gallery; each holds features [n, d], identity [n]
and camera [n]. .npz, .mat and .pt files of other toolboxes are read as well. Ranking a file needs
neither model nor images. launch/features.py makes feature files; launch/verify.py separates same
from different identities by a threshold.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from harness.base.errors import WrongUsage
from harness.base.files import check_writable
from harness.base.paths import typed
from harness.config.completion import recipes_in
from harness.reporting.terminal import wide
from launch.cli import command, refuse_without
from svll.base.protocol_names import Protocol
from svll.config import RECIPES

if TYPE_CHECKING:  # importing svll.evaluation takes its time (Numba), which --help should not
    from svll.evaluation import KReciprocal
    from svll.evaluation.feature_files.scores import Score
    from svll.evaluation.feature_files.sources import Source

Number = TypeVar("Number", int, float)
MOVED = {
    "--run": "python launch/evaluate.py RUN (python launch/features.py RUN makes the features)",
    "--features-from": "python launch/features.py FILE --format KIND --save FEATURES.h5",
    "--verification": "python launch/verify.py FILE",
    "--threshold-from": "python launch/verify.py FILE --threshold-from FILE",
    "--at-fpr": "python launch/verify.py FILE --threshold-from FILE --at-fpr RATE",
}
"""Replacements for options that moved to other commands."""


@command(__doc__, MOVED)
def main(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[FILE|RUN|KEY=VALUE]...",
        help="Feature files and folders of finished runs; with --weights, key=value of the recipe, "
             "such as data.root=DIR.")] = None,
    features: Annotated[list[str] | None, typer.Option(
        help="A feature file or a run's folder; may be repeated.")] = None,
    gallery: Annotated[list[str] | None, typer.Option(
        help="With one feature file: shards whose galleries, in turn, are the gallery.")] = None,
    weights: Annotated[Path | None, typer.Option(
        help="Instead of files: trained weights (a file or a run).")] = None,
    recipe: Annotated[str | None, typer.Option(
        help="With --weights: the recipe of the test sets.",
        autocompletion=recipes_in(RECIPES))] = None,
    save: Annotated[Path | None, typer.Option(
        help="With --weights: the feature file to write.")] = None,
    rerank: Annotated[bool, typer.Option(
        "--rerank", help="Re-rank by k-reciprocal neighbours first.")] = False,
    k1: Annotated[str | None, typer.Option(
        help="Re-ranking: size of a neighbourhood; several as in 10,20. [default: 20]")] = None,
    k2: Annotated[str | None, typer.Option(
        help="Re-ranking: neighbours to average over; or several. [default: 6]")] = None,
    weight: Annotated[str | None, typer.Option(
        help="Re-ranking: share of the original distance; or several. [default: 0.3]")] = None,
    expand: Annotated[int | None, typer.Option(
        help="Query expansion: number of nearest gallery images to average over.")] = None,
    alpha: Annotated[float | None, typer.Option(
        help="Query expansion: power of the similarity as weight. [default: 0]")] = None,
    multi_query: Annotated[bool, typer.Option(
        "--multi-query", help="Average each identity's query images per camera.")] = False,
    metric: Annotated[Literal["euclidean", "cosine"], typer.Option(
        help="Distance; both rank alike at unit length.")] = "euclidean",
    normalise: Annotated[bool, typer.Option(
        "--normalise/--raw", help="L2-normalise features (--raw: use as stored).")] = True,
    protocol: Annotated[Protocol | None, typer.Option(
        help="cross_camera leaves out the query's identity under its camera; other_cameras all "
             "images of its camera; all_gallery only the query's own image; random_gallery draws "
             "one gallery image per identity. [default: as the file says, else cross_camera]",
    )] = None,
    no_camera_filter: Annotated[bool, typer.Option(
        "--no-camera-filter", help="Short for --protocol all_gallery.")] = False,
    cross_camera_only: Annotated[bool, typer.Option(
        "--cross-camera-only", help="Short for --protocol other_cameras.")] = False,
    bootstrap: Annotated[bool, typer.Option(
        "--bootstrap", help="Add the mAP's 95 % interval over identities.")] = False,
    camera_pairs: Annotated[bool, typer.Option(
        "--camera-pairs", help="Add the metrics of each pair of cameras.")] = False,
    per_query: Annotated[Path | None, typer.Option(
        help="Write each query's metrics and nearest images to this CSV file; under "
             "random_gallery, those of the first draw.")] = None,
    top_k: Annotated[int | None, typer.Option(
        min=1, help="With --per-query: number of nearest images. [default: 10]")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print a JSON array: an object for each file and setting.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> int:
    """Rank the gallery for every query and print mAP, mINP and CMC."""
    refuse_without("--rerank", rerank, {"--k1": k1, "--k2": k2, "--weight": weight})
    refuse_without("--expand", expand is not None, {"--alpha": alpha})
    refuse_without("--per-query", per_query, {"--top-k": top_k})
    refuse_without("--weights", weights, {"--recipe": recipe})
    if as_json and as_csv:
        raise WrongUsage("--json and --csv: choose one")
    if as_csv and camera_pairs:
        raise WrongUsage("--csv has one line for each file and setting, and no room for "
                         "--camera-pairs; use --json")
    files = _files(features or [], words or [], weights, save)
    refuse_without("a feature file", files, {"--gallery": gallery})
    chosen = _protocol(protocol, no_camera_filter, cross_camera_only)
    settings = _settings(k1, k2, weight) if rerank else [None]
    # Numba: not for --help
    from svll.evaluation import QueryExpansion
    from svll.evaluation.engine.shared_work import join_ranks
    from svll.evaluation.feature_files.score_text import write_per_query
    from svll.evaluation.feature_files.scores import score
    from svll.evaluation.feature_files.sources import open_sources
    from svll.evaluation.ranking import Options

    with join_ranks(encoding=weights is not None) as share, ExitStack() as stack:
        for path in (save, per_query):
            if path is not None and share.index == 0:
                check_writable(path)  # before the work
        if weights is None:
            sources = stack.enter_context(open_sources(files, gallery or [], chosen))
        else:
            sources = _of_weights(weights, recipe, words or [], save, chosen)
        if multi_query:
            sources = [source.multi_query() for source in sources]
        options = Options(
            metric=metric, normalise=normalise, share=share,
            expand=None if expand is None else QueryExpansion(expand, alpha or 0.0),
            top_k=0 if per_query is None else 10 if top_k is None else top_k,
        )
        extra = {"bootstrap": bootstrap, "camera_pairs": camera_pairs}
        scores = [one for source in sources for one in score(source, settings, options, **extra)]
        if share.index == 0:
            _show(scores, as_json=as_json, as_csv=as_csv)
            if per_query is not None:
                write_per_query(per_query, scores)
    return 0


# ---- arguments ----


def _files(
    features: list[str], words: list[str], weights: Path | None, save: Path | None
) -> list[str]:
    """Return the files and folders to rank; with weights there are none."""
    files = features if weights is not None else [*features, *words]
    if bool(files) == (weights is not None):
        raise WrongUsage("give feature FILES or folders of runs, or --weights FILE --recipe NAME")
    if keys := [file for file in files if "=" in file and not Path(file).exists()]:
        raise WrongUsage(f"{', '.join(keys)} without --weights has no effect")
    if files and save is not None:
        raise WrongUsage("--save goes with --weights; to save the features of a file: python "
                         f"launch/features.py {typed(files[0])} --save {typed(save)}")
    return files


def _settings(k1: str | None, k2: str | None, weight: str | None) -> "list[KReciprocal | None]":
    """Return the settings to score; several are compared with plain ranking."""
    from svll.evaluation.reranking import grid

    sizes = _numbers("k1", k1, int), _numbers("k2", k2, int)
    found = grid(*sizes, _numbers("weight", weight, float))
    return [*found] if len(found) == 1 else [None, *found]


def _numbers(name: str, text: str | None, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [] if text is None else [kind(word) for word in text.split(",")]
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise WrongUsage(f"--{name} {text}: expected {what}, as in 20 or 10,20,30") from None


def _protocol(
    given: Protocol | None, no_camera_filter: bool, cross_camera_only: bool
) -> Protocol | None:
    """Return the protocol of the options, None for that of each file."""
    chosen: dict[str, Protocol | None] = {
        "--protocol": given,
        "--no-camera-filter": "all_gallery" if no_camera_filter else None,
        "--cross-camera-only": "other_cameras" if cross_camera_only else None,
    }
    options = [name for name, protocol in chosen.items() if protocol]
    if len(options) > 1:
        raise WrongUsage(f"{' and '.join(options)}: choose one")
    return chosen[options[0]] if options else None


# ---- features and output ----


def _of_weights(
    weights: Path, recipe: str | None, words: list[str], save: Path | None,
    protocol: Protocol | None,
) -> "list[Source]":
    from svll.evaluation.feature_files.sources import Source
    from svll.runs.make_features import weights_features

    return [
        Source(
            str(weights), test.name, test.protocol, test.groups["query"], test.groups["gallery"],
            first_camera=test.first_camera,
        )
        for test in weights_features(weights, recipe, words, save, protocol)
    ]


def _show(scores: "Sequence[Score]", *, as_json: bool, as_csv: bool) -> None:
    """Print scores as JSON, CSV, lines for one, or a table for several."""
    from rich.console import Console
    from rich.table import Table

    from svll.evaluation.feature_files import score_text as text

    if as_json:
        typer.echo(json.dumps([item.as_json() for item in scores]))
        return
    if as_csv:
        typer.echo(text.to_csv(scores), nl=False)
        return
    lines = text.score_lines(scores[0])
    if len(scores) > 1:
        columns, rows = text.table_rows(scores)
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        wide(Console()).print(table)
        lines = text.table_remarks(scores)
    protocols = text.protocol_lines(item.source for item in scores)
    for line in (*lines, *protocols, *text.more_lines(scores)):
        typer.echo(line)


if __name__ == "__main__":
    main()
