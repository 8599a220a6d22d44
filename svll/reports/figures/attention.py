"""Where the class token looks: attention over an image, of the last block and through all blocks.

Rollout is that of Abnar and Zuidema 2020 (section 3): each block's weights, averaged over heads,
with half of each token passed on as it is, multiplied through the blocks. Letters: B images,
H heads, L tokens with the class token first, W width, h x w grid of patches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.base.rng import generator
from harness.reporting.drawing import look, new_figure
from svll.base.feature_file import FeatureFile, FeatureGroup, open_features
from svll.evaluation.engine.feature_rows import JUNK
from svll.models import load_model
from svll.models.blocks import blocks_of
from svll.models.extractor import preprocess
from svll.models.reid import ReIDModel
from svll.models.resnet import ResNetEncoder
from svll.models.trained_model import LoadedModel
from svll.models.vit import ImageEncoder
from svll.reports.figures.figure_with_numbers import Drawn
from svll.reports.figures.test_images import Int64, check_same, features_file, first_camera_of

if TYPE_CHECKING:  # matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec, SubplotSpec

LAST, ROLLOUT = "last block", "rollout"
COLOURS = "inferno"
"""Matplotlib's name of the colours of attention: lightness grows with it."""
ALPHA = 0.65
"""How much of the image the colour covers where attention is largest."""
LETTER = 0.065
"""Inches of a title's letter, about."""


# ---- weights ----


def block_weights(attention: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Return the weights [B, H, L, L] by which a block's attention mixes its input [B, L, W].

    Row i of a head sums to 1 over the tokens that token i looks at.
    """
    query, key, _ = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias).chunk(3, 2)
    return _softmax(query, key, attention.num_heads)


def pool_weights(pool: Any, positions: Tensor) -> Tensor:
    """Return the weights [B, H, L] of CLIP's attention pool over a feature map [B, W, h, w].

    Their first token is the mean of all positions, which asks; it stands for the class token.
    """
    tokens = positions.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    tokens = tokens + pool.positional_embedding
    return _softmax(pool.q_proj(tokens[:, :1]), pool.k_proj(tokens), pool.num_heads)[:, :, 0]


def _softmax(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return attention [B, H, Q, L] of queries [B, Q, W] over keys [B, L, W]."""
    query, key = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key))
    return (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)


def rollout(blocks: Sequence[Tensor]) -> Tensor:
    """Return how much of each input token is in each output token [B, L, L]; rows sum to 1.

    blocks: the weights [B, H, L, L] of each block, the first one first.
    """
    found = torch.eye(blocks[0].shape[-1], dtype=blocks[0].dtype, device=blocks[0].device)
    for weights in blocks:
        mixed = weights.mean(dim=1) + torch.eye(weights.shape[-1]).to(weights)
        found = mixed / mixed.sum(dim=-1, keepdim=True) @ found
    return found


def over_patches(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the class token's weights [B, L] as maps of the patches [B, h, w] that sum to 1.

    What it gives to itself is left out.
    """
    patches = rows[:, 1:]
    return (patches / patches.sum(dim=1, keepdim=True)).unflatten(1, grid)


def entropy(maps: Tensor) -> Tensor:
    """Return each map's [B, h, w] entropy [B]: 1 where it is the same everywhere, 0 for one patch.
    """
    patches = maps.flatten(1)
    return torch.special.entr(patches).sum(dim=1) / np.log(patches.shape[1])


# ---- a model's maps ----


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor, *places: Tensor) -> dict[str, Tensor]:
    """Return maps [B, h, w] of normalised images [B, 3, H, W]: of the last block, and rollout.

    A ResNet has the attention of its pool alone: it has no tokens to follow through its layers.
    places: of cameras and of views [B], as the model takes them. Raises UserError for a model that
    is not CLIP's.
    """
    encoder = model.encoder if isinstance(model, ReIDModel) else None
    if isinstance(encoder, ResNetEncoder):
        pool: Any = encoder.visual.attnpool
        [positions] = _inputs([pool], lambda: model(images, *places))
        rows = {LAST: pool_weights(pool, positions).mean(dim=1)}
    elif isinstance(encoder, ImageEncoder):
        each: list[Any] = blocks_of(encoder.visual.transformer)
        tokens = _inputs([block.ln_1 for block in each], lambda: model(images, *places))
        blocks = [
            block_weights(block.attn, block.ln_1(x)) for block, x in zip(each, tokens, strict=True)
        ]
        rows = {LAST: blocks[-1].mean(dim=1)[:, 0], ROLLOUT: rollout(blocks)[:, 0]}
    else:
        raise UserError(
            "attention is shown of CLIP's image encoders; this model has another one "
            f"({type(model).__name__})"
        )
    return {name: over_patches(found, encoder.grid) for name, found in rows.items()}


def _inputs(modules: Sequence[nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """Return the first argument with which `run` calls each module; all must be called once."""
    found: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, given: found.update({module: given[0]}))
        for module in modules
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [found[module] for module in modules]


# ---- a figure of runs ----


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one run's model sees in the chosen images."""

    images: Tensor
    """[B, H, W, 3], 0 to 1, at the size that the model takes."""
    maps: dict[str, Tensor]
    """[B, h, w] by name."""

    def entropies(self) -> dict[str, float]:
        return {name: float(entropy(found).mean()) for name, found in self.maps.items()}


def attention_figure(runs: Mapping[str, Path], *, images: int = 4, seed: int = 0) -> Drawn:
    """Draw maps of runs (title: folder) over the same queries, each of another identity.

    A row for each image; beside it, for each run, the last block and rollout. The numbers are the
    maps' mean entropy. Raises UserError for a run without features or a trained model, for other
    queries than the first run's, and for images that are not where they were.
    """
    labels: dict[Path, tuple[Int64, ...]] = {}
    seen: dict[str, _Seen] = {}
    for title, folder in runs.items():
        with open_features(features_file(folder), ("query", "gallery")) as file:
            query = file.groups["query"]
        labels[folder] = query.identities, query.cameras
        check_same(labels)
        rows = _chosen(query, images, seed)
        seen[title] = _see(folder, file, rows)
    columns = zip(query.identities[rows], query.cameras[rows], strict=True)
    first = first_camera_of(file) or 0
    names = [f"identity {identity}, camera {camera + first}" for identity, camera in columns]
    numbers = {title: one.entropies() for title, one in seen.items()}
    return Drawn(_draw(seen, names), _caption(seen, file.dataset, len(rows), seed), numbers)


def _chosen(query: FeatureGroup, count: int, seed: int) -> Int64:
    """Return the rows of queries of different identities, drawn by seed."""
    order = generator(seed, 4).permutation(np.flatnonzero(query.identities != JUNK))
    _, first = np.unique(query.identities[order], return_index=True)
    return order[np.sort(first)[:count]]


def _see(folder: Path, file: FeatureFile, rows: Int64) -> _Seen:
    """Read some queries' images and let a run's model look at them."""
    model = load_model(folder)
    paths = [_path(folder, file, row) for row in rows]
    batch = preprocess(paths, model)
    camera, view = _places(file, rows, model)
    mean, std = (torch.tensor(colour)[:, None, None] for colour in (model.mean, model.std))
    pictures = (batch * std + mean).permute(0, 2, 3, 1).clamp(0, 1)
    return _Seen(pictures, attention_maps(model.image, batch, camera, view))


def _path(folder: Path, file: FeatureFile, row: int) -> str:
    paths = file.groups["query"].paths
    if paths is None:
        raise UserError(f"{file.path}: does not say where its images are; make it again: delete it "
                        f"and give python launch/features.py {folder}")
    if not Path(paths[row]).is_file():
        raise UserError(
            f"{paths[row]}: is not there any more; put the dataset back, or delete {file.path} and "
            f"give python launch/features.py {folder} data.root=DIR, with where it is now"
        )
    return paths[row]


def _places(file: FeatureFile, rows: Int64, model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return the queries' places [B] among the cameras and the views that were trained with."""
    first_camera = first_camera_of(file)
    if first_camera is None:
        raise UserError(
            f"{file.path}: does not say how its dataset numbers cameras; delete it, and python "
            "launch/features.py RUN makes it again"
        )
    query = file.groups["query"]
    has_views = any(
        group.views is not None and group.views.any() for group in file.groups.values()
    )
    camera, view = model.side_labels.places(
        file.dataset, query.cameras[rows] + first_camera,
        query.views[rows] if has_views and query.views is not None else None,
    )
    return torch.from_numpy(camera), torch.from_numpy(view)


# ---- drawing ----


def _draw(seen: Mapping[str, _Seen], names: Sequence[str]) -> "Figure":
    """Draw a row for each image, with its name, and columns for each run's maps."""
    images = next(iter(seen.values())).images
    columns = 1 + sum(len(one.maps) for one in seen.values())
    aspect = images.shape[1] / images.shape[2]
    width = max(0.7, min(1.0, 1.5 / aspect))  # room for what stands above it
    titles = {title: fill(title, int(len(one.maps) * width / LETTER), break_long_words=True)
              for title, one in seen.items()}
    lines = 1 + max(title.count("\n") for title in titles.values())
    head = 0.16 * lines
    figure = new_figure(columns * width + 0.25, len(names) * width * aspect + head + 0.4)
    with look():
        figure.set_layout_engine(
            "constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02
        )
        grid = figure.add_gridspec(
            1 + len(names), columns, height_ratios=[head, *[width * aspect] * len(names)],
        )
        for row, (image, name) in enumerate(zip(images, names, strict=True), start=1):
            axes = _cell(figure, grid[row, 0], image.numpy())
            axes.set_ylabel(name, fontsize=6.5)
        first = 1
        for title, one in seen.items():
            last = first + len(one.maps)
            _add_title(figure, grid[0, first:last], titles[title])
            _add_maps(figure, grid, first, one)
            first = last
    return figure


def _add_title(figure: "Figure", place: "SubplotSpec", text: str) -> None:
    axes = figure.add_subplot(place)
    axes.set_axis_off()
    axes.text(
        0.5, 0.0, text, ha="center", va="bottom", fontsize=8, transform=axes.transAxes,
        parse_math=False,
    )


def _add_maps(figure: "Figure", grid: "GridSpec", column: int, seen: _Seen) -> None:
    """Draw a run's maps over its images, with each kind's mean entropy above."""
    for kind, (name, value) in enumerate(seen.entropies().items()):
        for row, (image, found) in enumerate(zip(seen.images, seen.maps[name], strict=True)):
            axes = _cell(figure, grid[1 + row, column + kind], overlaid(image, found))
            if row == 0:
                axes.set_title(f"{name}\nentropy {value:.2f}", fontsize=6.5)


def _cell(figure: "Figure", place: "SubplotSpec", pixels: NDArray[Any]) -> "Axes":
    axes = figure.add_subplot(place)
    axes.imshow(pixels, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes


def overlaid(image: Tensor, found: Tensor) -> NDArray[np.float32]:
    """Return an image [H, W, 3] under the colours of a map [h, w] enlarged to its size.

    Colours go from 0 to the map's largest value.
    """
    import matplotlib

    large = F.interpolate(
        found[None, None], size=image.shape[:2], mode="bilinear", align_corners=False
    )[0, 0]
    share = (large / large.max()).numpy()
    colours = matplotlib.colormaps[COLOURS](share)[..., :3]
    return np.asarray((1 - ALPHA) * image.numpy() + ALPHA * colours, np.float32)


def _caption(seen: Mapping[str, _Seen], dataset: str, count: int, seed: int) -> str:
    text = (
        f"Attention of the class token after stage 2 over {count} query images of {dataset}, of "
        f"different identities, drawn by seed {seed}: in the last block, mean over heads, and by "
        "rollout through all blocks (Abnar and Zuidema 2020). Without what the token gives to "
        "itself; colours from 0 to each map's largest value. Entropy: mean over these images, 1 "
        "where attention is spread evenly, 0 where it is on one patch."
    )
    alone = [title for title, one in seen.items() if ROLLOUT not in one.maps]
    if alone:
        text += (f" {', '.join(alone)}: a ResNet, of which the attention is that of CLIP's pool; "
                 "rollout is not defined for it.")
    return text
