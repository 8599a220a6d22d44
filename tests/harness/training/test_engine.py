"""The engine trains as plain torch does, in the requested precision."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.training import ranks
from harness.training.engine import start_engine
from harness.training.engine_state import check_saved
from tests.gpu.emulator import emulated

STEPS, ROWS, RATE = 8, 12, 0.05


# --- what runs on the ranks ---


@dataclass
class Settings:
    precision: str = "fp32"
    zero: int = 0
    accumulation: int = 1
    clipping: float = 0.0


class Agreement(nn.Module):
    """A loss that every row has with every other, so that a rank alone cannot compute it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.before = nn.Linear(5, 4)
        self.after = nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.loss(ranks.gather_rows(self.before(rows).tanh()))

    def loss(self, gathered: Tensor) -> Tensor:
        found = self.after(gathered)
        # the gathered rows are used twice; times 20: gradients well above a norm of 1
        return 20 * (found @ found.T).softmax(dim=1).diagonal().mean() + gathered.square().mean()


def batches() -> Tensor:
    return torch.randn(STEPS, ROWS, 5, generator=torch.Generator().manual_seed(7))


def flat(module: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()


def sgd_through_the_engine(zero: int, clipping: float) -> dict[str, list[float]]:
    """Train with SGD, whose steps show a wrong scale of the gradient (Adam's hide it)."""
    module = Agreement()
    engine = start_engine(
        module, torch.optim.SGD(module.parameters(), lr=RATE), ROWS,
        Settings(zero=zero, clipping=clipping),
    )
    losses = []
    for batch in batches():
        loss = engine(batch[ranks.shard(ROWS)])
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    engine.destroy()
    return {"losses": losses, "weights": flat(module)}


def fp16_with_zero(zero: int) -> str:
    module = nn.Linear(4, 4)
    try:
        start_engine(
            module, torch.optim.Adam(module.parameters()), 1, Settings("fp16", zero=zero)
        )
    except UserError as error:
        return str(error)
    return "started"


def dtypes(precision: str) -> dict[str, str]:
    """What the forward pass computes in, and what is kept."""
    module = nn.Linear(4, 4)
    engine = start_engine(
        module, torch.optim.Adam(module.parameters(), fused=True), 2, Settings(precision)
    )
    output = engine(torch.ones(1, 4))
    engine.backward(output.float().sum())
    engine.step()
    engine.destroy()
    return {"output": str(output.dtype), "weights": str(module.weight.dtype)}


def longest_waits() -> list[float]:
    """How long collectives of all ranks, and of DeepSpeed's own group, wait: minutes."""
    module = nn.Linear(2, 1)
    engine = start_engine(module, torch.optim.SGD(module.parameters(), lr=0.1), 2, Settings())
    groups = [dist.group.WORLD, engine.data_parallel_group]
    return [dist.get_backend_impl(g).options._timeout.total_seconds() / 60 for g in groups]


# --- tests ---


def plain_sgd(clipping: float) -> dict[str, list[float]]:
    """The same training with torch alone and the whole batch in one place."""
    module = Agreement()
    losses = []
    for batch in batches():
        module.zero_grad()
        loss = module.loss(module.before(batch).tanh())
        loss.backward()
        losses.append(loss.item())
        if clipping:
            nn.utils.clip_grad_norm_(module.parameters(), clipping)
        with torch.no_grad():
            for parameter in module.parameters():
                assert parameter.grad is not None
                parameter -= RATE * parameter.grad
    return {"losses": losses, "weights": flat(module)}


@pytest.mark.parametrize("clipping", [0.0, 0.5])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_two_ranks_and_one_train_as_plain_torch_does(
    one_rank: Any, two_ranks: Any, zero: int, clipping: float
) -> None:
    expected = plain_sgd(clipping)
    found = [*one_rank(sgd_through_the_engine, zero=zero, clipping=clipping),
             *two_ranks(sgd_through_the_engine, zero=zero, clipping=clipping)]
    for result in found:
        np.testing.assert_allclose(result["losses"], expected["losses"], rtol=2e-6)
        np.testing.assert_allclose(result["weights"], expected["weights"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision_is_that_of_the_forward_pass_and_weights_stay_fp32(
    one_rank: Any, precision: str
) -> None:
    output = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}[precision]
    assert one_rank(dtypes, precision=precision) == [{"output": output, "weights": "torch.float32"}]


def test_deepspeeds_own_group_has_the_timeout_of_the_ranks_and_not_torchs_own(
    one_rank: Any
) -> None:
    [[ours, deepspeeds]] = one_rank(longest_waits)
    assert deepspeeds == ours + 2


@pytest.mark.parametrize("zero", [1, 2])
def test_fp16_with_zero_is_refused_because_it_would_train_nothing(one_rank: Any, zero: int) -> None:
    (message,) = one_rank(fp16_with_zero, zero=zero)
    assert message == (
        f"engine.precision=fp16 does not go with engine.zero={zero}: after an overflow the scale "
        "is never lowered and nothing is trained; use engine.precision=bf16 or engine.zero=0"
    )


@pytest.mark.parametrize(("name", "options", "reason"), [
    ("SGD", {"momentum": 0.9}, "keeps momentum_buffer, which a checkpoint does not hold"),
    ("Adam", {"amsgrad": True}, "keeps max_exp_avg_sq, which a checkpoint does not hold"),
    ("NAdam", {}, "keeps mu_product, which a checkpoint does not hold"),
    ("Adagrad", {}, "keeps sum, which a checkpoint does not hold"),
    ("Muon", {}, "keeps momentum_buffer, which a checkpoint does not hold"),
    ("LBFGS", {}, "not an optimizer for this loop"),
])
def test_an_optimizer_whose_state_a_checkpoint_would_lose_is_refused_by_name(
    name: str, options: dict[str, Any], reason: str
) -> None:
    layer = nn.Linear(4, 4, bias=False)
    before = layer.weight.clone()
    optimizer = getattr(torch.optim, name)(layer.parameters(), **options)
    with pytest.raises(UserError, match=rf"^{name}: {reason}.*; use Adam, AdamW or SGD without"):
        start_engine(layer, optimizer, 2, Settings())
    assert torch.equal(layer.weight, before)


def test_an_optimizer_is_not_blamed_for_its_gpu() -> None:
    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> None:
            if any(p.is_cuda for group in self.param_groups for p in group["params"]):
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().step()

    with emulated():
        check_saved(Adam(nn.Linear(4, 4).to("cuda").parameters()))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RAdam", "SGD"])
def test_an_optimizer_that_checkpoints_hold_is_left_as_it_was(name: str) -> None:
    layer = nn.Linear(4, 4)
    before = layer.weight.clone()
    optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.1)
    check_saved(optimizer)
    assert not optimizer.state
    assert torch.equal(layer.weight, before)
    assert optimizer.param_groups[0]["params"][0] is layer.weight
