"""Blocks computed with less work give what open_clip's own modules give, and their gradients."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from svll.models.blocks import BlockCompiler, blocks_of, keys_values, run_block, run_for_one

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


# --- compiled ---


def compiled_by(
    backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> BlockCompiler:
    """A compiler of blocks whose last step, which makes machine code, is another one."""
    whole = functools.partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    return BlockCompiler()


def test_blocks_are_compiled_in_one_piece_to_the_same_code_and_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(3)
    blocks = blocks_of(Transformer(WIDTH, 3, 4, act_layer=QuickGELU))
    compiler = compiled_by(counted, monkeypatch)
    for recompute in (False, True):
        for block in blocks:
            x = tokens()
            expected = run_block(block, x)
            found = run_block(block, x, compiler=compiler, recompute=recompute)
            assert torch.equal(found, expected)
            pairs = zip(gradients(found, x, block), gradients(expected, x, block), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
    assert len(graphs) == 1
    with torch.no_grad():  # tests and validation are computed as without it
        assert torch.equal(run_block(blocks[0], tokens()[:2], compiler=compiler),
                           run_block(blocks[0], tokens()[:2]))
    assert len(graphs) == 1


def test_blocks_that_cannot_be_compiled_are_computed_as_ever_with_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no working compiler\nmany lines more")

    torch.manual_seed(3)
    blocks = blocks_of(Transformer(WIDTH, 2, 4))
    compiler = compiled_by(fails, monkeypatch)
    for block in blocks:
        x = tokens()
        expected = run_block(block, x)
        assert torch.equal(run_block(block, x, compiler=compiler), expected)
    [message] = [r.getMessage() for r in caplog.records if r.name == "svll.models.blocks"]
    assert message.startswith(
        "engine.compile: torch.compile failed, so blocks are not compiled: BackendCompilerFailed: "
    )
    assert "no working compiler" in message
    assert "\n" not in message


def test_a_full_memory_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda function: fails)
    compiler, block = BlockCompiler(), blocks_of(Transformer(WIDTH, 1, 4))[0]
    with pytest.raises(torch.OutOfMemoryError):
        run_block(block, tokens(), compiler=compiler)
