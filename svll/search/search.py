"""Search of a folder of gallery images for those nearest to each query image.

Images are encoded as in tests, without cameras, and compared by cosine similarity. A threshold
decides which are accepted as the same identity.

Letters: Q queries, n images, D width of a feature, K nearest images per query.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.paths import shown
from harness.images.pixels import Fault
from harness.training import ranks
from harness.training.progress import counter
from svll.data.readers.common import find_images
from svll.evaluation.engine.comparison import Comparison
from svll.evaluation.engine.feature_rows import Floats, Integers, Rows
from svll.evaluation.engine.kernels import Extras
from svll.evaluation.engine.matches import Matches
from svll.evaluation.engine.products import Products
from svll.models.extractor import Extractor
from svll.models.weights.load import model_from_file, weights_file
from svll.search.kept_features import Features, KeptFeatures, kept_file
from svll.search.threshold import Threshold

MOST_LOGGED = 20  # most unreadable images that the log names; the page names all

log = logging.getLogger(__name__)


class EncodedImages(NamedTuple):
    """The readable images of a folder, and the path and fault of the others."""

    paths: list[Path]
    features: NDArray[np.float32]  # [n, D], of unit length
    faults: list[Fault]


class Hit(NamedTuple):
    """A gallery image among the nearest of a query."""

    path: Path
    similarity: float
    accepted: bool | None  # None without a threshold

    @property
    def label(self) -> str:
        """`accepted` or `rejected`; "" without a threshold."""
        return {True: "accepted", False: "rejected", None: ""}[self.accepted]


class QueryResult(NamedTuple):
    """A query and its nearest images, the nearest first."""

    query: Path
    hits: list[Hit]


class SearchResults(NamedTuple):
    """The nearest images of all queries."""

    weights: Path
    query: Path
    gallery: Path
    images: int  # readable images in the gallery
    queries: list[QueryResult]
    faults: list[Fault]
    threshold: Threshold | None
    has_side: bool
    """Whether the model was trained with side information, which a search does not have."""

    @property
    def criterion(self) -> str:
        """How images are accepted, in sentences."""
        if self.threshold is None:
            return ("No threshold, so no image is accepted or rejected: none was given, and "
                    f"{shown(self.weights)} is not a run's folder with features.h5 to find one on; "
                    "add --threshold-from FEATURES.h5, or --threshold with a similarity.")
        text = str(self.threshold)
        if calibration := self.threshold.calibration:
            wrong = calibration.rates.fpr * self.images
            text += (f" At that FPR, expect about {wrong:.2g} wrong images per query in a gallery "
                     f"of {self.images}.")
            if self.has_side:
                text += (" The model was trained with side information (cameras or views), which "
                         "these images lack: their similarities may differ from those that the "
                         "threshold was found on.")
        return text


def search(
    weights: Path, query: Path, gallery: Path, *, top_k: int = 10,
    threshold: Threshold | None = None, keep: Path | None = None,
) -> SearchResults:
    """Find the `top_k` gallery images nearest to each query image.

    weights: as for `svll.load`. query, gallery: folders, searched recursively, or one image; they
    may be the same, as no image finds itself. keep: a folder for the gallery's features, from which
    a later search takes those of unchanged images. Unreadable images are left out with a warning.
    Raises UserError where there are no images, none of them can be read, the weights do not load,
    or the threshold was found on features of another width.
    """
    paths = find_images(query)
    others = paths if gallery == query else find_images(gallery)
    ranks.check_gpus()
    extractor = Extractor(model_from_file(weights, str(ranks.device())))
    kept = None
    if keep is not None:
        kept = KeptFeatures(
            kept_file(keep, gallery, weights_file(weights), extractor.model), others
        )
    is_one = others == paths
    queries = encode(extractor, paths, "encoding queries", kept if is_one else None)
    if threshold is not None:
        threshold.check_width(queries.features.shape[1])
    images = queries if is_one else encode(extractor, others, "encoding gallery", kept)
    nearest, similarities = rank(queries, images, top_k)
    results, limit = [], threshold.similarity if threshold else 0.0
    for path, *ranked in zip(queries.paths, nearest.tolist(), similarities.tolist(), strict=True):
        results.append(QueryResult(path, [
            Hit(images.paths[row], value, value >= limit if threshold else None)
            for row, value in zip(*ranked, strict=True) if row >= 0
        ]))
    return SearchResults(
        weights, query, gallery, len(images.paths), results,
        queries.faults if images is queries else [*queries.faults, *images.faults],
        threshold, extractor.model.image.side is not None,
    )


def encode(
    extractor: Extractor, paths: Sequence[Path], title: str, kept: KeptFeatures | None = None
) -> EncodedImages:
    """Return the features of images; raises UserError when none of them can be read.

    kept: features of an earlier search, which are brought up to date.
    """
    found: Features = dict(kept.features) if kept else {}
    left = [path for path in paths if path not in found]
    faults: list[Fault] = []
    if left:
        _encode(extractor, left, title, found, faults)
    faults.sort()
    lines = "\n".join(f"  {shown(path)}: {reason}" for path, reason in faults[:MOST_LOGGED])
    if not found:
        raise UserError(f"none of {len(paths)} images can be read:\n{lines}")
    if faults:
        log.warning("Skipped %d of %d images that cannot be read:\n%s",
                    len(faults), len(paths), lines)
    if kept:
        kept.write(found)
    readable = [path for path in paths if path in found]
    return EncodedImages(readable, np.stack([found[path] for path in readable]), faults)


def _encode(
    extractor: Extractor, paths: Sequence[Path], title: str, found: Features, faults: list[Fault]
) -> None:
    """Add the features of images to `found`, and the images that cannot be read to `faults`."""
    done = 0
    with counter(title) as report:
        for rows, batch in extractor.read([os.fspath(path) for path in paths], faults):
            features = extractor.encode_batch(batch).numpy()
            found.update(zip((paths[row] for row in rows), features, strict=True))
            done += len(rows)
            report(done + len(faults), len(paths))


def rank(queries: EncodedImages, gallery: EncodedImages, top_k: int) -> tuple[Integers, Floats]:
    """Return the gallery rows nearest to each query [Q, K] and their similarities [Q, K].

    Exact, and block by block as in evaluation: equal similarities rank by gallery row. Row -1
    (similarity -inf) fills up where no more images are left. No image finds itself.
    """
    numbers: dict[Path, int] = {}  # of files, the same by all paths to one
    rows, columns = (
        # identity = file and one camera: evaluation then leaves out just the file itself
        Rows(
            name, side.features,
            np.array([numbers.setdefault(p.resolve(), len(numbers)) for p in side.paths], np.int64),
            np.zeros(len(side.paths), np.int64), unit=True,
        )
        for name, side in (("query", queries), ("gallery", gallery))
    )
    products = Products(queries.features, gallery.features)
    comparison = Comparison(rows, columns, products, nearest=top_k)
    parts = [
        comparison(chunk, [Extras.none(len(chunk))])[0]
        for chunk in Matches(rows, columns).chunks()
    ]
    return (
        np.concatenate([part.nearest for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )
