"""The tiny model's vocabulary: byte pair merges learned until each given word is one token."""

import gzip
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from harness.base.files import atomic_write

Pair = tuple[str, str]


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """Return byte pair merges, in order, under which every word becomes a single token.

    Sennrich et al. 2016: repeatedly merge the most frequent pair of neighbours. Ties go to the
    first pair in alphabetical order, so the order of `words` does not matter.
    """
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(words))]
    merges: list[Pair] = []
    while True:
        counts = Counter(pair for word in spelled for pair in pairwise(word))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def _merge(word: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def write_merges(path: Path, merges: Iterable[Pair]) -> None:
    """Write merges as the gzip text that open_clip's SimpleTokenizer reads (first line: a name)."""
    text = "\n".join(["svll-tiny", *(" ".join(pair) for pair in merges)])
    with atomic_write(path) as private:
        # mtime 0: the same words give the same bytes
        private.write_bytes(gzip.compress(text.encode(), mtime=0))
