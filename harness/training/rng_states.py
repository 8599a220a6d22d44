"""The states of the global random generators: Python's, numpy's, torch's and the GPU's.

Data is drawn without them (`harness.base.rng`). An experiment that uses them, such as for dropout,
draws the same numbers after a resume as without one.
"""

import math
import random
import struct
import typing
from typing import Any

import numpy as np
import torch
from torch import Tensor

PYTHON, NUMPY = struct.Struct("<625Id"), struct.Struct("<624IIId")
"""Python: 625 words, cached normal; numpy: 624 words, position, whether one is cached, that one."""


def states() -> Tensor:
    """Return the generator states of this process, uint8 [n]; n is the same on every rank."""
    _, words, normal = random.getstate()
    python = PYTHON.pack(*words, math.nan if normal is None else normal)
    _, key, *rest = typing.cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
    numpy = NUMPY.pack(*key.tolist(), *rest)
    parts = [torch.frombuffer(bytearray(python + numpy), dtype=torch.uint8), torch.get_rng_state()]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_rng_state())
    return torch.cat(parts)


def set_states(saved: Tensor) -> None:
    """Restore what `states` returned; the GPU's generator stays when `saved` has none."""
    data = bytes(saved[: PYTHON.size + NUMPY.size].tolist())
    *integers, normal = PYTHON.unpack_from(data)
    random.setstate((3, tuple(integers), None if math.isnan(normal) else normal))
    *key, position, has_normal, cached = NUMPY.unpack_from(data, PYTHON.size)
    words = np.array(key, np.uint32)
    np.random.set_state(("MT19937", words, position, has_normal, cached))  # noqa: NPY002
    rest = saved[len(data) :]
    size = len(torch.get_rng_state())
    torch.set_rng_state(rest[:size].clone())
    if torch.cuda.is_available() and len(rest) > size:
        torch.cuda.set_rng_state(rest[size:].clone())
