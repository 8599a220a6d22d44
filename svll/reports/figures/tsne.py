"""t-SNE pictures of features: texts after stage 1, test images after stage 2.

A picture of t-SNE shows neighbours and no distances, so numbers stand beside it that are of the
features themselves. Letters: n images, m points of a picture, N training identities, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.rng import generator
from harness.reporting.drawing import INK, LINES, look, new_figure
from svll.evaluation.engine.feature_rows import JUNK
from svll.reports.figures.figure_with_numbers import Drawn
from svll.reports.figures.separation import Separation, separation
from svll.reports.figures.test_images import Int64, Tested, check_same, open_tested
from svll.reports.figures.text_features import OTHERS, image_means, text_distances, text_features

if TYPE_CHECKING:  # matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERPLEXITY = 30.0
"""About how many neighbours a point has; fewer where there are not three times as many points."""
IMAGES = 50
"""Of one identity that are shown."""
TEXTS = 150
"""Texts that are shown: the lines of more cannot be told apart."""
ACROSS = 3
"""Pictures side by side."""
MARKERS = "os^Dv<>pP*Xhd8H"
"""Of cameras, in order; where there are more, from the start again."""
TITLE = 40
"""Letters in a line of a title."""
TOLD_CAMERAS = 8
"""Cameras that a legend has room for."""
GREY = "#8a94a0"
"""Of lines between points: seen on white and on black."""

Floats = NDArray[np.float64]


def layout(features: NDArray[Any], seed: int) -> Floats:
    """Return places [m, 2] of unit features [m, D] by t-SNE, the same each time.

    From the first two principal components, in Euclidean distances, which order pairs of unit rows
    as cosines do. Raises UserError for fewer than four points.
    """
    if len(features) < 4:
        raise UserError(f"{len(features)} points are too few for a picture by t-SNE: at least 4")
    from sklearn.manifold import TSNE  # a second

    tsne = TSNE(init="pca", perplexity=_perplexity(len(features)), random_state=seed)
    return np.asarray(tsne.fit_transform(features.astype(np.float32)), np.float64)


def _perplexity(points: int) -> float:
    return min(PERPLEXITY, (points - 1) / 3)


def most_seen(identities: Int64, count: int, seed: int) -> Int64:
    """Return the identities with most images, JUNK aside; `seed` says which of equals."""
    found, images = np.unique(identities[identities != JUNK], return_counts=True)
    order = generator(seed, 1).permutation(len(found))
    return found[order[np.argsort(-images[order], kind="stable")[:count]]]


# ---- test images after stage 2 ----


@dataclass(frozen=True, eq=False)
class _Picture:
    """One run's points, and of which images they are."""

    places: Floats
    """[m, 2]"""
    identities: Int64
    cameras: Int64
    separation: Separation


def image_figure(runs: Mapping[str, Path], *, identities: int = 20, seed: int = 0) -> Drawn:
    """Draw test features of runs (title: folder) side by side, of the same images in all.

    Shown are the identities with most images; the numbers are of all that a query asks for:
    silhouette, mean cosine distances within and between identities, and their ratio. Raises
    UserError for a run without features, for other test images than the first run's, and for
    features that are not finite.
    """
    pictures: dict[str, _Picture] = {}
    labels: dict[Path, tuple[Int64, ...]] = {}
    for title, folder in runs.items():
        with open_tested(folder) as tested:
            labels[folder] = tested.identities, tested.cameras
            check_same(labels)
            chosen = most_seen(tested.identities, identities, seed)
            pictures[title] = _picture(tested, chosen, seed)
    figure = new_figure(*_size(len(runs), legend=0.35))
    with look():
        for axes, (title, shown) in zip(_panels(figure, len(runs)), pictures.items(), strict=True):
            found = shown.separation
            _name(axes, title, f"silhouette {found.silhouette:.3f}   between / within "
                               f"{found.ratio:.2f}")
            _draw_images(axes, shown)
        _add_cameras(figure, shown.cameras, tested.first_camera)
    numbers = {
        title: asdict(one.separation) | {"ratio": one.separation.ratio}
        for title, one in pictures.items()
    }
    return Drawn(figure, _image_caption(tested, shown, len(chosen), seed), numbers)


def _picture(tested: Tested, chosen: Int64, seed: int) -> _Picture:
    rows = tested.rows(_drawn(tested.identities, chosen, seed))
    places = layout(rows.block(0, len(rows)).features, seed)
    return _Picture(places, rows.identities, rows.cameras, separation(tested.rows()))


def _drawn(identities: Int64, chosen: Int64, seed: int) -> NDArray[np.bool_]:
    """Tell which images [n] are shown: of each chosen identity all, or IMAGES drawn by seed."""
    wanted = np.zeros(len(identities), np.bool_)
    for identity in chosen:
        rows = np.flatnonzero(identities == identity)
        wanted[generator(seed, 2, int(identity)).permutation(rows)[:IMAGES]] = True
    return wanted


def _draw_images(axes: "Axes", shown: _Picture) -> None:
    import matplotlib

    _, of_identity = np.unique(shown.identities, return_inverse=True)
    colours = matplotlib.colormaps["tab20"](of_identity % 20)
    for camera in np.unique(shown.cameras):
        rows = shown.cameras == camera
        axes.scatter(
            shown.places[rows, 0], shown.places[rows, 1], s=13, marker=_marker(camera),
            linewidths=0, c=colours[rows],
        )


def _marker(camera: int) -> str:
    return MARKERS[camera % len(MARKERS)]


def _add_cameras(figure: "Figure", cameras: Int64, first: int) -> None:
    """Say which marker is which camera, where there is room for it; camera 0 is called `first`."""
    found = np.unique(cameras).tolist()
    if len(found) <= TOLD_CAMERAS:
        _add_legend(figure, [(f"camera {c + first}", _marker(c), INK) for c in found])


def _image_caption(tested: Tested, shown: _Picture, chosen: int, seed: int) -> str:
    counted = tested.identities[tested.identities != JUNK]
    every, images = np.unique(counted, return_counts=True)
    most = f", at most {IMAGES} of each" if images.max() > IMAGES else ""
    cameras = len(np.unique(shown.cameras))
    shared = f" ({cameras} cameras share {len(MARKERS)})" if cameras > len(MARKERS) else ""
    return (
        f"Test features (f12 and fp side by side) after stage 2: {len(shown.places)} images of the "
        f"{chosen} identities with most images{most}, of {tested.dataset}'s query and gallery, by "
        f"{_method([len(shown.places)], seed)}. Colour: identity; marker: camera{shared}. The "
        "numbers are of the features, not of the picture: mean silhouette (cosine), and mean "
        "cosine distance between identities over that within, exact over all "
        f"{len(counted)} images of the {len(every)} identities that queries ask for."
    )


# ---- texts after stage 1 ----


def text_figure(runs: Mapping[str, Path], *, seed: int = 0) -> Drawn:
    """Draw text features of runs (title: folder) side by side, joined to their images' means.

    Where the image features of stage 1 are not there any more, texts alone, and the caption says
    why. The numbers are those of `text_distances`, over all training identities. Raises UserError
    for a run that has no text features.
    """
    pictures: dict[str, list[Floats]] = {}
    numbers, missing, counts = {}, {}, {}
    for title, folder in runs.items():
        text, images = text_features(folder), None
        try:
            images = image_means(folder)
        except UserError as error:
            missing[title] = str(error)
        numbers[title], counts[title] = text_distances(text, images), len(text)
        picked = generator(seed, 3).permutation(len(text))[:TEXTS]
        kinds = [rows[picked] for rows in (text, images) if rows is not None]
        pictures[title] = np.split(layout(_centred(kinds), seed), len(kinds))
    figure = new_figure(*_size(len(runs), legend=0.2))
    with look():
        for axes, (title, places) in zip(_panels(figure, len(runs)), pictures.items(), strict=True):
            _name(axes, title, _told(numbers[title]))
            _draw_texts(axes, places)
        marks = [("text", "s", LINES[1])]
        marks += [("mean image", "o", LINES[0])] if len(missing) < len(runs) else []
        _add_legend(figure, marks)
    return Drawn(figure, _text_caption(pictures, counts, missing, seed), numbers)


def _centred(kinds: Sequence[Floats]) -> Floats:
    """Return rows of each kind [m, D], less the kind's mean and at unit length again, as one."""
    moved = [rows - rows.mean(axis=0) for rows in kinds]
    return np.concatenate([
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in moved
    ])


def _told(numbers: Mapping[str, float]) -> str:
    if "ratio" not in numbers:
        return f"distance between texts {numbers['between texts']:.3f}"
    return (f"distance to own images {numbers['to own images']:.3f}, "
            f"to others' {numbers[OTHERS]:.3f}")


def _draw_texts(axes: "Axes", places: Sequence[Floats]) -> None:
    """Draw texts [m, 2], and where there are any, mean images [m, 2] with lines to them."""
    if len(places) == 2:
        axes.plot(*np.stack(places).transpose(2, 0, 1), color=GREY, linewidth=0.7, zorder=1)
    for rows, marker, colour in zip(places, "so", (LINES[1], LINES[0]), strict=False):
        axes.scatter(rows[:, 0], rows[:, 1], s=11, marker=marker, linewidths=0, color=colour)


def _text_caption(
    pictures: Mapping[str, Sequence[Floats]], counts: Mapping[str, int],
    missing: Mapping[str, str], seed: int,
) -> str:
    points = [sum(map(len, places)) for places in pictures.values()]
    shown = [f"{len(pictures[title][0])} of {count}" for title, count in counts.items()]
    text = (
        "Text features after stage 1, one of each training identity (shown are "
        f"{', '.join(dict.fromkeys(shown))}), by {_method(points, seed)}"
    )
    if len(missing) < len(pictures):
        text += (
            "; a line joins each to the mean image feature (fp of the frozen encoder) of its "
            "identity's training images. Texts and images are each shown less their own mean, as "
            "the two lie apart in CLIP's space"
        )
    text += (
        ". The numbers are mean cosine distances of the features as they are, over all training "
        "identities."
    )
    alone = [f"{title}: texts alone, as {why}." for title, why in missing.items()]
    return " ".join([text, *alone])


# ---- pictures side by side ----


def _method(points: Sequence[int], seed: int) -> str:
    """Say how pictures of so many points were made."""
    told = dict.fromkeys(f"{_perplexity(count):.3g}" for count in points)
    return f"t-SNE (perplexity {' and '.join(told)}, PCA start, seed {seed})"


def _size(count: int, legend: float) -> tuple[float, float]:
    """Return the width and height in inches of a figure of so many pictures."""
    across = min(count, ACROSS)
    side = 3.4 if across < ACROSS else 2.6
    return across * side, -(-count // ACROSS) * (side + 0.3) + legend


def _panels(figure: "Figure", count: int) -> list["Axes"]:
    """Return axes for pictures without scales, as places by t-SNE have none."""
    across = min(count, ACROSS)
    every = figure.subplots(-(-count // across), across, squeeze=False).ravel().tolist()
    for axes in every:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, linewidth=0.5)
    for axes in every[count:]:
        axes.remove()
    return list(every[:count])


def _name(axes: "Axes", title: str, numbers: str) -> None:
    axes.set_title(f"{fill(title, TITLE)}\n{numbers}", fontsize=8, parse_math=False)


def _add_legend(figure: "Figure", marks: Sequence[tuple[str, str, str]]) -> None:
    """Say below the pictures what marks mean: (word, marker, colour) each."""
    from matplotlib.lines import Line2D

    figure.legend(
        handles=[
            Line2D([], [], linestyle="", marker=marker, color=colour, markersize=4, label=word)
            for word, marker, colour in marks
        ],
        loc="outside lower center", ncols=3, fontsize=7.5, handletextpad=0.1,
    )
