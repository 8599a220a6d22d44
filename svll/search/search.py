"""A folder of query images against a folder of gallery images: the nearest of each, as they look.

Images are encoded as in tests, without cameras, and compared by cosine similarity. A threshold that
was found on labelled features says which are taken for the same identity.

Letters: Q queries, G gallery images, D width of a feature, K how many nearest are wanted.
"""

import csv
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.files import atomic_write
from harness.base.paths import shown
from harness.images.pixels import Fault
from harness.runs.run import Run
from harness.training import ranks
from harness.training.progress import counter
from svll.data.image_folder import find_images
from svll.evaluation.engine.comparison import Comparison
from svll.evaluation.engine.feature_rows import Floats, Integers, Rows
from svll.evaluation.engine.kernels import Extras
from svll.evaluation.engine.matches import Matches
from svll.evaluation.engine.products import Products
from svll.evaluation.feature_files.scores import verify_source
from svll.evaluation.feature_files.sources import open_source
from svll.evaluation.verification import Rates
from svll.models import load_model
from svll.models.extractor import Extractor

NAMED = 20
"""How many broken images the log names; the page names all."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broken:
    """An image that was left out."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """The images that could be read, and those that could not."""

    paths: list[Path]
    features: NDArray[np.float32]
    """[n, D], of unit length."""
    broken: list[Broken]


@dataclass(frozen=True)
class Calibration:
    """Labelled features that a threshold was found on, and how well it told them apart."""

    path: Path
    width: int
    """D, of the model that made them."""
    at_fpr: float | None
    """The FPR that was asked for; None: where both error rates are equal."""
    rates: Rates


@dataclass(frozen=True)
class Threshold:
    """The similarity from which on two images are accepted as one identity."""

    similarity: float
    calibration: Calibration | None = None
    """None where it was simply given."""

    def __str__(self) -> str:
        accepted = f"Accepted are similarities of at least {self.similarity:.4f}"
        if self.calibration is None:
            return f"{accepted}, as given; how often that is right was not measured."
        rates, asked = self.calibration.rates, self.calibration.at_fpr
        rule = "both error rates are equal" if asked is None else f"FPR is at most {asked:g}"
        return (
            f"{accepted}, where {rule} on {shown(self.calibration.path)}: TPR {rates.tpr:.4f}, "
            f"FPR {rates.fpr:.4g} there. This holds only for images like those."
        )


@dataclass(frozen=True)
class Hit:
    """A gallery image among the nearest of a query."""

    path: Path
    similarity: float
    accepted: bool | None
    """None without a threshold."""

    @property
    def word(self) -> str:
        """For people; empty without a threshold."""
        return "" if self.accepted is None else "accepted" if self.accepted else "rejected"


@dataclass(frozen=True)
class Answer:
    """A query and its nearest, best first."""

    query: Path
    hits: list[Hit]


@dataclass(frozen=True)
class Found:
    """What a search found."""

    weights: Path
    query: Path
    gallery: Path
    images: int
    """In the gallery, without those that are broken."""
    answers: list[Answer]
    broken: list[Broken]
    threshold: Threshold | None
    has_side: bool
    """Whether the model was trained with side information, which a search is without."""

    @property
    def verdict(self) -> str:
        """How was decided what is accepted, in sentences."""
        if self.threshold is None:
            return (
                "Nothing is accepted or rejected, for there is no threshold: none was given, and "
                f"{shown(self.weights)} is no run's folder with features.h5 to find one on; add "
                "--threshold-from FEATURES.h5, or --threshold with a similarity."
            )
        told = [str(self.threshold)]
        if calibration := self.threshold.calibration:
            wrong = calibration.rates.fpr * self.images
            told.append(
                f"At that FPR a gallery of {self.images} gives each query about {wrong:.2g} wrong "
                "images."
            )
            if self.has_side:
                told.append(
                    "The model was trained with side information (cameras or views), which images "
                    "here do not have: similarities may differ from those that the threshold was "
                    "found on."
                )
        return " ".join(told)


def search(
    weights: Path, query: Path, gallery: Path, *, top_k: int = 10,
    threshold: Threshold | None = None,
) -> Found:
    """Find the `top_k` gallery images nearest to each query image.

    weights: whatever `svll.load` takes. query, gallery: folders, searched with all below them, or
    one image; they may be the same, as no image finds itself. Images that cannot be read are left
    out with a warning. Raises UserError where there are no images, none of them can be read, the
    weights do not load, or the threshold is of features of another width.
    """
    paths = find_images(query)
    others = paths if gallery == query else find_images(gallery)
    extractor = Extractor(load_model(weights, str(ranks.device())))
    asking = encode(extractor, paths, "encoding queries")
    _check_width(threshold, asking.features.shape[1])
    known = asking if others == paths else encode(extractor, others, "encoding gallery")
    nearest, similarities = rank(asking, known, top_k)
    answers = [
        Answer(path, _hits(rows, values, known.paths, threshold))
        for path, rows, values in zip(asking.paths, nearest, similarities, strict=True)
    ]
    broken = asking.broken if known is asking else [*asking.broken, *known.broken]
    has_side = extractor.model.image.side is not None
    return Found(
        weights, query, gallery, len(known.paths), answers, broken, threshold, has_side
    )


def encode(extractor: Extractor, paths: Sequence[Path], title: str) -> Encoded:
    """Return the features of images; raises UserError when none of them can be read."""
    kept: list[Path] = []
    faults: list[Fault] = []
    features = []
    with counter(title) as report:
        for rows, batch in extractor.read([os.fspath(path) for path in paths], faults):
            features.append(extractor.encode_batch(batch))
            kept += [paths[row] for row in rows]
            report(len(kept) + len(faults), len(paths))
    broken = [Broken(Path(path), reason) for path, reason in sorted(faults)]
    told = "\n".join(f"  {shown(one.path)}: {one.reason}" for one in broken[:NAMED])
    if not features:
        raise UserError(f"none of {len(paths)} images can be read:\n{told}")
    if broken:
        log.warning("%d of %d images cannot be read and are left out:\n%s",
                    len(broken), len(paths), told)
    return Encoded(kept, torch.cat(features).numpy(), broken)


def rank(queries: Encoded, gallery: Encoded, top_k: int) -> tuple[Integers, Floats]:
    """Return the gallery rows nearest to each query [Q, K] and their similarities [Q, K].

    Exact, and block by block as in evaluation: equal similarities rank by gallery row, and a row of
    -1 (similarity -inf) stands where no more images are left. No image finds itself.
    """
    numbers: dict[Path, int] = {}
    asking, known = (
        # one identity and camera for each file: what evaluation leaves out is the file itself
        Rows(name, side.features, _numbered(side.paths, numbers),
             np.zeros(len(side.paths), np.int64), unit=True)
        for name, side in (("query", queries), ("gallery", gallery))
    )
    comparison = Comparison(
        asking, known, Products(queries.features, gallery.features), nearest=top_k
    )
    found = [
        comparison(chunk, [Extras.none(len(chunk))])[0]
        for chunk in Matches(asking, known).chunks()
    ]
    return (
        np.concatenate([part.nearest for part in found]),
        np.concatenate([part.scores for part in found]),
    )


def _numbered(paths: Sequence[Path], numbers: dict[Path, int]) -> Integers:
    """Return a number for each file [n], the same for the same file by whatever path."""
    return np.array([numbers.setdefault(p.resolve(), len(numbers)) for p in paths], np.int64)


def _hits(
    rows: Integers, similarities: Floats, paths: Sequence[Path], threshold: Threshold | None
) -> list[Hit]:
    return [
        Hit(paths[row], value, None if threshold is None else value >= threshold.similarity)
        for row, value in zip(rows.tolist(), similarities.tolist(), strict=True) if row >= 0
    ]


# --- threshold ---


def given_threshold(similarity: float) -> Threshold:
    """Return a threshold that is simply given; raises UserError unless it is from -1 to 1."""
    if not abs(similarity) <= 1.0:
        raise UserError(
            f"{similarity:g} is no threshold: a cosine similarity from -1 to 1 is needed"
        )
    return Threshold(similarity)


def calibrated_threshold(path: Path, at_fpr: float | None = None) -> Threshold:
    """Find the threshold on labelled features: where both error rates are equal, or at an FPR.

    Raises UserError, with the file, where it has no features, no genuine or impostor pairs, or too
    few for such an FPR.
    """
    with open_source(path) as source:
        try:
            found = verify_source(source)
            similarity = found.threshold(at_fpr)
        except UserError as error:
            raise UserError(f"{shown(path)}: no threshold can be found on it: {error}") from None
        width = source.query.features.shape[1]
    return Threshold(similarity, Calibration(path, width, at_fpr, found.at(similarity)))


def own_features(weights: Path) -> Path | None:
    """Return the feature cache of a run, where `weights` is the folder of one that has it."""
    path = Run(weights).features_file
    return path if path.is_file() else None


def _check_width(threshold: Threshold | None, width: int) -> None:
    calibration = threshold.calibration if threshold else None
    if calibration and calibration.width != width:
        raise UserError(
            f"{shown(calibration.path)}: its features have {calibration.width} numbers, those of "
            f"this model {width}: a threshold must be found on features of the same model"
        )


# --- written down ---


def name_in(path: Path, place: Path) -> str:
    """Return an image's name for people: its path within the folder that was searched."""
    return shown(Path(path.name) if path == place else path.relative_to(place))


def write_csv(found: Found, path: Path) -> None:
    """Write a line for each query and its K nearest; names that are not UTF-8 keep their bytes."""
    words = {True: "true", False: "false", None: ""}
    with (
        atomic_write(path) as private,
        private.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "rank", "gallery", "similarity", "accepted"])
        for answer in found.answers:
            for place, hit in enumerate(answer.hits, start=1):
                accepted = words[hit.accepted]
                writer.writerow([answer.query, place, hit.path, hit.similarity, accepted])
