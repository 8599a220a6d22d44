"""What a process does to the checkpoints of a run that another has taken over from it: nothing."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.locks import LockLost, held_lock
from harness.training import checkpoints, ranks
from harness.training.checkpoints import Progress
from harness.training.engine import start_engine
from tests.harness.training.test_engine import Settings


def save_twice(run: str, synced: int) -> str:
    """Save, and again while the run is taken over at that fsync; returns what is said then."""
    module = torch.nn.Linear(5, 3)
    trained = start_engine(
        module, torch.optim.Adam(module.parameters(), fused=True), 8, Settings()
    )
    folder, lock = Path(run) / "checkpoints", Path(run) / "lock.json"
    fsync, left = os.fsync, synced

    def take_over(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0 and ranks.rank() == 0:
            lock.write_text(json.dumps({"host": "elsewhere", "pid": 5, "token": "another"}))
        fsync(descriptor)

    try:
        with ExitStack() as stack:
            if ranks.rank() == 0:
                stack.enter_context(held_lock(lock))
            with checkpoints.CheckpointWriter(folder, signature="a run") as writer:
                writer.save(trained, Progress("toy", 1, 1, 0))
            os.fsync = take_over
            with checkpoints.CheckpointWriter(folder, signature="a run") as writer:
                writer.save(trained, Progress("toy", 1, 2, 0))
    except (LockLost, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        os.fsync = fsync
        trained.destroy()
    return "saved"


@pytest.mark.parametrize("synced", [2, 4, 9])  # in its state.json, then its tensors, the pointer
def test_a_process_that_lost_its_run_leaves_the_newest_checkpoint_and_all_its_ranks_end(
    two_ranks: Any, tmp_path: Path, synced: int
) -> None:
    leader, other = two_ranks(save_twice, run=tmp_path, synced=synced)
    assert leader.startswith(f"LockLost: {tmp_path}: this process (")
    assert "is now in use by process 5 on elsewhere" in leader
    assert other.startswith("RuntimeError: rank 0 failed: LockLost: ")
    there = sorted(os.listdir(tmp_path / "checkpoints"))
    assert json.loads((tmp_path / "checkpoints/latest.json").read_text())["name"] == there[1]
    assert there[:2] == ["latest.json", "toy-0001-000001"]
    assert len(there) == 2 or synced == 9  # a whole one that the pointer does not name
