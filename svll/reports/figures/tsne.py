"""t-SNE pictures of features: texts after stage 1, test images after stage 2.

A t-SNE picture shows neighbours but no distances, so numbers computed on the features stand beside
it. Letters: n images, m points of a picture, N training identities, D width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import UserError
from harness.base.rng import generator
from harness.reporting.drawing import INK, LINES, look, new_figure
from svll.evaluation.engine.feature_rows import JUNK, Floats, Integers
from svll.reports.figures import text_features as texts
from svll.reports.figures.separation import Separation, separation
from svll.reports.figures.side_by_side import RunImages, RunsFigure, check_same, open_test_images

if TYPE_CHECKING:  # matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERPLEXITY = 30.0  # effective number of neighbours; at most a third of the points
IMAGES = 50  # most images shown per identity
TEXTS = 150  # most texts shown: the lines of more cannot be told apart
ACROSS = 3  # pictures side by side
MARKERS = "os^Dv<>pP*Xhd8H"  # of cameras, in order; more cameras share them
TITLE = 40  # letters in a line of a title
LEGEND_CAMERAS = 8  # most cameras that the legend has room for
GREY = "#8a94a0"  # of lines between points: visible on white and on black


def layout(features: NDArray[Any], seed: int) -> Floats:
    """Return places [m, 2] of unit features [m, D] by t-SNE, deterministic.

    Starts from the first two principal components; Euclidean distances order pairs of unit rows as
    cosines do. Raises UserError for fewer than four points.
    """
    if len(features) < 4:
        raise UserError(f"{len(features)} points are too few for a picture by t-SNE: at least 4")
    from sklearn.manifold import TSNE  # a second

    tsne = TSNE(init="pca", perplexity=_perplexity(len(features)), random_state=seed)
    return np.asarray(tsne.fit_transform(features.astype(np.float32)), np.float64)


def _perplexity(points: int) -> float:
    return min(PERPLEXITY, (points - 1) / 3)


def most_seen(identities: Integers, count: int, seed: int) -> Integers:
    """Return the identities with most images, without JUNK; `seed` breaks ties."""
    known, images = np.unique(identities[identities != JUNK], return_counts=True)
    order = generator(seed, 1).permutation(len(known))
    return known[order[np.argsort(-images[order], kind="stable")[:count]]]


class _Picture(NamedTuple):
    """One run's points [m], and the numbers beside them."""

    places: Floats  # [m, 2]
    identities: Integers
    cameras: Integers
    separation: Separation


def image_figure(runs: Mapping[str, Path], *, identities: int = 20, seed: int = 0) -> RunsFigure:
    """Draw test features of runs (title: folder) side by side, of the same images in all.

    Shows the identities with most images. The numbers are over all images of queried identities:
    silhouette, mean cosine distances within and between identities, and their ratio. Raises
    UserError for a run without features, for runs with different test images, and for features
    that are not finite.
    """
    pictures: dict[str, _Picture] = {}
    labels: dict[Path, tuple[Integers, ...]] = {}
    for title, folder in runs.items():
        with open_test_images(folder) as images:
            labels[folder] = images.identities, images.cameras
            check_same(labels)
            chosen = most_seen(images.identities, identities, seed)
            pictures[title] = _picture(images, chosen, seed)
    figure, panels = _panels(len(runs), legend=0.35)
    with look():
        for axes, (title, shown) in zip(panels, pictures.items(), strict=True):
            one = shown.separation
            text = f"silhouette {one.silhouette:.3f}   between / within {one.ratio:.2f}"
            _name(axes, title, text)
            _draw_images(axes, shown)
        cameras = np.unique(shown.cameras).tolist()
        if len(cameras) <= LEGEND_CAMERAS:
            _add_legend(figure, [
                (f"camera {c + images.first_camera}", MARKERS[c % len(MARKERS)], INK)
                for c in cameras
            ])
    numbers = {title: one.separation._asdict() for title, one in pictures.items()}
    return RunsFigure(figure, _image_caption(images, shown, len(chosen), seed), numbers)


def _picture(images: RunImages, chosen: Integers, seed: int) -> _Picture:
    """Lay out each chosen identity's images, of many IMAGES drawn by seed."""
    wanted = np.zeros(len(images.identities), np.bool_)
    for identity in chosen:
        rows = np.flatnonzero(images.identities == identity)
        wanted[generator(seed, 2, int(identity)).permutation(rows)[:IMAGES]] = True
    shown = images.rows(wanted)
    places = layout(shown.block(0, len(shown)).features, seed)
    return _Picture(places, shown.identities, shown.cameras, separation(images.rows()))


def _draw_images(axes: "Axes", shown: _Picture) -> None:
    import matplotlib

    _, of_identity = np.unique(shown.identities, return_inverse=True)
    colours = matplotlib.colormaps["tab20"](of_identity % 20)
    for camera in np.unique(shown.cameras):
        rows = shown.cameras == camera
        axes.scatter(shown.places[rows, 0], shown.places[rows, 1], s=13, linewidths=0,
                     marker=MARKERS[camera % len(MARKERS)], c=colours[rows])


def _image_caption(images: RunImages, shown: _Picture, chosen: int, seed: int) -> str:
    counted = images.identities[images.identities != JUNK]
    every, counts = np.unique(counted, return_counts=True)
    most = f", at most {IMAGES} of each" if counts.max() > IMAGES else ""
    cameras = len(np.unique(shown.cameras))
    shared = f" ({cameras} cameras share {len(MARKERS)})" if cameras > len(MARKERS) else ""
    return (f"Test features (f12 and fp concatenated) after stage 2: {len(shown.places)} images of "
            f"the {chosen} identities with most images{most}, of {images.dataset}'s query and "
            f"gallery, by {_method([len(shown.places)], seed)}. Colour: identity; marker: "
            f"camera{shared}. The numbers are computed on the features, not on the picture: mean "
            "silhouette (cosine), and mean cosine distance between identities divided by that "
            f"within, exact over all {len(counted)} images of the {len(every)} queried identities.")


def text_figure(runs: Mapping[str, Path], *, seed: int = 0) -> RunsFigure:
    """Draw text features of runs (title: folder) side by side, joined to their images' means.

    Texts only where stage 1's image features are missing; the caption says why. The numbers are
    those of `text_distances`, over all training identities. Raises UserError for a run without
    text features.
    """
    pictures: dict[str, list[Floats]] = {}
    numbers, missing, counts = {}, {}, {}
    for title, folder in runs.items():
        text, images = texts.text_features(folder), None
        try:
            images = texts.image_means(folder)
        except UserError as error:
            missing[title] = str(error)
        numbers[title], counts[title] = texts.text_distances(text, images), len(text)
        picked = generator(seed, 3).permutation(len(text))[:TEXTS]
        kinds = [rows[picked] for rows in (text, images) if rows is not None]
        centred = np.concatenate([texts.unit_rows(rows - rows.mean(axis=0)) for rows in kinds])
        pictures[title] = np.split(layout(centred, seed), len(kinds))
    figure, panels = _panels(len(runs), legend=0.2)
    with look():
        for axes, (title, places) in zip(panels, pictures.items(), strict=True):
            one = numbers[title]
            label = f"distance between texts {one['between texts']:.3f}"
            if "ratio" in one:
                label = (f"distance to own images {one['to own images']:.3f}, "
                         f"to others' {one[texts.OTHERS]:.3f}")
            _name(axes, title, label)
            _draw_texts(axes, places)
        marks = [("text", "s", LINES[1])]
        marks += [("mean image", "o", LINES[0])] if len(missing) < len(runs) else []
        _add_legend(figure, marks)
    return RunsFigure(figure, _text_caption(pictures, counts, missing, seed), numbers)


def _draw_texts(axes: "Axes", places: Sequence[Floats]) -> None:
    """Draw texts [m, 2] and, if given, mean images [m, 2], joined by lines."""
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
    joined = ("; a line joins each to the mean image feature (fp of the frozen encoder) of its "
              "identity's training images. Texts and images are each centred, as they lie apart in "
              "CLIP's space") if len(missing) < len(pictures) else ""
    text = ("Text features after stage 1, one per training identity "
            f"({', '.join(dict.fromkeys(shown))} shown), by {_method(points, seed)}{joined}. The "
            "numbers are mean cosine distances of the features before centring, over all training "
            "identities.")
    return " ".join([text, *(f"{title}: texts only: {why}." for title, why in missing.items())])


def _method(points: Sequence[int], seed: int) -> str:
    """Return how pictures with these numbers of points were made."""
    perplexities = dict.fromkeys(f"{_perplexity(count):.3g}" for count in points)
    return f"t-SNE (perplexity {' and '.join(perplexities)}, PCA start, seed {seed})"


def _panels(count: int, legend: float) -> tuple["Figure", list["Axes"]]:
    """Return a figure with panels without scales, as t-SNE has none; legend: height in inches."""
    across = min(count, ACROSS)
    down, side = -(-count // across), 3.4 if across < ACROSS else 2.6
    figure = new_figure(across * side, down * (side + 0.3) + legend)
    with look():
        panels = figure.subplots(down, across, squeeze=False).ravel().tolist()
        for axes in panels:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, linewidth=0.5)
        for axes in panels[count:]:
            axes.remove()
    return figure, panels[:count]


def _name(axes: "Axes", title: str, numbers: str) -> None:
    axes.set_title(f"{fill(title, TITLE)}\n{numbers}", fontsize=8, parse_math=False)


def _add_legend(figure: "Figure", marks: Sequence[tuple[str, str, str]]) -> None:
    """Add a legend below the pictures; marks: (label, marker, colour) each."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=4, label=label)
        for label, marker, colour in marks
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7.5,
                  handletextpad=0.1)
