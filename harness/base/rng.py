"""Random numbers as a function of a key, so that no state has to be saved or restored.

Two kinds. Counter-based: the numbers of `uniform` depend on a sample and the epoch, not on batch or
rank; the mixing is that of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", 2014). Seeded: `generator` and `torch_seed` start an ordinary generator from a key, for
a permutation or an initialisation that is drawn as a whole.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's step, the odd number next to 2^64 / golden ratio."""
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
SHIFTS = (30, 27, 31)
_64_BITS = (1 << 64) - 1

Words = NDArray[np.uint64]


def mix(words: Words) -> Words:
    """Scramble each word [...] so that neighbouring inputs give unrelated outputs; a bijection."""
    words = (words ^ (words >> np.uint64(SHIFTS[0]))) * np.uint64(MULTIPLIERS[0])
    words = (words ^ (words >> np.uint64(SHIFTS[1]))) * np.uint64(MULTIPLIERS[1])
    return words ^ (words >> np.uint64(SHIFTS[2]))


def hash_words(*parts: int | NDArray[np.int64]) -> Words:
    """Return a 64-bit hash [n] of each row of `parts`: integers, or int64 arrays [n]. Their order
    counts. For integers only, n is 1."""
    hashed = np.zeros(1, dtype=np.uint64)
    for part in parts:
        # arrays throughout, as numpy warns of (intended) overflow for scalars
        word = part if isinstance(part, np.ndarray) else np.array([int(part) & _64_BITS], np.uint64)
        hashed = mix((hashed + np.uint64(GOLDEN)) ^ word.astype(np.uint64))
    return hashed


def uniform(
    seed: int, epoch: int, positions: NDArray[np.int64], view: int, count: int
) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) for each position of an epoch's order: [n, count].

    A row depends on seed, epoch, its own position and view only; a higher `count` keeps the first
    numbers.
    """
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    words = mix(hash_words(seed, epoch, positions, view)[:, None] + steps)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(numbers: NDArray[np.float64], count: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn uniform numbers [...] into integers in 0 .. count - 1; `count` may be an array."""
    return (numbers * count).astype(np.int64)


def generator(*key: int) -> np.random.Generator:
    """Return a separate numpy generator for `key`, such as (seed, epoch, purpose)."""
    return np.random.Generator(np.random.Philox(key=_digest(key, bits=128)))


def torch_seed(*key: int) -> int:
    """Return a seed for `torch.manual_seed`, in 0 .. 2^63 - 1."""
    return _digest(key, bits=64) >> 1


def _digest(key: tuple[int, ...], *, bits: int) -> int:
    text = ",".join(str(int(part)) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=bits // 8).digest(), "little")
