"""One rank of a trial as a process, without a scheduler."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.base.locks import start_time
from harness.cluster import rank_processes
from harness.config.values import to_yaml
from harness.runs.run import Run


def make_run(toy: ModuleType, folder: Path, **work: object) -> Run:
    run = Run(folder / "runs" / "toys" / "abc")
    run.create(to_yaml(toy.Config(work=toy.Work(**work))))
    return run


@pytest.mark.parametrize(("fail", "status"), [("no", 0), ("raise", 1)])
def test_a_ranks_exit_status_is_that_of_the_run(
    toy: ModuleType, tmp_path: Path, fail: str, status: int
) -> None:
    run = make_run(toy, tmp_path, fail=fail)
    assert subprocess.run(command(run)).returncode == status
    assert run.status()["state"] == ("complete" if status == 0 else "failed")


def test_a_rank_that_cannot_use_the_gpus_that_it_was_given_fails_and_may_run_elsewhere(
    tmp_path: Path
) -> None:
    (tmp_path / "joining.py").write_text(
        "from harness.training import ranks\ndef run(run, report=None): ranks.init_ranks()\n"
    )
    run = Run(tmp_path / "run")
    run.create("run:\n  experiment: joining.run\n")
    group = rank_processes.RankGroup(gpus="GPU-8f")
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    environment = {**group.environment(0), "PYTHONPATH": path}
    assert subprocess.run(command(run), env=environment, capture_output=True).returncode == 1
    status = run.status()
    assert (status["state"], status["hindered"]) == ("failed", True)
    assert status["error"].startswith("CUDA_VISIBLE_DEVICES=GPU-8f, but torch cannot use a GPU: ")


def test_a_rank_saves_on_a_stop_request(toy: ModuleType, tmp_path: Path) -> None:
    run = make_run(toy, tmp_path, epochs=9, epoch_s=5.0)
    process = subprocess.Popen(command(run))
    toy.until(lambda: (run.folder / "seen-0.json").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == rank_processes.EXIT_STATUS["stopped"]
    assert run.status()["state"] == "stopped"
    assert json.loads((run.checkpoints / "0.json").read_text()) == {"epoch": 1}


def test_a_process_whose_parent_was_killed_before_it_could_look_ends_and_does_nothing(
    toy: ModuleType, tmp_path: Path
) -> None:
    run, gate, log_file = make_run(toy, tmp_path), tmp_path / "gate", tmp_path / "rank.log"
    # Python imports this at its start, before anything of ours
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
    )
    program = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from harness.cluster.rank_processes import start_process\n"
        "run, log_file, first = sys.argv[1:]\n"
        "path = os.pathsep.join([first, os.environ['PYTHONPATH']])\n"
        "print(start_process('harness.cluster.rank_processes', run, log_file=Path(log_file),\n"
        "                    environment={**os.environ, 'PYTHONPATH': path}).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(run.folder), str(log_file), str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    assert start_time(child) is not None
    gate.touch()
    toy.until(lambda: start_time(child) is None)
    assert run.status() == {"state": "new"}
    assert log_file.read_text() == ""


def test_a_second_process_in_a_run_folder_leaves_it_alone(
    toy: ModuleType, tmp_path: Path
) -> None:
    run = make_run(toy, tmp_path, epochs=9, epoch_s=5.0)
    first = subprocess.Popen(command(run))
    toy.until(lambda: (run.folder / "seen-0.json").exists())
    second = subprocess.run(command(run), capture_output=True, text=True)
    assert second.returncode == rank_processes.IN_USE_STATUS
    assert f"in use by process {first.pid} on {socket.gethostname()}" in second.stderr
    assert run.status()["state"] == "running"
    first.terminate()
    first.wait(20)


def test_a_killed_rank_is_named_though_rank_0_knows_only_that_it_lost_one(tmp_path: Path) -> None:
    run = Run(tmp_path)
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    run.set_status("failed", error="RuntimeError: [gloo] Connection closed by peer", attempts=1)
    rank_processes.settle(run, 1, [1, -signal.SIGKILL], logs)
    status = run.status()
    assert (status["error"], status["hindered"], status["attempts"]) == (
        "rank 1: killed by SIGKILL (out of memory?)", True, 1
    )
    run.set_status("failed", error="RuntimeError: loss is nan")
    rank_processes.settle(run, 1, [1, -signal.SIGKILL], logs)
    assert run.status()["error"] == "RuntimeError: loss is nan"


def command(run: Run) -> list[str]:
    return [sys.executable, "-m", "harness.cluster.rank_processes", str(run.folder)]
