"""Any number of ranks computes what one rank does, and what plain torch does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.base import network
from harness.base.errors import UserError
from harness.cluster.causes import with_next_step
from harness.training import engine as ranks

STEPS, ROWS, RATE = 8, 12, 0.05


# --- what runs on the ranks ---


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
    engine = ranks.start_engine(
        module, torch.optim.SGD(module.parameters(), lr=RATE), batch=ROWS, precision="fp32",
        zero=zero, accumulation=1, clipping=clipping,
    )
    losses = []
    for batch in batches():
        loss = engine(batch[ranks.shard(ROWS)])
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    engine.destroy()
    return {"losses": losses, "weights": flat(module)}


def gradients_of_gathered_sums() -> list[list[float]]:
    """Two gathers whose outputs are added: autograd hands both the very same gradient."""
    a, b = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    total = (ranks.gather_rows(a) + ranks.gather_rows(b)) * torch.arange(12.0).view(4, 3)
    total.sum().backward()
    return [a.grad.flatten().tolist(), b.grad.flatten().tolist()]  # type: ignore[union-attr]


def gathered_labels() -> list[int]:
    return ranks.gather_rows(torch.tensor([10, 11]) + 2 * ranks.rank()).tolist()


def shards(counts: list[int]) -> list[dict[str, list[int]]]:
    return [
        {"own": list(range(n))[ranks.shard(n)], "padded": ranks.padded_shard(n).tolist()}
        for n in counts
    ]


def votes() -> list[bool]:
    own = [ranks.rank() == 0, ranks.rank() == ranks.world_size() - 1, False]
    return [ranks.any_rank(flag) for flag in own]


def led(file: str) -> dict[str, Any]:
    """Write a file on rank 0 only, read it on all; then fail on rank 0 only."""
    with ranks.leader_first() as acts:
        if acts:
            with open(file, "a") as output:
                output.write("once")
    with open(file) as written:
        text = written.read()
    ranks.barrier()
    try:
        with ranks.leader_first() as acts:
            if acts:
                raise ValueError("no disk")
        failure = "nothing was raised"
    except (ValueError, RuntimeError) as error:
        failure = f"{type(error).__name__}: {error}"
    return {"text": text, "failure": failure, "still in step": gathered_labels()}


def fp16_with_zero(zero: int) -> str:
    module = nn.Linear(4, 4)
    try:
        ranks.start_engine(
            module, torch.optim.Adam(module.parameters()), batch=1, precision="fp16", zero=zero,
            accumulation=1, clipping=0.0,
        )
    except UserError as error:
        return str(error)
    return "started"


def dtypes(precision: str) -> dict[str, str]:
    """What the forward pass computes in, and what is kept."""
    module = nn.Linear(4, 4)
    engine = ranks.start_engine(
        module, torch.optim.Adam(module.parameters(), fused=True), batch=2,
        precision=precision,  # type: ignore[arg-type]
        zero=0, accumulation=1, clipping=0.0,
    )
    output = engine(torch.ones(1, 4))
    engine.backward(output.float().sum())
    engine.step()
    engine.destroy()
    return {"output": str(output.dtype), "weights": str(module.weight.dtype)}


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


def test_a_gradient_that_two_gathers_share_is_summed_once_for_each(two_ranks: Any) -> None:
    # summed over 2 ranks; DeepSpeed divides by 2 later
    expected = [[2.0 * n for n in range(6)], [2.0 * n for n in range(6, 12)]]
    for gradients, own in zip(two_ranks(gradients_of_gathered_sums), expected, strict=True):
        assert gradients == [own, own]


def test_whole_numbers_are_gathered_in_rank_order(two_ranks: Any) -> None:
    assert two_ranks(gathered_labels) == [[10, 11, 12, 13]] * 2


def test_shards_cover_everything_once(one_rank: Any, two_ranks: Any) -> None:
    counts = [0, 1, 2, 3, 7, 8]
    for results in (one_rank(shards, counts=counts), two_ranks(shards, counts=counts)):
        for count, *parts in zip(counts, *results, strict=True):
            assert [row for part in parts for row in part["own"]] == list(range(count))
            assert max(len(p["own"]) for p in parts) - min(len(p["own"]) for p in parts) <= 1


def test_shards_stay_in_order_with_more_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (3, 5):
        monkeypatch.setattr(ranks, "world_size", lambda world=world: world)
        for count in range(1, 12):
            shares, padded = [], []
            for rank in range(world):
                monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
                shares.append(ranks.shard(count))
                padded.append(ranks.padded_shard(count).tolist())
            assert [shares[0].start, shares[-1].stop] == [0, count]
            assert all(a.stop == b.start for a, b in pairwise(shares))
            assert len({len(share) for share in padded}) == 1
            assert [i for share in padded for i in share][:count] == list(range(count))


def test_padded_shards_are_equally_long_and_cut_back_to_everything(two_ranks: Any) -> None:
    counts = [1, 2, 3, 7, 8]
    for count, *parts in zip(counts, *two_ranks(shards, counts=counts), strict=True):
        first, second = (part["padded"] for part in parts)
        assert len(first) == len(second)
        assert [*first, *second][:count] == list(range(count))
        assert set([*first, *second][count:]) <= {count - 1}


@pytest.mark.slow
def test_a_rank_that_hangs_becomes_an_error_of_the_others_within_the_time_out() -> None:
    program = (
        "import os, time\n"
        "from harness.training import engine\n"
        "engine._deepspeed()\n"  # once for both: it takes seconds
        "first, rank = os.getpid(), 0 if os.fork() else 1\n"
        "os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))\n"
        "engine.init_ranks(timeout_minutes=0.05)\n"
        "engine.barrier()\n"
        "while rank == 1 and os.getppid() == first: time.sleep(0.05)\n"
        "if rank == 0: engine.any_rank(False)\n"
    )
    env = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(network.free_port()),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "see the logs of all ranks" in with_next_step(done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_ranks_can_end_right_after_a_collective() -> None:
    program = (
        "import torch\n"
        "from harness.training import engine\n"
        "engine.init_ranks()\n"
        "torch.distributed.all_reduce(torch.zeros(20_000_000))\n"
    )
    env = os.environ | {
        "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(network.free_port()),
    }
    processes = [
        subprocess.Popen(  # not forked: then they end in time by themselves
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(4)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 4, told


def test_what_a_lone_process_starts_can_be_alone_at_the_same_time() -> None:
    program = (
        "import os, subprocess, sys\n"
        "from harness.training import engine\n"
        "engine.init_ranks()\n"
        "engine.barrier()\n"
        "told = 'import json, os; print(json.dumps(dict(os.environ)))'\n"
        "subprocess.run([sys.executable, '-c', told], check=True)\n"
    )

    def about_ranks(env: Mapping[str, str]) -> dict[str, str]:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return {name: env[name] for name in names if name in env}

    given = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
    given |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=given
    )
    assert done.returncode == 0, done.stderr
    # with what it gets the process itself was alone
    assert about_ranks(json.loads(done.stdout)) == about_ranks(given)


def test_a_flag_on_any_rank_is_seen_on_all(one_rank: Any, two_ranks: Any) -> None:
    assert two_ranks(votes) == [[True, True, False]] * 2
    assert one_rank(votes) == [[True, True, False]]


def test_the_leader_acts_alone_and_its_failure_is_raised_on_every_rank(
    two_ranks: Any, tmp_path: Any
) -> None:
    leader, other = two_ranks(led, file=tmp_path / "file")
    assert leader["text"] == other["text"] == "once"
    assert leader["failure"] == "ValueError: no disk"
    assert other["failure"] == "RuntimeError: rank 0 failed: ValueError: no disk"
    assert leader["still in step"] == other["still in step"] == [10, 11, 12, 13]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precision_is_that_of_the_forward_pass_and_weights_stay_fp32(
    one_rank: Any, precision: str
) -> None:
    output = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}[precision]
    assert one_rank(dtypes, precision=precision) == [{"output": output, "weights": "torch.float32"}]


@pytest.mark.parametrize("zero", [1, 2])
def test_fp16_with_zero_is_refused_because_it_would_train_nothing(one_rank: Any, zero: int) -> None:
    (told,) = one_rank(fp16_with_zero, zero=zero)
    assert told == (
        f"engine.precision=fp16 does not go with engine.zero={zero}: after an overflow the scale "
        "is never lowered and nothing is trained; use engine.precision=bf16 or engine.zero=0"
    )


def test_gathering_without_other_ranks_costs_nothing() -> None:
    rows = torch.ones(2, 2)
    assert ranks.gather_rows(rows) is rows


def test_the_peak_of_memory_is_counted_from_when_it_was_forgotten() -> None:
    numbers, gigabyte = 50_000_000, 0.2
    before = ranks.peak_memory_gb()
    held = torch.ones(numbers, device=ranks.device())
    with_it = ranks.peak_memory_gb()
    assert with_it >= before
    del held
    assert ranks.peak_memory_gb() == pytest.approx(with_it, rel=0.01)
    ranks.forget_peak()
    without = ranks.peak_memory_gb()
    assert without < with_it - 0.9 * gigabyte
    held = torch.ones(numbers, device=ranks.device())
    assert ranks.peak_memory_gb() == pytest.approx(without + gigabyte, rel=0.1)
    del held


def test_a_run_says_which_gpus_it_leaves_idle_and_why(
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpus(0)
    assert ranks.idle_gpus() == ""
    gpus(2)
    assert "on the CPU; 2 GPUs are idle: torch cannot use them" in ranks.idle_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "on the CPU; 2 GPUs are idle: CUDA_VISIBLE_DEVICES hides them" in ranks.idle_gpus()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert "leaves 3 of 4 GPUs idle" in ranks.idle_gpus()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun's
    assert ranks.idle_gpus() == ""


def test_a_free_port_can_be_bound() -> None:
    assert 1024 <= network.free_port() < 65536
