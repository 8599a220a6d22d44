"""Fixtures that several parts share: ranks that stay up, so that DeepSpeed is imported once."""

import os

# Before torch is imported: small tensors on few cores, and the same sums on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a user's own runs have compiled must not stand in for the code that is tested.
os.environ["NUMBA_CACHE_DIR"] = os.path.abspath(f"{__file__}/../../.pytest_cache/numba")

import gc
import inspect
import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.base import machine
from harness.base.caches import RARELY
from tests.commands import as_rank, free_port
from tests.gpu import hiding
from tests.lanes import pytest_collection_modifyitems, pytest_xdist_make_scheduler
from tests.summary import pytest_terminal_summary

__all__ = [
    "pytest_collection_modifyitems", "pytest_terminal_summary", "pytest_xdist_make_scheduler",
]
gc.set_threshold(*RARELY)  # looking for garbage took a fifth of large imports
hiding.hide()
PATIENCE_S = 180
"""How long ranks may take over one call before they count as dead-locked."""
FAREWELL_S = 5
"""How long the others may take once a rank has failed."""


@pytest.fixture(scope="session", autouse=True)
def own_claims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let sweeps of tests and other sweeps of this machine not wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVLL_CLAIMS", str(tmp_path_factory.mktemp("claims")))
        yield


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Return a function that gives this machine so many GPUs, as nvidia-smi lists them; names."""

    def have(count: int) -> list[str]:
        names = [f"GPU-{letter * 8}" for letter in "abcdefgh"[:count]]
        folder = tmp_path / f"driver-{count}"
        folder.mkdir()
        lines = [f"GPU {n}: NVIDIA H100 (UUID: {name})" for n, name in enumerate(names)]
        (folder / "nvidia-smi").write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setattr(machine, "driver_cuda", lambda: (99, 0))  # as new as any torch needs
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        # all of them: without the variable, processes would find the real ones of this machine
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
        return names

    return have


class Ranks:
    """Processes that are the ranks of one run and carry out functions of test modules."""

    def __init__(self, count: int, environment: Mapping[str, str] | None = None) -> None:
        self.count = count
        self.environment = environment
        self.processes: list[subprocess.Popen[str]] = []

    def _start(self) -> None:
        port = str(free_port())
        self.processes = [
            subprocess.Popen(
                # -P: the folder of tests would stand in for the packages of the same names
                [sys.executable, "-P", str(Path(__file__).parent / "ranks.py")],
                env={**(self.environment or os.environ), **as_rank(rank, self.count, port)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(self.count)
        ]

    def __call__(self, function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """Call a module-level function on every rank at once; returns its results, by rank.

        Arguments and results travel as JSON, which keeps floats to the last digit. A failure on
        any rank fails the test with that rank's traceback.
        """
        if not self.processes:
            self._start()
        call = {
            "file": inspect.getfile(function), "function": function.__name__,
            "arguments": arguments,
        }
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(call, default=str) + "\n")
            process.stdin.flush()
        answers = self._answers()
        failures = [f"rank {r}: {a['failure']}" for r, a in answers.items() if "failure" in a]
        if failures or len(answers) < self.count:
            self.end()  # the others may wait for a rank that failed; the next call starts afresh
            silent = [f"rank {r}: no answer" for r in range(self.count) if r not in answers]
            pytest.fail("\n".join([function.__name__, *failures, *silent]))
        return [answers[rank]["result"] for rank in range(self.count)]

    def _answers(self) -> dict[int, dict[str, Any]]:
        """Read one answer of each rank; after a failure the others get a few seconds more."""
        waiting: dict[Any, int] = {p.stdout: rank for rank, p in enumerate(self.processes)}
        answers: dict[int, dict[str, Any]] = {}
        patience = float(PATIENCE_S)
        while waiting and (ready := select.select(list(waiting), [], [], patience)[0]):
            for output in ready:
                line = output.readline()
                answers[waiting.pop(output)] = (
                    json.loads(line) if line else {"failure": "the process died"}
                )
            if any("failure" in answer for answer in answers.values()):
                patience = FAREWELL_S
        return answers

    def end(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.communicate()
        self.processes = []


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


@pytest.fixture(scope="session")
def gpu_rank() -> Iterator[Ranks]:
    """A single rank that sees this machine's GPUs, for tests marked `gpu`; skips without any."""
    if reason := hiding.no_gpu():
        pytest.skip(reason)
    ranks = Ranks(1, hiding.shown())
    yield ranks
    ranks.end()
