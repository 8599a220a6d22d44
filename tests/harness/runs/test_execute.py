"""However a run is started, its status, log, lock and failure look the same."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.base import locks
from harness.base.errors import UserError
from harness.base.locks import Busy, lock_holder
from harness.cluster.rank_processes import EXIT_STATUS, HINDERED_STATUS, IN_USE_STATUS
from harness.runs.environment import CODE
from harness.runs.execute import execute, load_function
from harness.runs.failures import ERROR_LINES
from harness.runs.run import Run

EXPERIMENTS = '''
import logging, os, signal, sys, time
from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.locks import lock_holder
from harness.runs.stopping import Stopped, stop_requested

log = logging.getLogger("svll.experiment")
calls = []

def complete(run, report):
    calls.append(run.folder)
    assert run.status()["state"] == "running" or os.environ.get("RANK") == "1"
    log.info("half-way")
    if report is not None:
        report({"epoch": 1})
    write_json(run.result_file, {"mAP": 0.5})

def locked(run, report):
    assert lock_holder(run.lock_file)["pid"] == os.getpid()
    complete(run, report)

def stop(run, report):
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop_requested()
    raise Stopped("on request in epoch 2")

def mistake(run, report):
    raise UserError("data.root: no such folder\\nset data.root=DIR")

def fault(run, report):
    def deeper(depth):
        return 1 / depth if depth == 0 else deeper(depth - 1)
    deeper(0)

def write_on(run, report):
    print("begun", flush=True)
    for number in range(1000):
        (run.folder / f"{number}.bin").write_bytes(bytes(4096))
        log.info("wrote %d", number)

def wait(run):
    run.log_metrics({"loss": 1.0})
    print("ready", flush=True)
    sys.stdin.readline()

def add_a_line(run, report):
    wait(run)
    run.log_metrics({"loss": 2.0})

def add_the_result(run, report):
    wait(run)
    write_json(run.result_file, {"mAP": 0.5})

def add_a_failure(run, report):
    wait(run)
    raise RuntimeError("fault")

def add_a_stop(run, report):
    wait(run)
    while not stop_requested():
        time.sleep(0.01)
    raise Stopped("asked to")

def interrupt(run, report):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
'''


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a run whose experiment is one of the above."""
    for name in ("RANK", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    module = f"experiments_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(EXPERIMENTS)
    monkeypatch.syspath_prepend(tmp_path)

    def made(function: str) -> Run:
        run = Run(tmp_path / "runs" / "name" / function)
        run.create(f"run:\n  experiment: {module}.{function}\n")
        return run

    return made


def calls_of(run: Run) -> list[Path]:
    return load_function(run, "experiment").__globals__["calls"]


def test_a_complete_run_has_a_result_a_status_and_a_log(make: Any) -> None:
    run, reported = make("complete"), []
    assert execute(run, report=reported.append) == "complete"
    status = run.status()
    assert status["state"] == "complete"
    assert status["attempts"] == 1
    assert (status["pid"], status["host"]) == (os.getpid(), os.uname().nodename)
    assert status["job"] is None
    assert 0 <= status["seconds"] < 60
    assert reported == [{"epoch": 1}]
    assert "INFO svll.experiment: half-way" in run.log_file.read_text()
    assert lock_holder(run.lock_file) is None


def test_a_complete_run_is_not_run_again(make: Any) -> None:
    run = make("complete")
    execute(run)
    before = run.status()
    assert execute(run) == "complete"
    assert calls_of(run) == [run.folder]
    assert run.status() == before


def test_the_folder_is_locked_meanwhile(make: Any) -> None:
    run = make("locked")
    assert execute(run) == "complete", run.status()
    with run.lock():
        pass


def test_a_run_that_another_process_holds_is_left_alone(make: Any) -> None:
    run = make("complete")
    run.set_status("running", pid=1)
    before = run.status()
    with run.lock(), pytest.raises(Busy):
        execute(run)
    assert run.status() == before
    assert calls_of(run) == []


CARRY_OUT_ELSEWHERE = """
import socket, sys
socket.gethostname = lambda: "elsewhere"
from harness.base import locks
from harness.cluster.rank_processes import main
locks.HEARTBEAT_S = 0.05
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("what", ["a_line", "the_result", "a_failure", "a_stop"])
def test_a_process_that_was_suspended_until_another_took_its_run_ends_and_adds_nothing(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run = make(f"add_{what}")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    first = subprocess.Popen(
        [sys.executable, "-c", CARRY_OUT_ELSEWHERE, str(run.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        first.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        os.utime(run.lock_file, (1, 1))  # as if it had not been touched for long
        monkeypatch.setattr(locks, "WATCHED_BEATS", 0.1)  # instead of 12 s
        with run.lock():
            before = {path: path.read_bytes() for path in run.folder.iterdir()}
            os.utime(run.lock_file, (1, 1))
            first.send_signal(signal.SIGCONT)
            _, output = first.communicate("go on\n", timeout=60)
            assert {path: path.read_bytes() for path in run.folder.iterdir()} == before
            assert run.lock_file.stat().st_mtime == 1
    finally:
        first.kill()
        first.wait()
    assert first.returncode == IN_USE_STATUS, output
    assert f"{run.folder}: this process ({first.pid} on elsewhere) was suspended" in output
    assert f"is now in use by process {os.getpid()} on {os.uname().nodename}" in output
    assert "Traceback" not in output
    assert run.status()["state"] == "running"


def test_a_stopped_run_is_not_failed_and_resumes_as_a_further_attempt(make: Any) -> None:
    run = make("stop")
    handler = signal.getsignal(signal.SIGUSR2)
    assert execute(run) == "stopped"
    assert execute(run) == "stopped"
    status = run.status()
    assert (status["state"], status["attempts"]) == ("stopped", 2)
    assert status["reason"] == "on request in epoch 2"
    assert signal.getsignal(signal.SIGUSR2) is handler


def test_a_users_mistake_is_reported_without_a_traceback(make: Any) -> None:
    run = make("mistake")
    assert execute(run) == "failed"
    status = run.status()
    assert status["error"] == "data.root: no such folder"
    assert status["lines"] == ["data.root: no such folder", "set data.root=DIR"]
    assert status["log"] == str(run.log_file)
    assert "Traceback" not in run.log_file.read_text()


def test_a_fault_is_reported_with_the_end_of_its_traceback(make: Any) -> None:
    run = make("fault")
    assert execute(run) == "failed"
    status = run.status()
    assert status["error"] == "ZeroDivisionError: division by zero"
    assert status["lines"][-1] == "ZeroDivisionError: division by zero"
    assert any("in deeper" in line for line in status["lines"])
    assert len(status["lines"]) <= ERROR_LINES
    assert "Traceback (most recent call last)" in run.log_file.read_text()
    assert lock_holder(run.lock_file) is None


def test_a_failed_run_leaves_the_next_attempt_its_number(make: Any) -> None:
    run = make("fault")
    execute(run)
    execute(run)
    assert run.status()["attempts"] == 2


def test_two_interrupts_end_a_run_as_failed(make: Any) -> None:
    run = make("interrupt")
    assert execute(run) == "failed"
    assert run.status()["error"] == "KeyboardInterrupt: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run:\n  experiment: no.such.thing\n", "run.experiment=no.such.thing cannot be imported"),
        ("run:\n  experiment: harness.runs.execute.gone\n", "harness.runs.execute.gone cannot"),
        ("run:\n  experiment: word\n", "run.experiment=word cannot be imported"),
        ("run: {}\n", "run.experiment cannot be read: KeyError('experiment')"),
        ("run: [\n", "line 2: expected the node content"),
        ("", "run.experiment cannot be read: KeyError('run')"),
    ],
)
def test_a_run_without_a_usable_experiment_fails_with_its_file(
    make: Any, text: str, message: str
) -> None:
    run = make("complete")
    run.config_file.write_text(text)
    assert execute(run) == "failed"
    assert run.status()["error"].startswith(f"{run.config_file}")
    assert message in "\n".join(run.status()["lines"])


RANK_0 = """
import sys
from pathlib import Path
from harness.runs import peers
with peers.together(Path(sys.argv[1])):
    peers.meet()
"""


def test_ranks_other_than_the_first_carry_out_the_run_and_write_nothing(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, reported = make("complete"), []
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "SVLL_ATTEMPT": "one"}.items():
        monkeypatch.setenv(name, value)
    first = subprocess.Popen([sys.executable, "-c", RANK_0, str(run.folder)],
                             env=os.environ | {"RANK": "0"})
    with run.lock():
        assert execute(run, report=reported.append) == "complete"
    assert first.wait() == 0
    assert calls_of(run) == [run.folder]
    assert run.status() == {"state": "new"}
    assert not run.log_file.exists()
    assert reported == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3"),
    ],
)
def test_the_job_is_named_as_slurm_names_it(
    make: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str | None
) -> None:
    run = make("complete")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    execute(run)
    assert run.status()["job"] == expected


def test_the_log_begins_with_the_run_its_attempt_and_where_it_is(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = make("complete")
    execute(run)
    first = run.log_file.read_text().splitlines()[0]
    assert first.endswith(f"INFO harness.runs.execute: run name/complete: attempt 1 on "
                          f"{os.uname().nodename}, job 7, 1 rank, code in {CODE}")


def test_the_log_file_gets_no_more_lines_after_the_run(make: Any) -> None:
    run = make("complete")
    execute(run)
    logging.getLogger("svll.experiment").warning("later")
    assert "later" not in run.log_file.read_text()


def test_an_unreadable_status_stops_the_run(make: Any) -> None:
    run = make("complete")
    run.status_file.write_text("{")
    with pytest.raises(UserError, match="fix or delete this file"):
        execute(run)
    assert calls_of(run) == []


MOUNTED = """
import sys
from pathlib import Path
from harness.cluster.rank_processes import main
sys.path.insert(0, sys.argv[2])
sys.exit(main([sys.argv[1]]))
"""


def on_a_mount(run: Run, options: str, tmp_path: Path) -> tuple[int, str]:
    """Carry out a run whose folder is mounted by `options`; returns exit status and stderr."""
    script = f"mount {options} && exec {sys.executable} -c '{MOUNTED}' {run.folder} {tmp_path}"
    probe = ["unshare", "--mount", "true"]
    if os.geteuid() != 0 or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_a_full_disk_is_reported_in_one_line_each(make: Any, tmp_path: Path) -> None:
    run = make("write_on")
    config = run.config_file.read_text()
    small = f"-t tmpfs -o size=64k tmpfs {run.folder} && echo '{config}' > {run.config_file}"
    code, output = on_a_mount(run, small, tmp_path)
    assert code == EXIT_STATUS["failed"]
    assert "No space left on device" in output
    assert "Traceback" not in output


def test_a_read_only_folder_is_reported_before_anything_is_done(make: Any, tmp_path: Path) -> None:
    run = make("write_on")
    read_only = f"--bind {run.folder} {run.folder} && mount -o remount,bind,ro {run.folder}"
    code, output = on_a_mount(run, read_only, tmp_path)
    assert code == HINDERED_STATUS
    assert f"{run.folder}: cannot be written: Read-only file system; make room, let" in output
    assert "Traceback" not in output
    assert "begun" not in output
    assert sorted(p.name for p in run.folder.iterdir()) == ["config.yaml"]
