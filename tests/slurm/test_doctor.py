"""The doctor on a real cluster."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def doctor(slurm: Any, tmp_path: Path) -> Any:
    """Return a function that calls the doctor as it is typed; returns exit status and words."""

    def call(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch" / "slurm.py"), "--doctor", *words,
             f"run.runs={tmp_path / 'runs'}"],
            env=slurm.environ, cwd=tmp_path, text=True, capture_output=True, timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    return call


def row(output: str, partition: str) -> str:
    """The table's line of a partition, without its frame."""
    return next(line for line in output.splitlines() if line.startswith(f"│ {partition} "))


def test_partitions_are_visited_by_ranks_on_two_nodes_and_nothing_is_left(
    doctor: Any, slurm: Any, tmp_path: Path
) -> None:
    record, enter = tmp_path / "starts.txt", tmp_path / "enter"
    enter.write_text(f'#!/bin/sh\necho "$(uname -n) $1" >> {record}\nshift\nexec "$@"\n')
    enter.chmod(0o755)
    status, output = doctor(f"slurm.wrap=[{enter}, a.sif]")
    assert status == 0, output
    hosts = ["node1 a.sif", "node2 a.sif"]
    assert sorted(record.read_text().splitlines()) == sorted(2 * hosts)
    for partition in ("main", "urgent"):
        cells = row(output, partition)
        assert "2 on node1, node2" in cells
        assert "8 found" in cells
        assert "gloo, 2 ranks, 8 MB in" in cells
        assert "create, link, replace, lock; seen by all after" in cells
        assert "GB free" in cells
        assert re.search(r"[+-]0\.\d\d s", cells)  # of clocks, on a busy machine
    assert list((tmp_path / "runs" / ".doctor").iterdir()) == []
    assert slurm.run("squeue", "-h") == ""


def test_faults_of_one_partition_are_reported_with_what_to_change(
    doctor: Any, slurm: Any
) -> None:
    slurm.run("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    try:
        status, output = doctor("slurm.partition=main", "slurm.python=/usr/bin/python3 -S")
        assert status == 1
        assert "main: " in output
        assert "ModuleNotFoundError: No module named 'submitit'" in output
        assert "name the right one (slurm.python)" in output
        assert "no answer" in row(output, "main")
        status, output = doctor("slurm.partition=main", "resources.cpus=2", "slurm.gres=moon:1")
        assert status == 1
        assert "main: sbatch refused the job: " in output
        assert "Traceback" not in output
    finally:
        slurm.run("scontrol", "update", "nodename=node2", "state=resume")


def test_a_partition_that_is_not_there_is_refused(doctor: Any) -> None:
    status, output = doctor("slurm.partition=moon")
    assert status == 1
    assert output.strip() == "error: slurm.partition: no partition moon that accepts jobs here"
