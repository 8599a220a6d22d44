"""The copies of a prompt differ from it as the method says, and by the caller's draws only."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner
from svll.models.text_encoder import TextEncoder
from svll.prompt_augmentation import Kind, augment_prompts, swap

CONTEXT, LENGTH, WIDTH = 77, 12, 6
PADDING = torch.full((WIDTH,), -1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, length: int = LENGTH) -> Tensor:
    """Prompts [count, length, WIDTH] that say at each token from which prompt and place it is."""
    own = 1000.0 * torch.arange(1, count + 1)[:, None] + torch.arange(length)
    return own[..., None].expand(-1, -1, WIDTH).clone()


def copy_of(
    prompts: Tensor, kind: Kind, scale: float = 0.5, seed: int = 0, **options: Any
) -> Tensor:
    return augment_prompts(
        prompts, kind=kind, scale=scale, generator=seeded(seed), padding=PADDING,
        context_length=CONTEXT, **options,
    )


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("svll-tiny", None, height=64, width=32, stride=8)


# --- mask ---


@pytest.mark.parametrize("scale", [0.0, 0.2, 0.5, 1.0])
def test_mask_sets_that_share_of_the_elements_to_zero_and_rescales_none(scale: float) -> None:
    prompts = 1 + torch.rand(50, LENGTH, 64, generator=seeded(9))
    masked = copy_of(prompts, "mask", scale)
    kept = masked != 0
    assert torch.equal(masked[kept], prompts[kept])
    count = prompts.numel()
    deviation = math.sqrt(count * scale * (1 - scale))
    assert abs((~kept).sum().item() - count * scale) <= 4 * deviation


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mask_is_drawn_for_every_element_by_itself(axis: int) -> None:
    kept = (copy_of(torch.ones(64, 64, 64), "mask", 0.5) != 0).double()
    count = kept.shape[axis] - 1
    first, second = kept.narrow(axis, 0, count).flatten(), kept.narrow(axis, 1, count).flatten()
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(len(first))
    others = [other for other in range(3) if other != axis]
    assert kept.mean(dim=others).std() < 2 * 0.5 / 64  # no line is dropped as a whole


# --- swap ---


def sources(count: int, scale: float, seed: int = 0) -> Tensor:
    """From which of all positions each position's token comes, [count, CONTEXT]."""
    every = numbered(count, CONTEXT)
    swapped = copy_of(every, "swap", scale, seed)
    return (swapped[..., 0] - 1000 * torch.arange(1, count + 1)[:, None]).long()


@pytest.mark.parametrize("scale", [0.1, 0.5, 0.8, 1.0])
def test_swap_permutes_the_given_share_of_all_positions(scale: float) -> None:
    count, moved = 2000, int(scale * CONTEXT)
    source = sources(count, scale)
    assert torch.equal(source.sort(dim=1).values, torch.arange(CONTEXT).repeat(count, 1))
    elsewhere = (source != torch.arange(CONTEXT)).sum(dim=1)
    assert elsewhere.max() == moved
    # a uniform permutation leaves one of its places as it was on average, with variance one
    assert abs(elsewhere.double().mean().item() - (moved - 1)) < 4 / math.sqrt(count)


@pytest.mark.parametrize("scale", [0.0, 0.01])
def test_swap_of_less_than_one_position_changes_nothing(scale: float) -> None:
    assert torch.equal(copy_of(numbered(4), "swap", scale), numbered(4))


def test_swap_moves_every_position_equally_often_and_anywhere() -> None:
    count, moved = 4000, 38
    source = sources(count, 0.5)
    places = torch.arange(CONTEXT)
    share = (moved - 1) / CONTEXT  # chosen, and not put back by chance
    deviation = math.sqrt(share * (1 - share) / count)
    assert ((source != places).double().mean(dim=0) - share).abs().max() < 4.5 * deviation
    at_first = source[source[:, 0] != 0, 0]
    counts = torch.bincount(at_first, minlength=CONTEXT)[1:].double()
    expected = counts.mean()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - 75) < 4 * math.sqrt(2 * 75)


def test_swap_of_a_prompt_is_swap_of_all_positions_cut_to_its_length() -> None:
    full = numbered(300, CONTEXT)
    full[:, LENGTH:] = PADDING
    cut = copy_of(full[:, :LENGTH].contiguous(), "swap")
    assert torch.equal(cut, copy_of(full, "swap")[:, :LENGTH])
    assert (cut == PADDING).all(dim=2).any()


def test_swap_then_cut_encodes_as_swap_of_all_positions(clip: Clip) -> None:
    """The feature is read at the original end-of-text position, and attention is causal."""
    learner = PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=4, tokens=4, noun="person"
    )
    padding = learner.padding
    assert isinstance(padding, Tensor)
    with torch.no_grad():
        prompts = learner(torch.arange(4))
        end = prompts.shape[1] - 1
        full = torch.cat([prompts, padding.expand(4, CONTEXT - end - 1, -1)], dim=1)
        swapped = swap(full, 0.5, seeded(3), padding, CONTEXT)
        expected = encode_all_positions(clip.text, swapped, end)
        cut = augment_prompts(
            prompts, kind="swap", scale=0.5, generator=seeded(3), padding=padding,
            context_length=CONTEXT,
        )
        torch.testing.assert_close(clip.text(cut), expected, rtol=0, atol=1e-5)
        unchanged = encode_all_positions(clip.text, full, end)
    assert (unchanged - expected).abs().max() > 0.01


def encode_all_positions(text: TextEncoder, embedded: Tensor, end: int) -> Tensor:
    """Encode [B, 77, W] as CLIP does, reading the feature at position `end`."""
    mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
    x = text.transformer(embedded + text.positional_embedding, attn_mask=mask)
    return text.ln_final(x)[:, end] @ text.text_projection


def test_swap_prompt_permutes_a_share_of_the_template_alone() -> None:
    count, moved = 2000, int(0.5 * LENGTH)
    prompts = numbered(count)
    swapped = copy_of(prompts, "swap_prompt")
    assert torch.equal(swapped.sort(dim=1).values, prompts)
    elsewhere = (swapped != prompts).all(dim=2).sum(dim=1)
    assert elsewhere.max() == moved
    assert abs(elsewhere.double().mean().item() - (moved - 1)) < 4 / math.sqrt(count)


# --- mix ---


@pytest.mark.parametrize("count", [2, 3, 7])
def test_mix_adds_another_prompt_and_never_its_own(count: int) -> None:
    prompts = numbered(count)
    partners = torch.zeros(count, count)
    for seed in range(400):
        mixed = copy_of(prompts, "mix", 0.3, seed)
        other = (mixed - 0.7 * prompts) / 0.3
        number = (other[:, 0, 0] / 1000).round().long() - 1
        torch.testing.assert_close(other, prompts[number], rtol=1e-4, atol=0.02)
        partners[torch.arange(count), number] += 1
    assert (partners.diagonal() == 0).all()
    expected = 400 / (count - 1)
    away = partners[~torch.eye(count, dtype=torch.bool)]
    assert (away - expected).abs().max() <= 5 * math.sqrt(expected)


@pytest.mark.parametrize(("scale", "own"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_mix_takes_the_share_of_the_other(scale: float, own: float) -> None:
    prompts = numbered(2)
    expected = own * prompts + (1 - own) * prompts.flip(0)
    torch.testing.assert_close(copy_of(prompts, "mix", scale), expected)


def test_mix_of_a_lone_prompt_is_itself() -> None:
    assert torch.equal(copy_of(numbered(1), "mix"), numbered(1))


# --- all kinds ---


@pytest.mark.parametrize("kind", get_args(Kind))
def test_only_the_tokens_in_the_slice_are_augmented(kind: Kind) -> None:
    prompts = numbered(20)
    changed = copy_of(prompts, kind, keep=slice(5, 9)) != prompts
    assert changed[:, 5:9].any()
    assert not changed[:, :5].any()
    assert not changed[:, 9:].any()


@pytest.mark.parametrize("keep", [None, slice(5, 9)])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_generator_alone_decides_the_draws(kind: Kind, keep: slice | None) -> None:
    prompts = numbered(20)
    first = copy_of(prompts, kind, seed=4, keep=keep)
    torch.rand(3)  # the global generator is neither read nor needed
    assert torch.equal(copy_of(prompts, kind, seed=4, keep=keep), first)
    assert not torch.equal(copy_of(prompts, kind, seed=5, keep=keep), first)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_original_is_not_written_to_and_gets_gradient(kind: Kind) -> None:
    prompts = numbered(20)
    before = prompts.clone()
    prompts.requires_grad_()
    copy_of(prompts, kind).sum().backward()
    assert torch.equal(prompts, before)
    assert prompts.grad is not None
    assert prompts.grad.abs().sum() > 0
