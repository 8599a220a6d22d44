"""How good prompts are, told in stage 1, so that a search need not wait for stage 2.

Nothing is encoded for it but the prompts: image features are those of the frozen encoder, which
stage 1 has anyway. Letters: n images, N training identities, D joint space.
"""

import torch
from torch import Tensor

PIECE = 4096
"""Images that are compared with all prompts at a time."""
TEMPERATURE = 0.01
"""CLIP's own, near which its logits were trained."""


def margin(features: Tensor, labels: Tensor, text: Tensor) -> float:
    """Return by how much images [n, D] are nearer to their own prompt than to the nearest other.

    The mean difference of cosines, over text features [N, D]; positive where identities are
    separated. labels: [n], 0..N-1.
    """
    prompts, total = _unit(text).T, 0.0
    # by pieces: all images by all identities of a large benchmark are gigabytes
    for rows, own in zip(features.split(PIECE), labels[:, None].split(PIECE), strict=True):
        cosines = _unit(rows) @ prompts
        right = cosines.gather(1, own)[:, 0]
        nearest_other = cosines.scatter_(1, own, -torch.inf).amax(dim=1)
        total += float((right - nearest_other).sum())
    return total / len(features)


def described(features: Tensor, text: Tensor) -> Tensor:
    """Return images [n, D] as mixtures of the training identities [n, N], by their prompts.

    Prompts that say what tells persons apart rank strangers by it: images of identities that were
    never trained on can be compared by what the prompts make of them. The root makes cosines of
    these vectors the overlap of the mixtures.
    """
    return ((_unit(features) @ _unit(text).T) / TEMPERATURE).softmax(dim=1).sqrt()


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=1)
