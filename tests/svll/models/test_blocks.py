"""Blocks computed with less work give what open_clip's own modules give, and their gradients."""

from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from svll.models.blocks import blocks_of, keys_values, run_block, run_for_one

WIDTH, LENGTH = 32, 9


@pytest.fixture(params=[(nn.GELU, None), (QuickGELU, None), (QuickGELU, 0.3)],
                ids=["GELU", "QuickGELU", "with layer scale"])
def block(request: pytest.FixtureRequest) -> Any:
    activation, scale = request.param
    torch.manual_seed(3)
    made = Transformer(WIDTH, 1, 4, ls_init_value=scale, act_layer=activation)
    for parameter in made.parameters():  # biases are zero at first
        nn.init.normal_(parameter, std=0.3)
    return made.resblocks[0]


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, LENGTH, WIDTH, generator=generator).requires_grad_()


def causal(length: int) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


def gradients(output: Tensor, x: Tensor, block: Any) -> list[Tensor]:
    """The gradients of an output, weighted so that none of it cancels."""
    weights = torch.linspace(-1.0, 2.0, output.numel()).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), [x, *block.parameters()]))


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 2e-6 * other.abs().max()


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_gives_what_its_module_gives(block: Any, masked: bool) -> None:
    x, mask = tokens(), causal(LENGTH) if masked else None
    expected, found = block(x, attn_mask=mask), run_block(block, x, mask=mask)
    assert_close([found], [expected])
    assert_close(gradients(found, x, block), gradients(expected, x, block))


@pytest.mark.parametrize("at", [0, -1, 4])
def test_a_block_for_one_token_gives_that_tokens_output(block: Any, at: int) -> None:
    x = tokens()
    expected, found = block(x)[:, at], run_for_one(block, x, at)
    assert found.shape == (3, WIDTH)
    assert_close([found], [expected])
    assert_close(gradients(found, x, block), gradients(expected, x, block))


def test_tokens_after_a_beginning_see_what_it_gives_them(block: Any) -> None:
    x, first = tokens(), 4
    before, rest = keys_values(block, x[:, :first]), x[:, first:]
    mask = causal(LENGTH)
    expected = block(x, attn_mask=mask)
    found = run_block(block, rest, mask=mask[first:], before=before)
    assert_close([found], [expected[:, first:]])
    assert_close(gradients(found, x, block), gradients(expected[:, first:], x, block))
    last = run_for_one(block, rest, -1, before=keys_values(block, x[:, :first]))
    assert_close([last], [expected[:, -1]])


def test_what_a_block_keeps_for_its_gradient_is_less_than_its_module_keeps() -> None:
    block: Any = Transformer(WIDTH, 1, 4, act_layer=QuickGELU).resblocks[0]
    kept = [kept_numbers(run, tokens()) for run in (block, lambda x: run_block(block, x))]
    assert kept[1] < 0.9 * kept[0]


def kept_numbers(run: Any, x: Tensor) -> int:
    """How many numbers autograd keeps of what a call computes."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run(x)
    assert output.requires_grad
    return sum(storages.values())


def test_a_block_computed_again_gives_the_same_and_keeps_its_input_alone(block: Any) -> None:
    x = tokens()
    expected, found = run_block(block, x), run_block(block, x, recompute=True)
    assert torch.equal(found, expected)
    for one, other in zip(
        gradients(found, x, block), gradients(expected, x, block), strict=True
    ):
        assert torch.equal(one, other)
    assert kept_numbers(lambda given: run_block(block, given, recompute=True), x) <= 4 * x.numel()


def test_blocks_of_another_kind_are_refused() -> None:
    other = Transformer(WIDTH, 2, 4, scale_attn=True)
    with pytest.raises(AssertionError):
        blocks_of(other)
