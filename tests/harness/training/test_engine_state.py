"""What an engine has trained means the same under any number of ranks and any ZeRO stage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from harness.training import checkpoints, engine_state, ranks
from harness.training.checkpoints import Progress
from harness.training.engine import start_engine
from tests.harness.training.test_engine import Settings

ROWS, SPLIT, STEPS = 8, 3, 7
"""Rows of a batch, steps before the stop, steps of the whole run."""


# --- what runs on the ranks ---


class Toy(nn.Module):
    """Trained, frozen and idle parameters, and running statistics over the global batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(5, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.last = nn.Linear(width, 3)
        self.register_buffer("note", torch.ones(2), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.norm(ranks.gather_rows(self.frozen(self.first(rows).tanh())).float())
        return self.last(hidden).square().mean()


def start(zero: int, *, width: int = 6, precision: str = "fp32", idle: bool = False) -> Any:
    module = Toy(width)
    if idle:  # trained by name, but no loss ever reaches it
        module.idle = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam(
        [
            {"params": [module.first.weight, module.norm.weight, module.last.weight], "lr": 1e-2},
            {"params": [module.first.bias, module.last.bias, *([module.idle] if idle else [])],
             "lr": 2e-2},
        ],
        weight_decay=1e-3, fused=True,
    )
    return start_engine(module, optimizer, ROWS, Settings(precision, zero))


def train(
    to: str, first: int, last: int, zero: int, since: str | None = None, **options: Any
) -> list[float]:
    """Take steps from the checkpoint in `since`, save in `to`; returns the weights."""
    engine = start(zero, **options)
    if since is not None:
        found = checkpoints.latest(Path(since), signature="a run")
        assert found is not None
        checkpoints.restore(found[0], engine)
    for step in range(first, last):
        rows = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(step))
        engine.backward(engine(rows[ranks.shard(ROWS)]))
        engine.step()
    at = Progress("toy", epoch=1, step=last, metric_lines=4, sums={"loss": 0.1}, steps_total=last)
    with checkpoints.CheckpointWriter(Path(to), signature="a run") as writer:
        writer.save(engine, at)
    weights = torch.cat([p.detach().flatten() for _, p in engine_state.trained(engine.module)])
    engine.destroy()
    return weights.tolist()


def collected(zero: int) -> list[int]:
    """Bytes of weights and of moments, and step counts, that a rank holds for a checkpoint."""
    engine = start(zero)
    rows = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0))
    engine.backward(engine(rows[ranks.shard(ROWS)]))
    engine.step()
    *tensors, steps = engine_state.collect(engine)
    engine.destroy()
    return [*(sum(t.nbytes for t in named.values()) for named in tensors), len(steps)]


# --- going on ---


def content(folder: Path) -> dict[str, Any]:
    """All that the newest checkpoint of a folder holds, less what depends on how it was written."""
    path = folder / json.loads((folder / "latest.json").read_text())["name"]
    state = json.loads((path / "state.json").read_text())
    del state["ranks"], state["checksums"], state["checksum"]
    return {
        "weights": load_file(path / "weights.safetensors"),
        "moments": load_file(path / "moments.safetensors"), "state": state,
    }


def assert_same(a: dict[str, Any], b: dict[str, Any], *, tolerance: float = 0.0) -> None:
    assert a["state"] == b["state"]
    for kind in ("weights", "moments"):
        assert a[kind].keys() == b[kind].keys()
        for name, value in a[kind].items():
            np.testing.assert_allclose(value, b[kind][name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("world", ["one_rank", "two_ranks"])
def test_a_run_that_was_stopped_ends_as_the_undisturbed_one_to_the_bit(
    world: str, zero: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    call = request.getfixturevalue(world)
    whole = call(train, to=tmp_path / "whole", first=0, last=STEPS, zero=zero)
    call(train, to=tmp_path / "stopped", first=0, last=SPLIT, zero=zero)
    resumed = call(
        train, to=tmp_path / "resumed", since=tmp_path / "stopped", first=SPLIT, last=STEPS,
        zero=zero,
    )
    assert resumed == whole
    assert all(weights == whole[0] for weights in whole)
    assert_same(content(tmp_path / "resumed"), content(tmp_path / "whole"))
    # and neither is the start nor the half-way point
    stopped = content(tmp_path / "stopped")["weights"]
    assert any((stopped[n] != w).any() for n, w in content(tmp_path / "whole")["weights"].items())


def test_a_checkpoint_means_the_same_on_other_ranks_and_zero_stages(
    one_rank: Any, two_ranks: Any, tmp_path: Path
) -> None:
    two_ranks(train, to=tmp_path / "0", first=0, last=SPLIT, zero=2)
    places = [(one_rank, 0), (two_ranks, 1), (one_rank, 2), (two_ranks, 0), (two_ranks, 2)]
    for number, (call, zero) in enumerate(places, start=1):
        call(train, to=tmp_path / f"{number}", since=tmp_path / f"{number - 1}",
             first=SPLIT, last=SPLIT, zero=zero)
        assert_same(content(tmp_path / f"{number}"), content(tmp_path / "0"))


def test_two_ranks_with_zero_2_go_on_as_one_rank_without_and_back(
    one_rank: Any, two_ranks: Any, tmp_path: Path
) -> None:
    one_rank(train, to=tmp_path / "whole", first=0, last=STEPS, zero=0)
    two_ranks(train, to=tmp_path / "a", first=0, last=2, zero=2)
    one_rank(train, to=tmp_path / "b", since=tmp_path / "a", first=2, last=5, zero=0)
    two_ranks(train, to=tmp_path / "c", since=tmp_path / "b", first=5, last=STEPS, zero=2)
    assert_same(content(tmp_path / "c"), content(tmp_path / "whole"), tolerance=2e-6)


def test_the_fp16_scale_goes_on_where_it_was(one_rank: Any, tmp_path: Path) -> None:
    options = {"zero": 0, "precision": "fp16"}
    whole = one_rank(train, to=tmp_path / "whole", first=0, last=STEPS, **options)
    stopped = one_rank(train, to=tmp_path / "stopped", first=0, last=SPLIT, **options)
    one_rank(train, to=tmp_path / "resumed", since=tmp_path / "stopped", first=SPLIT, last=STEPS,
             **options)
    assert content(tmp_path / "stopped")["state"]["scaler"]["scale"] < 65536, "nothing overflowed"
    assert stopped != whole
    assert_same(content(tmp_path / "resumed"), content(tmp_path / "whole"))


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_parameter_that_no_loss_reaches_goes_on_too(
    one_rank: Any, zero: int, tmp_path: Path
) -> None:
    options = {"zero": zero, "idle": True}
    one_rank(train, to=tmp_path / "whole", first=0, last=STEPS, **options)
    one_rank(train, to=tmp_path / "stopped", first=0, last=SPLIT, **options)
    one_rank(train, to=tmp_path / "resumed", since=tmp_path / "stopped", first=SPLIT, last=STEPS,
             **options)
    assert_same(content(tmp_path / "resumed"), content(tmp_path / "whole"))


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_only_the_rank_that_writes_a_checkpoint_holds_a_copy(two_ranks: Any, zero: int) -> None:
    numbers = (5 * 6 + 6) + 6 + (6 * 3 + 3)  # of both layers, and the scale of the norm
    statistics = 2 * 6 * 4 + 8
    held = [4 * numbers + statistics, 2 * 4 * numbers, 5]
    assert two_ranks(collected, zero=zero) == [held, [0, 0, 0]]


def test_only_what_is_trained_is_saved(one_rank: Any, tmp_path: Path) -> None:
    one_rank(train, to=tmp_path, first=0, last=1, zero=0)
    saved = content(tmp_path)
    trained = ["first.bias", "first.weight", "last.bias", "last.weight", "norm.weight"]
    statistics = ["norm.num_batches_tracked", "norm.running_mean", "norm.running_var"]
    assert sorted(saved["weights"]) == sorted(trained + statistics)
    assert sorted(saved["moments"]) == sorted(
        f"{name}.{moment}" for name in trained for moment in ("exp_avg", "exp_avg_sq")
    )
    assert saved["state"]["optimizer_steps"] == dict.fromkeys(trained, 1.0)
    files = {path.suffix for path in (tmp_path / "toy-0001-000001").iterdir()}
    assert files == {".safetensors", ".json"}
