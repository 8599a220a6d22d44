""""A photo of a [S]1..[S]M person.": the template's tokens around each identity's own."""

import pytest
import torch
from torch import Tensor

from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("svll-tiny", None, height=64, width=32, stride=8)


def learner(
    clip: Clip, tokens: int = 4, noun: str = "person", *, identities: int = 6
) -> PromptLearner:
    return PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=identities, tokens=tokens, noun=noun
    )


def tokenised(clip: Clip, text: str) -> tuple[Tensor, int]:
    """Token ids [77] of a text, and the position of its end."""
    ids = clip.tokenizer(text)[0]
    return ids, int(ids.argmax())


@pytest.mark.parametrize("noun", ["person", "vehicle"])
@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_a_prompt_is_its_template_with_the_places_of_x_replaced(
    clip: Clip, tokens: int, noun: str
) -> None:
    prompts = learner(clip, tokens, noun)
    ids, end = tokenised(clip, f"A photo of a {'X ' * tokens}{noun}.")
    letter = clip.tokenizer.encode("X")
    assert len(letter) == 1
    places = (ids == letter[0]).nonzero().flatten()
    identities = torch.tensor([5, 0, 5])
    with torch.no_grad():
        expected = clip.text.token_embedding(ids[: end + 1]).repeat(3, 1, 1)
        expected[:, places] = prompts.tokens[identities]
        assert torch.equal(prompts(identities), expected)
    assert places.tolist() == list(range(*prompts.learnable.indices(77)))
    assert prompts.length == end + 1


def test_what_stands_after_the_prompt_is_the_padding(clip: Clip) -> None:
    prompts = learner(clip)
    ids, end = tokenised(clip, "A photo of a X X X X person.")
    with torch.no_grad():
        after = clip.text.token_embedding(ids[end + 1 :])
        assert torch.equal(after, torch.as_tensor(prompts.padding).expand_as(after))
    assert after.abs().max() > 0


def test_only_the_tokens_of_the_identities_are_trained_and_kept(clip: Clip) -> None:
    prompts = learner(clip)
    assert {name: tuple(p.shape) for name, p in prompts.named_parameters()} == {
        "tokens": (6, 4, 128)
    }
    assert list(prompts.state_dict()) == ["tokens"]
    prompts(torch.tensor([1, 3, 3])).sum().backward()
    assert prompts.tokens.grad is not None
    assert prompts.tokens.grad[:, 0, 0].tolist() == [0, 1, 0, 2, 0, 0]
    assert clip.text.token_embedding.weight.grad is None


def test_tokens_start_normal_with_deviation_a_fiftieth(clip: Clip) -> None:
    tokens = learner(clip, identities=200).tokens.detach()
    count = tokens.numel()
    assert abs(tokens.mean()) < 4 * 0.02 / count**0.5
    assert tokens.std().item() == pytest.approx(0.02, rel=4 / (2 * count) ** 0.5)
    assert (tokens / 0.02).pow(4).mean().item() == pytest.approx(3, abs=0.1)  # normal's kurtosis
