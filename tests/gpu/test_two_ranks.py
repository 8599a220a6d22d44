"""Two ranks on GPUs, each seeing its own only or both, have the results of two ranks on CPUs."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.commands import free_port
from tests.gpu.runs import carry_out, mismatches


def on_this_rank(
    runs: str, devices: int, ports: list[int], overrides: list[str]
) -> dict[str, Any]:
    """Carry out a run on this rank of two; the ranks then meet again on CPUs."""
    from harness.training.ranks import init_ranks

    if not devices:
        return carry_out(runs, *overrides)[0]
    os.environ["MASTER_PORT"] = str(ports[0])
    found, gpu = carry_out(runs, *overrides, devices=devices)
    os.environ["MASTER_PORT"] = str(ports[1])
    init_ranks()
    assert gpu is not None
    return found | {"gpu": gpu.current}


@pytest.fixture(scope="module")
def expected(two_ranks: Any, world: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two ranks on CPUs log and score."""
    return two_ranks(on_this_rank, runs=str(tmp_path_factory.mktemp("cpu")), devices=0, ports=[],
                     overrides=[f"data.root={world}", "engine.zero=2"])[0]


@pytest.mark.parametrize("devices", [1, 2])
def test_two_ranks_on_gpus_are_two_ranks_on_cpus(
    two_ranks: Any, expected: Any, world: str, tmp_path: Path, devices: int
) -> None:
    found = two_ranks(
        on_this_rank, runs=str(tmp_path), devices=devices, ports=[free_port(), free_port()],
        overrides=[f"data.root={world}", "engine.zero=2"],
    )
    assert [one.pop("gpu") for one in found] == [0, devices - 1]
    assert mismatches(expected, found[0]) == []
