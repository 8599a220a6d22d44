"""The similarity from which on images are accepted: given, or found on labelled features."""

from pathlib import Path
from typing import NamedTuple

from harness.base.errors import UserError
from harness.base.paths import shown
from harness.runs.run import Run
from svll.evaluation.engine.shared_work import Share
from svll.evaluation.feature_files.scores import verify_source
from svll.evaluation.feature_files.sources import open_source
from svll.evaluation.verification import Rates


class Calibration(NamedTuple):
    """The labelled features that a threshold was found on, and its error rates there."""

    path: Path
    width: int  # numbers in a feature
    at_fpr: float | None  # the FPR asked for; None: equal error rate
    rates: Rates
    model: str = ""  # that made the features, if their file says so


class Threshold(NamedTuple):
    """The cosine similarity from which on two images are accepted as one identity."""

    similarity: float
    calibration: Calibration | None = None  # None for a given similarity

    def __str__(self) -> str:
        accepted = f"Similarities of at least {self.similarity:.4f} are accepted"
        if self.calibration is None:
            return f"{accepted}, as given; the error rates are unknown."
        rates, at_fpr = self.calibration.rates, self.calibration.at_fpr
        rule = "both error rates are equal" if at_fpr is None else f"FPR is at most {at_fpr:g}"
        return (f"{accepted}; at this threshold {rule} on {shown(self.calibration.path)}: TPR "
                f"{rates.tpr:.4f}, FPR {rates.fpr:.4g}. These rates hold only for similar images.")

    def check_width(self, width: int) -> None:
        """Raise UserError unless it is given or found on features of `width` numbers."""
        if self.calibration and self.calibration.width != width:
            raise UserError(f"{shown(self.calibration.path)}: its features have "
                            f"{self.calibration.width} numbers, this model's {width}; find the "
                            "threshold on features of this model")


def given_threshold(similarity: float) -> Threshold:
    """Return a given threshold; raises UserError unless it is from -1 to 1."""
    if not abs(similarity) <= 1.0:
        raise UserError(f"{similarity:g} is no threshold: give a cosine similarity from -1 to 1")
    return Threshold(similarity)


def calibrated_threshold(
    path: Path, at_fpr: float | None = None, protocol: str | None = None, *,
    share: Share | None = None,
) -> Threshold:
    """Find the threshold on labelled features: at the equal error rate, or at an FPR.

    protocol: the file's own if None. Raises UserError, with the file, where it has no features, no
    genuine or impostor pairs, or too few for such an FPR.
    """
    with open_source(path, protocol=protocol) as source:
        try:
            verification = verify_source(source, share=share)
            similarity = verification.threshold(at_fpr)
        except UserError as error:
            raise UserError(f"{shown(path)}: no threshold can be found on it: {error}") from None
        width, model = source.query.features.shape[1], source.model
    return Threshold(similarity, Calibration(path, width, at_fpr, verification.at(similarity),
                                            model))


def own_features(weights: Path) -> Path | None:
    """Return the run's feature cache if `weights` is the folder of a run that has one."""
    path = Run(weights).features_file
    return path if path.is_file() else None
