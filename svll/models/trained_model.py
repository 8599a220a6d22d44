"""A trained model as it is used: images and identities in, features out.

Letters: B images or identities, N identities, L tokens, W width, D width of a feature.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from harness.base.errors import UserError
from svll.data.side_labels import UNNAMED, UNSEEN, SideLabels, owner
from svll.models.fit import fit
from svll.models.reid import SideInformation
from svll.models.text_encoder import TextEncoder

Colour = tuple[float, float, float]
VERI_CAMERAS, VERI_VIEWS = 20, 8
"""The one benchmark whose published models have a vector per camera and view."""


class LoadedModel(nn.Module):
    """An image encoder, text features of its identities where there are any, and what it takes."""

    def __init__(
        self, image: Any, text: nn.Module | None, *, height: int, width: int,
        mean: Colour, std: Colour, side_labels: SideLabels, identities: int,
    ) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.height, self.width = height, width
        """Of the images, in pixels."""
        self.mean, self.std = mean, std
        """Of the colours, red first, of values between 0 and 1."""
        self.side_labels = side_labels
        """The cameras and views that have vectors of side information."""
        self.identities = identities

    def encode_image(
        self, images: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return the test features [B, D] of normalised images [B, 3, H, W], not normalised.

        `camera` [B] and `view` [B] hold places as `side_labels.places` gives them, -1 for a label
        that training did not see; without `camera` there is no side information, without `view`
        views are unknown.
        Raises UserError for images of another size.
        """
        if images.shape[1:] != (3, self.height, self.width):
            raise UserError(
                f"images are {list(images.shape[1:])}, the model takes "
                f"{[3, self.height, self.width]}"
            )
        return self.image.encode_image(images, camera, view)

    def places(
        self, cameras: ArrayLike, dataset: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places of cameras [n], and of unknown views [n], for `encode_image`.

        cameras: as the dataset numbers them (Market-1501's c1 is 1). dataset: whose cameras they
        are; None: those of the single dataset that was trained on. Raises UserError for a dataset
        that was not trained on, or none where there are several. A model without side information
        knows no places; one whose file does not name its dataset takes any name.
        """
        known = self.side_labels.datasets
        if self.image.side is None:
            camera, view = np.full((2, len(np.asarray(cameras))), UNSEEN)
            return camera, view
        if known == (UNNAMED,) or (dataset is None and len(known) == 1):
            dataset = known[0]
        if owner(dataset or "") not in known and known:
            named = "no dataset is given" if dataset is None else f"not trained on {dataset!r}"
            raise UserError(f"cameras: {named}; the model knows those of {', '.join(known)}")
        return self.side_labels.places(dataset or "", cameras)

    def encode_text(self, identities: Tensor) -> Tensor:
        """Return the text features [B, D] of training identities [B], not normalised.

        Raises UserError for a model without texts and for identities outside of 0..N-1.
        """
        if self.text is None:
            raise UserError("this model was trained without texts; it has no text features")
        if len(identities) and not 0 <= identities.min() <= identities.max() < self.identities:
            raise UserError(
                f"identities go from 0 to {self.identities - 1}, found "
                f"{int(identities.min())} to {int(identities.max())}"
            )
        return self.text(identities)


class StoredText(nn.Module):
    """Text features that were computed when the model was saved."""

    features: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, identities: Tensor) -> Tensor:
        return self.features[identities]


class PromptedText(nn.Module):
    """Text features of learned prompts, computed when asked for."""

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


def published_labels(side: SideInformation | None) -> SideLabels:
    """Return the labels of published vectors: the file does not say of which dataset they are."""
    cameras, views = side.shape if side else (0, 1)
    return SideLabels({UNNAMED: range(1, cameras + 1)}, {UNNAMED: range(views)})


def side_information(
    vectors: Tensor, width: int, where: str, *, weight: float
) -> SideInformation:
    """Return side information of published vectors [n, W].

    Their number does not tell cameras from views; 160 are VeRi-776's, all others one per camera.
    """
    count = len(vectors)
    both = count == VERI_CAMERAS * VERI_VIEWS
    side = SideInformation(
        "camera_view" if both else "camera", cameras=VERI_CAMERAS if both else count,
        views=VERI_VIEWS if both else 1, width=width, weight=weight,
    )
    fit(side, {"vectors": vectors}, where, prefix="side information: ")
    return side
