"""The quality of prompts, measured in stage 1, so that a search need not wait for stage 2.

Only prompts are encoded for it: stage 1 has the frozen encoder's image features anyway. Letters:
n images, N training identities, D joint space.
"""

import torch
from torch import Tensor

PIECE = 4096
"""Images that are compared with all prompts at a time."""
TEMPERATURE = 0.01
"""About the temperature of CLIP's trained logits."""


def margin(features: Tensor, labels: Tensor, text: Tensor) -> float:
    """Return how much nearer images [n, D] are to their own prompt than to the nearest other.

    Mean difference of cosines with text features [N, D], positive where identities are separated.
    labels: [n], 0..N-1.
    """
    prompts, total = _unit(text).T, 0.0
    # in pieces: all images by all identities of a large benchmark are gigabytes
    for rows, own in zip(features.split(PIECE), labels[:, None].split(PIECE), strict=True):
        cosines = _unit(rows) @ prompts
        right = cosines.gather(1, own)[:, 0]
        nearest_other = cosines.scatter_(1, own, -torch.inf).amax(dim=1)
        total += float((right - nearest_other).sum())
    return total / len(features)


def described(features: Tensor, text: Tensor) -> Tensor:
    """Return images [n, D] as mixtures of the training identities [n, N], by their prompts.

    Prompts that describe what distinguishes persons rank images of unseen identities too. The root
    makes the cosine of two such vectors the overlap of the mixtures.
    """
    return ((_unit(features) @ _unit(text).T) / TEMPERATURE).softmax(dim=1).sqrt()


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=1)
