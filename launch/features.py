"""Make a feature file of a run, of trained weights, or from another toolbox's file.

    python launch/features.py runs/market1501/0a1b2c3d4e5f
    python launch/features.py --weights FILE --recipe market1501 data.root=DIR --save features.h5
    python launch/features.py pytorch_result.mat --save features.h5
    python launch/features.py f.h5 --gallery 'shards/*.h5' --save whole.h5
    torchrun --nproc-per-node 2 launch/features.py runs/market1501/0a1b2c3d4e5f data.root=DIR

For a finished run, this makes the features of its test sets that its folder lacks. Weights are
those of a run (file or folder) or a published .pth of CLIP-ReID, SVLL-ReID or TransReID; the recipe
names the test sets. Another toolbox's file (.npz, .mat, .pt) is converted to our feature file.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.base.errors import WrongUsage
from harness.base.files import check_writable
from harness.config.completion import recipes_in
from launch.cli import command, refuse_without
from svll.base.protocol_names import Protocol
from svll.config import RECIPES


@command(__doc__)
def main(
    words: Annotated[list[str] | None, typer.Argument(
        metavar="[RUN|FILE|KEY=VALUE]...",
        help="Folders of finished runs, or one feature file; key=value for runs and weights, such "
             "as data.root=DIR; with --weights, model.sie=none leaves out side information.",
    )] = None,
    weights: Annotated[Path | None, typer.Option(
        help="Trained weights: a file or the folder of a run.")] = None,
    recipe: Annotated[str | None, typer.Option(
        help="With --weights: the recipe of the test sets.",
        autocompletion=recipes_in(RECIPES))] = None,
    kind: Annotated[Literal["npz", "mat", "pt"] | None, typer.Option(
        "--format", help="Format of another toolbox's FILE. [default: by suffix]")] = None,
    gallery: Annotated[list[str] | None, typer.Option(
        help="With a FILE: shards whose galleries, in turn, are the gallery.")] = None,
    protocol: Annotated[Protocol | None, typer.Option(
        help="With a FILE or --weights: the protocol to store in the feature file. [default: the "
             "test set's own, else cross_camera]")] = None,
    save: Annotated[Path | None, typer.Option(
        help="With a FILE or --weights: the feature file to write.")] = None,
) -> int:
    """Make features; print a summary of each file."""
    given = words or []
    keys = [word for word in given if "=" in word and not Path(word).exists()]
    places = [Path(word) for word in given if word not in keys]
    runs = [place for place in places if place.is_dir()]
    refuse_without("--weights", weights, {"--recipe": recipe})
    refuse_without("a FILE", runs != places, {"--format": kind, "--gallery": gallery})
    if bool(places) == (weights is not None) or (runs != places and len(places) > 1):
        raise WrongUsage("give folders of RUNS, one FILE, or --weights FILE --recipe NAME")
    if runs and (save or protocol):
        raise WrongUsage("--save and --protocol go with a FILE or --weights: a run keeps its "
                         "features in its folder, with its own protocol")
    if not runs and save is None:
        raise WrongUsage("give --save FILE, the feature file to write")
    if keys and not runs and weights is None:
        raise WrongUsage(f"{', '.join(keys)} without a RUN or --weights has no effect")
    # Numba: not for --help
    from svll.evaluation.engine.shared_work import join_ranks
    from svll.evaluation.feature_files.sources import find_shards, open_source
    from svll.runs.make_features import run_features, weights_features

    with join_ranks(encoding=weights is not None or bool(runs)) as share:
        if save is not None and share.index == 0:
            check_writable(save)  # before the work
        if weights is not None:
            made = weights_features(weights, recipe, keys, save, protocol)
            files = [test.file for test in made if test.file is not None]
        elif save is not None:
            with open_source(places[0], kind, find_shards(gallery or []), protocol) as source:
                if share.index == 0:
                    source.save(save)
            files = [save]
        else:
            files = [path for run in runs for path in run_features(run, keys)]
        if share.index == 0:
            for file in files:
                with open_source(file) as source:
                    typer.echo(source.summary())
    return 0


if __name__ == "__main__":
    main()
