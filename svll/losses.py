"""The losses of both stages, as pure functions.

Letters: B samples, C samples on the other side, N identities, D width. Everything is computed in
fp32 whatever autocast says: bf16 distances lose the margin. Labels are never cast.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["agreement_loss", "ntxent_loss", "simsiam_loss", "smooth_cross_entropy", "supcon_loss",
           "triplet_loss"]
Agreement = Literal["ntxent", "simsiam"]


def supcon_loss(a: Tensor, b: Tensor, labels_a: Tensor, labels_b: Tensor) -> Tensor:
    """Contrast each row of `a` with all rows of `b`; every row of `b` with its label is positive.

    a [B, D], b [C, D], labels_a [B], labels_b [C]; features are used as they come, temperature 1
    (CLIP-ReID, eq. 5 and 6). Returns the mean over `a` of the mean log-likelihood of its positives.
    Raises ValueError for shapes and devices that do not fit, and when a label of `a` does not occur
    in `labels_b`; labels on a GPU, which would have to be waited for, are not checked.

    >>> a, labels = torch.eye(2), torch.tensor([0, 1])
    >>> supcon_loss(a, a, labels, labels)
    tensor(0.3133)
    """
    check_labelled(a, labels_a, "a", "labels_a")
    check_labelled(b, labels_b, "b", "labels_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be as wide, got {list(a.shape)} and {list(b.shape)}")
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
    Raises ValueError, with both shapes, when they differ, and for a temperature not above 0.

    >>> views = torch.eye(2)
    >>> ntxent_loss(views, views, temperature=1.0)
    tensor(0.5514)
    """
    check_views(a, b)
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; it must be above 0")
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

    >>> view = torch.eye(2)
    >>> simsiam_loss(view, view, view, view)
    tensor(-1.)
    """
    check_views(predicted_a, predicted_b, target_a, target_b)
    with torch.autocast(predicted_a.device.type, enabled=False):
        there = F.cosine_similarity(_full(predicted_a), _full(target_b).detach(), dim=1)
        back = F.cosine_similarity(_full(predicted_b), _full(target_a).detach(), dim=1)
    return -(there + back).mean() / 2


def triplet_loss(features: Tensor, labels: Tensor, margin: float | None = 0.3) -> Tensor:
    """Pull each sample's farthest positive nearer than its nearest negative (batch-hard triplet).

    features [B, D], labels [B]; Euclidean distances; identities may have unequal counts. A sample
    without a positive has itself (distance 0); `margin` None is the soft margin,
    log(1 + exp(d_ap - d_an)) (Hermans et al. 2017, section 2). Returns the mean over samples.
    Raises ValueError for shapes and devices that do not fit, and as `check_negatives` does; labels
    on a GPU, which would have to be waited for, are not checked.

    >>> triplet_loss(torch.tensor([[0.0], [1.0], [1.5]]), torch.tensor([0, 0, 1]))
    tensor(0.2667)
    """
    check_labelled(features, labels)
    if not labels.is_cuda:
        check_negatives(labels)
    same = labels[:, None] == labels[None, :]
    distance = euclidean(features)
    farthest = distance.masked_fill(~same, float("-inf")).amax(dim=1)
    nearest = distance.masked_fill(same, float("inf")).amin(dim=1)
    if margin is None:
        return F.softplus(farthest - nearest).mean()
    return F.relu(farthest - nearest + margin).mean()


def check_labelled(
    features: Tensor, labels: Tensor, name: str = "features", labels_name: str = "labels"
) -> None:
    """Raise TypeError for what is no tensor, ValueError unless features are [B, D] and labels [B],
    on one device."""
    for key, value in ((name, features), (labels_name, labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{key}: give a tensor, not {type(value).__name__}")
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"{name} must be [B, D] and {labels_name} [B], got "
                         f"{list(features.shape)} and {list(labels.shape)}")
    if features.device != labels.device:
        raise ValueError(f"{name} are on {features.device}, {labels_name} on {labels.device}; "
                         "move them to one device")


def check_views(*views: Tensor) -> None:
    """Raise TypeError for what is no tensor, ValueError unless all are [B, D]."""
    for view in views:
        if not isinstance(view, Tensor):
            raise TypeError(f"views: give tensors, not {type(view).__name__}")
    shapes = [list(view.shape) for view in views]
    if views[0].dim() != 2 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"views must have one shape [B, D], got {' and '.join(map(str, shapes))}")


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
    Raises ValueError for shapes and devices that do not fit.

    >>> smooth_cross_entropy(torch.zeros(1, 4), torch.tensor([0]))
    tensor(1.3863)
    """
    check_labelled(logits, labels, "logits")
    return F.cross_entropy(_full(logits), labels, label_smoothing=smoothing)


def _full(x: Tensor) -> Tensor:
    """Return `x` in fp32, or in fp64 where it comes so."""
    return x if x.dtype == torch.float64 else x.float()
