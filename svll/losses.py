"""The losses of both stages, as pure functions.

Letters: B samples, C samples on the other side, N identities, D width. Everything is computed in
fp32 whatever autocast says: bf16 distances lose the margin. Labels are never cast.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Agreement = Literal["ntxent", "simsiam"]


def supcon_loss(a: Tensor, b: Tensor, labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Contrast each row of `a` with all rows of `b`; every row of `b` with its label is positive.

    a [B, D], b [C, D], labels_a [B], labels_b [C]; features are used as they come, temperature 1
    (CLIP-ReID, eq. 5 and 6). Returns the mean over `a` of the mean log-likelihood of its positives.
    Raises ValueError when a label of `a` does not occur in `labels_b`; labels on a GPU, which would
    have to be waited for, are not checked.
    """
    log_p = F.log_softmax(product(a, b), dim=1)
    positive = labels_a[:, None] == labels_b[None, :]
    count = positive.sum(dim=1)
    if not labels_a.is_cuda and not bool((count > 0).all()):
        missing = labels_a[count == 0].unique().tolist()
        raise ValueError(f"labels without a positive on the other side: {missing}")
    return -((log_p * positive).sum(dim=1) / count).mean()


def ntxent_loss(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """Make two views of a sample agree against all others (NT-Xent; SimCLR, eq. 1).

    a, b [B, D]: row i of each is a view of sample i; normalised here. Negatives are the other rows
    of both views; across ranks, gather the rows first. Returns the mean of both directions.
    Raises ValueError, with both shapes, when they differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"views must have one shape, got {list(a.shape)} and {list(b.shape)}")
    with torch.autocast(a.device.type, enabled=False):
        z = F.normalize(_full(torch.cat([a, b])), dim=1)
        logits = z @ z.T / temperature
    count = len(a)
    itself = torch.eye(2 * count, dtype=torch.bool, device=a.device)
    partner = torch.arange(2 * count, device=a.device).roll(count)
    return F.cross_entropy(logits.masked_fill(itself, float("-inf")), partner)


def agreement_loss(
    head: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, *, kind: Agreement, temperature: float
) -> Tensor:
    """Return NT-Xent or SimSiam of two views [B, D]; head: a projection or a predictor."""
    if kind == "ntxent":
        return ntxent_loss(head(a), head(b), temperature)
    return simsiam_loss(head(a), head(b), a, b)


def simsiam_loss(
    predicted_a: Tensor, predicted_b: Tensor, target_a: Tensor, target_b: Tensor
) -> Tensor:
    """Make each view's prediction agree with the other, detached view (SimSiam, eq. 2).

    All [B, D], normalised here; no gradient reaches the targets. Returns the mean of both
    directions of the negative cosine, between -1 and 1. Raises ValueError when shapes differ.
    """
    shapes = {tuple(x.shape) for x in (predicted_a, predicted_b, target_a, target_b)}
    if len(shapes) > 1:
        raise ValueError(f"views must have one shape, got {sorted(shapes)}")
    with torch.autocast(predicted_a.device.type, enabled=False):
        there = F.cosine_similarity(_full(predicted_a), _full(target_b).detach(), dim=1)
        back = F.cosine_similarity(_full(predicted_b), _full(target_a).detach(), dim=1)
    return -(there + back).mean() / 2


def triplet_loss(features: Tensor, labels: Tensor, margin: float | None = 0.3) -> Tensor:
    """Pull each sample's farthest positive nearer than its nearest negative (batch-hard triplet).

    features [B, D], labels [B]; Euclidean distances; identities may have unequal counts. A sample
    without a positive has itself (distance 0); `margin` None is the soft margin,
    log(1 + exp(d_ap - d_an)) (Hermans et al. 2017, section 2). Returns the mean over samples.
    Raises ValueError as `check_negatives` does; labels on a GPU, which would have to be waited for,
    are not checked.
    """
    if not labels.is_cuda:
        check_negatives(labels)
    same = labels[:, None] == labels[None, :]
    distance = euclidean(features)
    farthest = distance.masked_fill(~same, float("-inf")).amax(dim=1)
    nearest = distance.masked_fill(same, float("inf")).amin(dim=1)
    if margin is None:
        return F.softplus(farthest - nearest).mean()
    return F.relu(farthest - nearest + margin).mean()


def check_negatives(labels: Tensor) -> None:
    """Raise ValueError when all labels [B] are equal: triplets then have no negatives."""
    if bool((labels == labels[:1]).all()):
        raise ValueError("all samples have one label: a triplet needs a negative")


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the logits [B, C] of features a [B, D] against b [C, D], always in fp32."""
    with torch.autocast(a.device.type, enabled=False):
        return _full(a) @ _full(b).T


def euclidean(features: Tensor) -> Tensor:
    """Return all distances [B, B] between rows [B, D], with a finite gradient at zero."""
    with torch.autocast(features.device.type, enabled=False):
        x = _full(features)
        square = x.pow(2).sum(dim=1)
        distance2 = square[:, None] + square[None, :] - 2 * x @ x.T
    return distance2.clamp(min=1e-12).sqrt()


def smooth_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with label smoothing: 1 - smoothing on the label, the rest spread over all N.

    logits [B, N], labels [B] (Szegedy et al. 2016, section 7). Returns the mean over samples.
    """
    return F.cross_entropy(_full(logits), labels, label_smoothing=smoothing)


def _full(x: Tensor) -> Tensor:
    """Return `x` in fp32, or in fp64 where it comes so."""
    return x if x.dtype == torch.float64 else x.float()
