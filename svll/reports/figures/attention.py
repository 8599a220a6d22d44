"""Attention of the class token over an image: in the last block, and by rollout through all blocks.

Rollout (Abnar and Zuidema 2020, section 3) multiplies the blocks' weights, averaged over heads and
with the identity added for the residual connection. Letters: B images, H heads, L tokens with the
class token first, W width, h x w grid of patches.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.base.paths import typed
from harness.base.rng import generator
from harness.reporting.drawing import look, new_figure
from svll.base.feature_file import FeatureFile, open_features
from svll.evaluation.engine.feature_rows import JUNK, Integers
from svll.features.files import features_file
from svll.models.blocks import blocks_of
from svll.models.extractor import preprocess
from svll.models.reid import ReIDModel
from svll.models.resnet import ResNetEncoder
from svll.models.trained_model import LoadedModel
from svll.models.vit import ImageEncoder
from svll.models.weights.load import model_from_file
from svll.reports.figures.side_by_side import RunsFigure, check_same, first_camera_of

if TYPE_CHECKING:  # matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec, SubplotSpec

LAST, ROLLOUT = "last block", "rollout"
COLOURS = "inferno"  # matplotlib's colour map of attention; lightness grows with it
ALPHA = 0.65  # opacity of the colours over the image
LETTER = 0.065  # approximate width of a title's letter in inches


def pool_weights(pool: Any, positions: Tensor) -> Tensor:
    """Return the weights [B, H, L] of CLIP's attention pool over a feature map [B, W, h, w].

    The query, the first token, is the mean of all positions; it stands for the class token.
    """
    tokens = positions.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    tokens = tokens + pool.positional_embedding
    query, key = (
        x.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for x in (pool.q_proj(tokens[:, :1]), pool.k_proj(tokens))
    )
    return (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)[:, :, 0]


def rollout(blocks: Sequence[Tensor]) -> Tensor:
    """Return input tokens' shares in output tokens [B, L, L] by blocks' weights [B, L, L]."""
    identity = torch.eye(blocks[0].shape[-1]).to(blocks[0])
    product = identity
    for weights in blocks:
        mixed = weights + identity
        product = mixed / mixed.sum(dim=-1, keepdim=True) @ product
    return product


def over_patches(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the class token's weights [B, L], without its own, as maps [B, h, w] that sum to 1."""
    patches = rows[:, 1:]
    return (patches / patches.sum(dim=1, keepdim=True)).unflatten(1, grid)


def entropy(maps: Tensor) -> Tensor:
    """Return each map's [B, h, w] entropy [B]: 1 for uniform attention, 0 for a single patch."""
    patches = maps.flatten(1)
    return torch.special.entr(patches).sum(dim=1) / np.log(patches.shape[1])


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor, *places: Tensor) -> dict[str, Tensor]:
    """Return maps [B, h, w] of normalised images [B, 3, H, W]: of the last block, and rollout.

    A ResNet only has the attention of its pool: its layers have no tokens to follow. places: camera
    and view [B], as the model takes them. Raises UserError for an encoder that is not CLIP's.
    """
    encoder = model.encoder if isinstance(model, ReIDModel) else None
    if isinstance(encoder, ResNetEncoder):
        pool: Any = encoder.visual.attnpool
        [positions] = _outputs([encoder.visual.layer4], lambda: model(images, *places))
        rows = {LAST: pool_weights(pool, positions).mean(dim=1)}
    elif isinstance(encoder, ImageEncoder):
        blocks: list[Any] = blocks_of(encoder.visual.transformer)
        tokens = _outputs([block.ln_1 for block in blocks], lambda: model(images, *places))
        weights = [block.attn(x, x, x)[1] for block, x in zip(blocks, tokens, strict=True)]
        rows = {LAST: weights[-1][:, 0], ROLLOUT: rollout(weights)[:, 0]}
    else:
        raise UserError("attention can be shown for CLIP's image encoders only; this model has "
                        f"another one ({type(model).__name__})")
    return {name: over_patches(row, encoder.grid) for name, row in rows.items()}


def _outputs(modules: Sequence[Any], run: Callable[[], Any]) -> list[Tensor]:
    """Return what each module returns while `run` runs; it must call each once."""
    outputs: dict[nn.Module, Tensor] = {}
    with ExitStack() as hooks:
        for one in modules:
            hook = one.register_forward_hook(lambda one, _, out: outputs.update({one: out}))
            hooks.callback(hook.remove)
        run()
    return [outputs[one] for one in modules]


class _RunMaps(NamedTuple):
    """One run's attention over the chosen images."""

    images: Tensor  # [B, H, W, 3], 0 to 1, at the model's input size
    maps: dict[str, Tensor]  # [B, h, w] by name

    def entropies(self) -> dict[str, float]:
        return {name: float(entropy(maps).mean()) for name, maps in self.maps.items()}


def attention_figure(runs: Mapping[str, Path], *, images: int = 4, seed: int = 0) -> RunsFigure:
    """Draw maps of runs (title: folder) over the same queries, each of a different identity.

    A row for each image; beside it, for each run, the last block and rollout. The numbers are the
    maps' mean entropy. Raises UserError for a run without features or a trained model, for runs
    with different queries, and for missing images.
    """
    labels: dict[Path, tuple[Integers, ...]] = {}
    shown: dict[str, _RunMaps] = {}
    for title, folder in runs.items():
        with open_features(features_file(folder), ("query", "gallery")) as file:
            query = file.groups["query"]
        labels[folder] = query.identities, query.cameras
        check_same(labels)
        order = generator(seed, 4).permutation(np.flatnonzero(query.identities != JUNK))
        _, first = np.unique(query.identities[order], return_index=True)
        rows = order[np.sort(first)[:images]]
        model = model_from_file(folder)
        batch = preprocess(_paths(folder, file, rows), model)
        mean, std = (torch.tensor(colour)[:, None, None] for colour in (model.mean, model.std))
        pictures = (batch * std + mean).permute(0, 2, 3, 1).clamp(0, 1)
        maps = attention_maps(model.image, batch, *_places(file, rows, model))
        shown[title] = _RunMaps(pictures, maps)
    cameras = query.cameras[rows] + (first_camera_of(file) or 0)
    columns = zip(query.identities[rows], cameras, strict=True)
    names = [f"identity {identity}, camera {camera}" for identity, camera in columns]
    numbers = {title: one.entropies() for title, one in shown.items()}
    caption = _caption(shown, file.dataset, len(rows), seed)
    return RunsFigure(_draw(shown, names), caption, numbers)


def _paths(folder: Path, file: FeatureFile, rows: Integers) -> list[str]:
    known = file.groups["query"].paths
    if known is None:
        raise UserError(f"{file.path}: has no image paths; to make it again, delete it and run "
                        f"python launch/features.py {typed(folder)}")
    paths = [known[row] for row in rows]
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; put the dataset back, or delete {file.path} "
                            f"and run python launch/features.py {typed(folder)} data.root=DIR with "
                            "its new folder")
    return paths


def _places(file: FeatureFile, rows: Integers, model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return the places [B] of queries among the cameras and views of training."""
    first_camera = first_camera_of(file)
    if first_camera is None:
        raise UserError(f"{file.path}: does not say how its dataset numbers cameras; to make it "
                        "again, delete it and run python launch/features.py RUN")
    query = file.groups["query"]
    has_views = any(group.views is not None and group.views.any() for group in file.groups.values())
    camera, view = model.side_labels.places(
        file.dataset, query.cameras[rows] + first_camera,
        query.views[rows] if has_views and query.views is not None else None,
    )
    return torch.from_numpy(camera), torch.from_numpy(view)


def _draw(shown: Mapping[str, _RunMaps], names: Sequence[str]) -> "Figure":
    """Draw a row for each image, with its name, and columns for each run's maps."""
    images = next(iter(shown.values())).images
    columns = 1 + sum(len(one.maps) for one in shown.values())
    aspect = images.shape[1] / images.shape[2]
    width = max(0.7, min(1.0, 1.5 / aspect))  # room for the titles
    letters = {title: int(len(one.maps) * width / LETTER) for title, one in shown.items()}
    titles = {title: fill(title, count) for title, count in letters.items()}
    head = 0.16 * (1 + max(title.count("\n") for title in titles.values()))
    figure = new_figure(columns * width + 0.25, len(names) * width * aspect + head + 0.4)
    with look():
        figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
        grid = figure.add_gridspec(1 + len(names), columns,
                                   height_ratios=[head, *[width * aspect] * len(names)])
        for row, (image, name) in enumerate(zip(images, names, strict=True), start=1):
            _cell(figure, grid[row, 0], image.numpy()).set_ylabel(name, fontsize=6.5)
        first = 1
        for title, one in shown.items():
            last = first + len(one.maps)
            axes = figure.add_subplot(grid[0, first:last])
            axes.set_axis_off()
            axes.text(0.5, 0.0, titles[title], ha="center", va="bottom", fontsize=8,
                      transform=axes.transAxes, parse_math=False)
            _add_maps(figure, grid, first, one)
            first = last
    return figure


def _add_maps(figure: "Figure", grid: "GridSpec", column: int, shown: _RunMaps) -> None:
    """Draw a run's maps over its images, with each kind's mean entropy above."""
    for kind, (name, value) in enumerate(shown.entropies().items()):
        for row, (image, one) in enumerate(zip(shown.images, shown.maps[name], strict=True)):
            axes = _cell(figure, grid[1 + row, column + kind], overlaid(image, one))
            if row == 0:
                axes.set_title(f"{name}\nentropy {value:.2f}", fontsize=6.5)


def _cell(figure: "Figure", place: "SubplotSpec", pixels: NDArray[Any]) -> "Axes":
    axes = figure.add_subplot(place)
    axes.imshow(pixels, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes


def overlaid(image: Tensor, weights: Tensor) -> NDArray[np.float32]:
    """Return an image [H, W, 3] under a map [h, w] in colours from 0 to the map's maximum."""
    import matplotlib

    large = F.interpolate(weights[None, None], size=image.shape[:2], mode="bilinear",
                          align_corners=False)[0, 0]
    colours = matplotlib.colormaps[COLOURS]((large / large.max()).numpy())[..., :3]
    return np.asarray((1 - ALPHA) * image.numpy() + ALPHA * colours, np.float32)


def _caption(shown: Mapping[str, _RunMaps], dataset: str, count: int, seed: int) -> str:
    text = (f"Attention of the class token after stage 2 over {count} query images of {dataset}, "
            f"of different identities, drawn by seed {seed}: in the last block, mean over heads, "
            "and by rollout through all blocks (Abnar and Zuidema 2020), without the token's "
            "attention to itself. Colours go from 0 to each map's largest value. Entropy: mean "
            "over these images, 1 for uniform attention, 0 for a single patch.")
    resnets = [title for title, one in shown.items() if ROLLOUT not in one.maps]
    if resnets:
        text += (f" {', '.join(resnets)}: ResNet, attention of CLIP's pool; rollout is not defined "
                 "for it.")
    return text
