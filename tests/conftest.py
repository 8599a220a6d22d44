"""Fixtures that several parts share: ranks that stay up, so that DeepSpeed is imported once."""

import os

# Before torch is imported: small tensors on few cores, and the same sums on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import inspect
import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 300
"""How long ranks may take over one call before they count as dead-locked."""


class Ranks:
    """Processes that are the ranks of one run and carry out functions of test modules."""

    def __init__(self, count: int) -> None:
        from harness.engine import free_port  # torch: seconds that most tests need not wait for

        port = str(free_port())
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "ranks.py")],
                env=os.environ | {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                },
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(count)
        ]

    def __call__(self, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """Call a module-level function on every rank at once; returns its results, by rank.

        Arguments and results travel as JSON, which keeps floats to the last digit. A failure on
        any rank fails the test with that rank's traceback.
        """
        call = {
            "file": inspect.getfile(function), "function": function.__name__,
            "arguments": arguments,
        }
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(call, default=str) + "\n")
            process.stdin.flush()
        answers = [self._answer(process, function.__name__) for process in self.processes]
        failures = [f"rank {r}: {a['failure']}" for r, a in enumerate(answers) if "failure" in a]
        if failures:
            pytest.fail("\n".join(failures))
        return [answer["result"] for answer in answers]

    def _answer(self, process: subprocess.Popen[str], name: str) -> dict[str, Any]:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], PATIENCE_S)[0]:
            self.end()
            pytest.fail(f"{name}: no answer from the ranks within {PATIENCE_S} s")
        line = process.stdout.readline()
        return dict(json.loads(line)) if line else {"failure": f"{name}: the process died"}

    def end(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()


@pytest.fixture(scope="session")
def one_rank() -> Iterator[Ranks]:
    """A single rank, in a process of its own because it changes that process' environment."""
    ranks = Ranks(1)
    yield ranks
    ranks.end()


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two ranks joined by gloo."""
    ranks = Ranks(2)
    yield ranks
    ranks.end()
