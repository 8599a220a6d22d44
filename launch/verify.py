"""Verify: how well one similarity threshold separates genuine from impostor pairs of images.

    python launch/verify.py features.h5
    python launch/verify.py runs/market1501/0a1b2c3d4e5f --json
    python launch/verify.py f.h5 --threshold-from validation.h5
    python launch/verify.py f.h5 --threshold-from validation.h5 --at-fpr 0.001
    torchrun --nproc-per-node 4 launch/verify.py query.h5 --gallery 'shards/*.h5'

Every query is compared with every gallery image that the protocol leaves it, by the cosine
similarity of saved features (launch/features.py makes them). Prints AUC, EER, and the TPR at fixed
FPRs; the JSON also holds the ROC curve.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from launch.cli import command, refuse_without
from svll.base.protocol_names import Protocol


@command(__doc__)
def main(
    files: Annotated[list[str], typer.Argument(
        metavar="FILE|RUN...", help="Feature files and folders of finished runs.")],
    gallery: Annotated[list[str] | None, typer.Option(
        help="With one feature file: shards whose galleries, in turn, are the gallery.")] = None,
    protocol: Annotated[Protocol | None, typer.Option(
        help="Which pairs are left out, as in launch/evaluate.py. [default: as the file says, else "
             "cross_camera]")] = None,
    multi_query: Annotated[bool, typer.Option(
        "--multi-query", help="Average each identity's query images per camera.")] = False,
    threshold_from: Annotated[Path | None, typer.Option(
        help="A feature file of the same model to find the threshold on.")] = None,
    at_fpr: Annotated[float | None, typer.Option(
        help="With --threshold-from: the false positive rate to allow there. [default: where both "
             "error rates are equal]")] = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print a JSON array: an object for each file.")] = False,
) -> int:
    """Verify, and print the rates."""
    refuse_without("--threshold-from", threshold_from, {"--at-fpr": at_fpr})
    # Numba: not for --help
    from svll.evaluation.engine.shared_work import join_ranks
    from svll.evaluation.feature_files.score_text import protocol_lines, verification_lines
    from svll.evaluation.feature_files.scores import verification_score
    from svll.evaluation.feature_files.sources import open_sources, warn_of_models
    from svll.search.threshold import calibrated_threshold

    with (
        join_ranks(encoding=False) as share,
        open_sources(files, gallery or [], protocol) as sources,
    ):
        if multi_query:
            sources = [source.multi_query() for source in sources]
        threshold = None
        if threshold_from is not None:
            found = calibrated_threshold(threshold_from, at_fpr, protocol, share=share)
            assert found.calibration is not None
            threshold = found.similarity
            for source in sources:
                found.check_width(source.query.features.shape[1])
                warn_of_models([found.calibration.model, source.model], source.where)
        scores = [verification_score(source, threshold, share=share) for source in sources]
        if share.index > 0:
            return 0
        if as_json:
            typer.echo(json.dumps([item.as_json() for item in scores]))
            return 0
        for item in scores:
            typer.echo("\n".join(verification_lines(item)) + "\n")
        typer.echo("\n".join(protocol_lines(sources)))
    return 0


if __name__ == "__main__":
    main()
