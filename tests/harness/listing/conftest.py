"""Runs as they lie on disk, made by writing their files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.base.files import write_json
from harness.runs.run import Run

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make a run in runs/<group>: its number, its state, its metric, further facts of its status.
    """

    def made(
        number: int, state: Any = "complete", value: float | None = None, group: str = "toys",
        seed: int = 1, **facts: Any,
    ) -> Run:
        run = Run(tmp_path / "runs" / group / f"{number:012x}")
        run.create(f"seed: {seed}\nrate: 0.1\nrun:\n  runs: runs\n  name: {group}\n")
        run.set_status(state, **facts)
        if state == "complete":
            write_json(run.result_file, {"score": value} if value is not None else {})
        return run

    return made


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Write the sweep.json of runs/<group>, which names all its runs."""

    def made(group: str = "toys", mode: str = "max") -> Path:
        folder = tmp_path / "runs" / group
        trials = [{"point": {"a": n}, "seed": 1, "signature": path.name}
                  for n, path in enumerate(sorted(folder.iterdir()))]
        write_json(folder / "sweep.json", {
            "file": "toys.yaml", "name": group, "metric": "score", "mode": mode, "trials": trials,
        })
        return folder

    return made
