"""Where odd inputs come from: texts that other readers stumble over, and damaged bytes."""

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ODD_TEXTS = (
    "", " ", "~", "null", "None", "nan", ".nan", "inf", "-inf", "true", "no", "off", "0", "-0",
    "-1", "-1.0", "00", "007", "7.0", "1e3", "1e-4", "1e400", "0x10", "0b1", "1_000", "12:30",
    "2024-01-01", "9223372036854775808", "-9223372036854775809", "1" * 400, "½", "٣", "１", "é",
    "e\u0301", "\u200b", "\ufeff", "\u202e", "\ud83d\ude00", "\udcb2", "\x00", "\x1b[31m", "\t",
    "\n", "\r\n", "a b", "a,b", "a;b", 'a"b', "a'b", "a#b", "a: b", "- a", "{", "}", "[", "]",
    "{}", "[]", "&a", "*a", "!!int x", "!!python/object:os.system", "%s", "%j", "${seed}",
    "${HOME}", "$HOME", "~/x", "../x", "/", ".", "..", "-", "--", "-x", "--help", "con", "a" * 300,
)
"""Each was a mistake of some reader."""


def odd_texts() -> SearchStrategy[str]:
    """Return texts that look like something else, and any others."""
    return st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=20))


def damaged(content: bytes) -> SearchStrategy[bytes]:
    """Return a file's content as a crash, a bad disk or an editor may leave it: cut short, with
    flipped bits, zeros, parts lost, moved or repeated, or other bytes at the end."""
    size = len(content)
    places = st.integers(0, max(0, size - 1))

    def flip(bits: list[tuple[int, int]]) -> bytes:
        changed = bytearray(content)
        for place, bit in bits:
            if changed:
                changed[place] ^= 1 << bit
        return bytes(changed)

    def zero(ends: tuple[int, int]) -> bytes:
        first, last = sorted(ends)
        return content[:first] + bytes(last - first) + content[last:]

    def move(ends: tuple[int, int, int]) -> bytes:
        first, last, to = *sorted(ends[:2]), ends[2]
        rest = content[:first] + content[last:]
        return rest[:to] + content[first:last] + rest[to:]

    def repeat(ends: tuple[int, int]) -> bytes:
        first, last = sorted(ends)
        return content[:last] + content[first:]

    pair = st.tuples(places, places)
    return st.one_of(
        places.map(lambda end: content[:end]),
        st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=8).map(flip),
        pair.map(zero),
        pair.map(lambda ends: content[: min(ends)] + content[max(ends) :]),
        st.tuples(places, places, places).map(move),
        pair.map(repeat),
        st.binary(min_size=1, max_size=64).map(lambda more: content + more),
        st.binary(max_size=200),
    )
