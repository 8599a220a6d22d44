"""What figures of runs side by side share: the same test images, a caption, numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from svll.base.feature_file import FeatureFile, open_features
from svll.base.records import usual_first_camera
from svll.evaluation.engine.feature_rows import JUNK, Integers, Rows, Stacked
from svll.features.files import features_file

if TYPE_CHECKING:  # matplotlib
    from matplotlib.figure import Figure


class RunsFigure(NamedTuple):
    """A figure of several runs."""

    figure: "Figure"
    caption: str  # which images or identities, which feature, and how the numbers were computed
    numbers: Mapping[str, Mapping[str, float]]  # by the run's title and the number's name


class RunImages(NamedTuple):
    """All images of a run's test set, gallery then query; those not counted have identity JUNK.

    Not counted are junk, images of persons without a query (distractors, which may share one
    number), and queries that are in the gallery as well.
    """

    where: str
    dataset: str
    features: Any  # [n, D] in their file
    identities: Integers
    cameras: Integers
    first_camera: int  # the dataset's number of camera 0

    def rows(self, wanted: NDArray[np.bool_] | None = None) -> Rows:
        """Return the counted images, or those of them that are wanted [n], at unit length."""
        labels = self.identities if wanted is None else np.where(wanted, self.identities, JUNK)
        return Rows(self.where, self.features, labels, self.cameras, unit=True)


@contextmanager
def open_test_images(folder: Path) -> Iterator[RunImages]:
    """Yield a run's test images, features unread; raises UserError when it has none."""
    path = features_file(folder)
    with open_features(path, ("query", "gallery")) as file:
        query, gallery = file.groups["query"], file.groups["gallery"]
        identities = np.concatenate([gallery.identities, query.identities])
        counted = np.isin(identities, query.identities[query.identities != JUNK])
        if query.paths is not None and gallery.paths is not None:
            known = set(gallery.paths)
            is_new = [path not in known for path in query.paths]
            counted[len(gallery.identities):] &= np.array(is_new, np.bool_)
        yield RunImages(
            str(path), file.dataset or path.stem, Stacked([gallery.features, query.features]),
            np.where(counted, identities, JUNK),
            np.concatenate([gallery.cameras, query.cameras]), first_camera_of(file) or 0,
        )


def first_camera_of(file: FeatureFile) -> int | None:
    """Return a dataset's number of camera 0, None where it is unknown."""
    known = file.first_camera
    return usual_first_camera(file.dataset) if known is None else known


def check_same(labels: Mapping[Path, tuple[Integers, ...]]) -> None:
    """Raise UserError for runs, by folder, with different test images or another order."""
    (first, expected), *others = labels.items()
    for folder, arrays in others:
        if not all(map(np.array_equal, expected, arrays)):
            raise UserError(f"{folder}: was tested on other images than {first}; only runs of one "
                            "test set can be shown side by side")
