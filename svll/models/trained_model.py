"""A trained model for use: images and identities in, features out.

Letters: B images or identities, N identities, L tokens, W width, D width of a feature.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from harness.base.errors import UserError
from svll.data.side_labels import UNNAMED, UNSEEN, SideLabels, owner
from svll.models.files.state_dict import StateDict
from svll.models.reid import SideInformation
from svll.models.text_encoder import TextEncoder

Colour = tuple[float, float, float]
HALF: Colour = (0.5, 0.5, 0.5)
"""Per-channel mean and std of published transformers."""
VERI_CAMERAS, VERI_VIEWS = 20, 8
"""Of VeRi-776, the only benchmark whose published models have a vector per camera and view."""


class LoadedModel(nn.Module):
    """An image encoder, its identities' text features if there are any, and its input format."""

    def __init__(
        self, image: Any, text: nn.Module | None, *, height: int, width: int,
        mean: Colour, std: Colour, side_labels: SideLabels, identities: int,
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.height, self.width = height, width
        """Input size in pixels."""
        self.mean, self.std = mean, std
        """Per-channel mean and std of values between 0 and 1, red first."""
        self.side_labels = side_labels
        """The cameras and views that have vectors of side information."""
        self.identities = identities

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs may be anywhere."""
        return next(self.parameters()).device

    @property
    def feature_width(self) -> int:
        """The numbers D of a feature."""
        return int(self.image.feature_width)

    def encode_image(
        self, images: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return the test features [B, D] of normalised images [B, 3, H, W], not normalised.

        `camera` [B] and `view` [B] hold indices from `side_labels.places`, -1 for a label that
        training did not see; without `camera` there is no side information, without `view` views
        are unknown. Raises UserError for images of another size.
        """
        shape = 3, self.height, self.width
        if images.shape[1:] != shape:
            raise UserError(f"images are {list(images.shape[1:])}, the model takes {list(shape)}")
        given = (None if x is None else x.to(self.device) for x in (images, camera, view))
        return self.image.encode_image(*given)

    def places(
        self, cameras: ArrayLike, dataset: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return indices of cameras [n], and of unknown views [n], for `encode_image`.

        cameras: as the dataset numbers them (Market-1501's c1 is 1). dataset: the cameras' dataset;
        None: the single dataset of training. All are -1 without side information; a file that does
        not name its dataset accepts any name. Raises UserError for a dataset that the model was not
        trained on, and for None if it was trained on several.
        """
        known = self.side_labels.datasets
        if self.image.side is None:
            camera, view = np.full((2, len(np.asarray(cameras))), UNSEEN)
            return camera, view
        if known == (UNNAMED,) or (dataset is None and len(known) == 1):
            dataset = known[0]
        if owner(dataset or "") not in known and known:
            fault = "no dataset is given" if dataset is None else f"not trained on {dataset!r}"
            raise UserError(f"cameras: {fault}; the model knows those of {', '.join(known)}")
        return self.side_labels.places(dataset or "", cameras)

    def encode_text(self, identities: Tensor) -> Tensor:
        """Return text features [B, D] of identities [B]; UserError for unknown ones or no texts."""
        if self.text is None:
            raise UserError("this model was trained without texts; it has no text features")
        if len(identities) and not 0 <= identities.min() <= identities.max() < self.identities:
            found = f"{int(identities.min())} to {int(identities.max())}"
            raise UserError(f"identities go from 0 to {self.identities - 1}, found {found}")
        return self.text(identities.to(self.device))


class PromptedText(nn.Module):
    """Text features of learned prompts, computed on demand."""

    before: Tensor
    after: Tensor

    def __init__(self, encoder: TextEncoder, before: Tensor, tokens: Tensor, after: Tensor) -> None:
        """Take the embedded template [1, L, W] around the tokens [N, M, W], end-of-text last."""
        super().__init__()
        self.encoder = encoder
        self.tokens = nn.Parameter(tokens)
        self.register_buffer("before", before)
        self.register_buffer("after", after)

    def forward(self, identities: Tensor) -> Tensor:
        before, after = (x.expand(len(identities), -1, -1) for x in (self.before, self.after))
        return self.encoder(torch.cat([before, self.tokens[identities], after], dim=1))


def published_model(
    image: Any, text: nn.Module | None, size: tuple[int, int, int], identities: int,
    mean: Colour = HALF, std: Colour = HALF,
) -> LoadedModel:
    """Return a published model, whose file does not name its dataset; size: height, width, stride.
    """
    cameras, views = image.side.shape if image.side else (0, 1)
    labels = SideLabels({UNNAMED: range(1, cameras + 1)}, {UNNAMED: range(views)})
    return LoadedModel(image, text, height=size[0], width=size[1], mean=mean, std=std,
                       side_labels=labels, identities=identities)


def published_side(vectors: Tensor, width: int, where: str, *, weight: float) -> SideInformation:
    """Return side information of published vectors [n, W] from the file `where`.

    Files do not separate cameras from views: 160 are VeRi-776's, all others one per camera.
    """
    if not len(vectors):
        raise UserError(f"{where}: does not fit: side information of no camera")
    both = len(vectors) == VERI_CAMERAS * VERI_VIEWS
    kind, cameras, views = (
        ("camera_view", VERI_CAMERAS, VERI_VIEWS) if both else ("camera", len(vectors), 1)
    )
    side = SideInformation(kind, cameras=cameras, views=views, width=width, weight=weight)
    StateDict({"vectors": vectors}, where, "side information: ").load_into(side)
    return side
