"""Modules that ReID adds to CLIP: side information, BNNecks, projection heads, the tested model.

Letters: B images, N identities, W tower width, D joint space.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.base.rng import torch_seed
from svll.config import Config, Model
from svll.data.side_labels import known_sie
from svll.models.resnet import ResNetEncoder
from svll.models.vit import ImageEncoder, ImageFeatures


class BNNeck(nn.Module):
    """Batch normalisation (bias frozen), then a bias-free classifier (Luo et al. 2019, 3.6)."""

    def __init__(self, width: int, identities: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of the global batch's features [B, W]; [B, C] with `classes` [C]."""
        normed = self.norm(features.float())
        if classes is None:
            return self.classifier(normed)
        return F.linear(normed, self.classifier.weight[classes])


def _layers(*widths: int) -> list[nn.Module]:
    """Return linear layers with batch normalisation and ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return layers[:-2]


class ProjectionHead(nn.Sequential):
    """SimCLR's three-layer head; NT-Xent compares its output, not the feature."""

    def __init__(self, width: int, *, hidden: int, out: int) -> None:
        super().__init__(*_layers(width, hidden, hidden, out))

    def start_as_released(self, seed: int) -> None:
        """Initialise as the released code does its image head, from `seed` alone.

        Kaiming normal (fan-in, ReLU) for the weights of all three linear layers, U(0, 1) for weight
        and bias of both normalisations; biases of linear layers keep torch's defaults.
        """
        generator = torch.Generator().manual_seed(seed)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            elif isinstance(layer, nn.BatchNorm1d):
                nn.init.uniform_(layer.weight, generator=generator)
                nn.init.uniform_(layer.bias, generator=generator)


def agreement_head(config: Model, width: int, loss: str) -> nn.Module:
    """Return the module between a feature [B, width] and the self-supervised loss `loss`."""
    if loss == "simsiam":  # a bottleneck that predicts the other view's feature
        return nn.Sequential(*_layers(width, config.predictor_hidden, width))
    return ProjectionHead(width, hidden=config.head_hidden, out=config.head_out)


def image_head(config: Config, width: int) -> nn.Module:
    """Return the agreement head of image features [B, width]; SimSiam's has torch's defaults."""
    head = agreement_head(config.model, width, config.stage2.vss_loss)
    if config.model.image_head_init == "released" and isinstance(head, ProjectionHead):
        head.start_as_released(torch_seed(config.seed, 3))
    return head


class SideInformation(nn.Module):
    """A learned vector per camera, per view or per both (TransReID, section 3.3).

    A camera or view that training never saw has index -1. With `unseen` = `none` it gets a zero
    vector, with `mean` the mean of the vectors that share its known label.
    """

    def __init__(
        self, kind: str, *, cameras: int, views: int, width: int, weight: float,
        unseen: str = "none",
    ) -> None:
        super().__init__()
        self.kind, self.weight, self.unseen = kind, weight, unseen
        shapes = {"camera": (cameras, 1), "view": (1, views), "camera_view": (cameras, views)}
        self.shape = shapes[kind]
        self.vectors = nn.Parameter(torch.empty(self.shape[0] * self.shape[1], width))
        nn.init.trunc_normal_(self.vectors, std=0.02)

    def forward(self, camera: Tensor, view: Tensor) -> Tensor:
        """Return the vectors [B, W] of cameras [B] and views [B], times the coefficient."""
        if self.kind == "camera":
            view = torch.zeros_like(view)
        if self.kind == "view":
            camera = torch.zeros_like(camera)
        return self.weight * self._table()[camera, view]

    def _table(self) -> Tensor:
        """Return the vectors, those of unseen labels last on both axes, where index -1 points."""
        table = self.vectors.unflatten(0, self.shape)  # [cameras, views, W]
        for axis in (0, 1):
            mean = table.mean(dim=axis, keepdim=True)
            last = mean if self.unseen == "mean" else torch.zeros_like(mean)
            table = torch.cat([table, last], dim=axis)
        return table


def learned_side_information(
    config: Model, width: int, *, cameras: int, views: int
) -> SideInformation | None:
    """Return new vectors [n, width] for a training part's cameras and views; None without any."""
    kind = known_sie(config.sie, cameras=cameras, views=views)
    if kind == "none":
        return None
    return SideInformation(kind, cameras=cameras, views=views, width=width,
                           weight=config.sie_weight, unseen=config.sie_unseen)


class ReIDModel(nn.Module):
    """CLIP's image encoder with side information: what stage 2 trains and tests use."""

    def __init__(self, encoder: ImageEncoder | ResNetEncoder, side: SideInformation | None) -> None:
        super().__init__()
        self.encoder, self.side = encoder, side

    @property
    def feature_width(self) -> int:
        """The numbers W + D of a test feature."""
        return self.encoder.width + self.encoder.out

    def forward(
        self, images: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> ImageFeatures:
        """Return the three features of normalised images [B, 3, H, W].

        No side information without `camera`. Without `view`: -1, or the only view of training.
        """
        if self.side is None or camera is None:
            return self.encoder(images)
        if view is None:
            view = torch.full_like(camera, 0 if self.side.shape[1] == 1 else -1)
        return self.encoder(images, self.side(camera, view))

    def encode_image(
        self, images: Tensor, camera: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return the test feature [B, W + D]: f12 then fp, before BN, not normalised."""
        features = self(images, camera, view)
        return torch.cat([features.f12, features.fp], dim=1).float()
