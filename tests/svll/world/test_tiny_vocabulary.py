"""Under the learned merges every word is one token for open_clip's tokenizer."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from svll.models.clip import tokenizer_for
from svll.world.tiny_vocabulary import learn_merges, write_merges
from svll.world.world import vocabulary


def tokenizer_of(folder: Path, words: list[str]) -> SimpleTokenizer:
    path = folder / "merges.txt.gz"
    write_merges(path, learn_merges(words))
    return SimpleTokenizer(bpe_path=str(path))


def split_words(tokenizer: SimpleTokenizer, words: list[str]) -> list[str]:
    return [word for word in words if len(tokenizer.encode(word)) != 1]


def test_every_word_of_the_synthetic_world_becomes_one_token(tmp_path: Path) -> None:
    lines = [*vocabulary(), "a photo of a person vehicle"]
    words = sorted({word for line in lines for word in line.lower().split()})
    assert len(words) > 50
    assert split_words(tokenizer_of(tmp_path, words), words) == []


def test_the_shipped_vocabulary_reads_the_template_word_by_word() -> None:
    words = ["A", "photo", "of", "a", "person", ".", "vehicle", "X"]
    assert split_words(tokenizer_for("svll-tiny"), words) == []


WORDS = st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(words=WORDS)
def test_words_that_share_their_pieces_become_one_token_each(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    tokenizer = tokenizer_of(tmp_path_factory.mktemp("words"), words)
    assert split_words(tokenizer, words) == []
    ids = {word: tokenizer.encode(word)[0] for word in words}
    assert len(set(ids.values())) == len(ids)
    assert {word: tokenizer.decode([number]).strip() for word, number in ids.items()} == {
        word: word for word in words
    }


def test_merges_do_not_depend_on_the_order_or_repetition_of_the_words() -> None:
    words = ["shirt", "skirt", "short", "shorts", "hat"]
    assert learn_merges(words) == learn_merges([*reversed(words), "hat", "hat"])


def test_the_commonest_pair_is_merged_first_and_ties_go_by_the_alphabet() -> None:
    assert learn_merges(["ab", "cb"]) == [("a", "b</w>"), ("c", "b</w>")]
    assert learn_merges(["cab", "cad"])[0] == ("c", "a")
    assert learn_merges(["by", "az"]) == [("a", "z</w>"), ("b", "y</w>")]


def test_one_letter_needs_no_merge() -> None:
    assert learn_merges(["a", "x"]) == []


def test_the_same_words_give_the_same_bytes(tmp_path: Path) -> None:
    merges = learn_merges(["shirt", "hat"])
    write_merges(tmp_path / "a.txt.gz", merges)
    write_merges(tmp_path / "b.txt.gz", merges)
    content = (tmp_path / "a.txt.gz").read_bytes()
    assert content == (tmp_path / "b.txt.gz").read_bytes()
    assert content[4:8] == bytes(4)  # gzip's place for the time
    lines = gzip.decompress(content).decode().split("\n")
    assert [tuple(line.split()) for line in lines[1:]] == merges
