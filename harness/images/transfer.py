"""Copies from the host to a GPU that the host does not wait for."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on `device`; a CPU's is returned as it is.

    From pinned memory: a copy from any other may wait for all earlier work of the GPU.
    """
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
