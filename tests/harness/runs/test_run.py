"""What is true of a run stands in its folder, and one process at a time may write there."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from harness.base.errors import Hindered, UserError
from harness.base.files import write_text
from harness.runs.run import Run, state_of


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "sweep" / "0123456789ab")


# --- files and state ---


def test_making_a_run_touches_nothing(run: Run) -> None:
    assert (run.name, run.signature) == ("sweep/0123456789ab", "0123456789ab")
    assert run.status() == {"state": "new"}
    assert run.metrics() == []
    assert run.result() is None
    assert not run.is_complete()
    assert not run.folder.exists()


def test_all_files_are_inside_the_folder_under_different_names(run: Run) -> None:
    names = [name for name, value in vars(Run).items() if hasattr(value, "__get__")]
    paths = [p for name in names if isinstance(p := getattr(run, name), Path)]
    assert len(paths) == 16
    assert len({*paths, run.folder}) == len(paths) + 1
    assert all(path.parent == run.folder for path in paths)


@pytest.mark.parametrize("damage", [b'{"epoch": \n', b"\0" * 700 + b"}\n", b"\xff\xfe\n"])
def test_a_log_ends_at_a_damaged_line_which_is_an_error_only_if_the_run_is_complete(
    run: Run, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run.log_metrics({"epoch": 1})
    with run.metrics_file.open("ab") as log:
        log.write(damage + b'{"epoch": 3}\n')
    assert run.metrics() == [{"epoch": 1}]
    write_text(run.result_file, "{}")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        run.metrics()
    run.result_file.unlink()
    run.keep_metrics(5)
    assert run.metrics_file.read_text() == '{"epoch": 1}\n'
    assert f"{run.metrics_file}: damaged after line 1, as by a crash of the machine" in caplog.text


def test_the_configuration_is_written_anew_when_the_run_is_to_go_on_elsewhere(run: Run) -> None:
    run.create("root: /here\n")
    run.create("root: /there\n")
    assert run.config_file.read_text() == "root: /there\n"
    before = run.config_file.stat()
    run.create("root: /there\n")
    assert run.config_file.stat().st_ino == before.st_ino  # nothing new, nothing written


def test_the_last_status_is_what_counts(run: Run) -> None:
    before = time.time()
    run.set_status("running", pid=7)
    run.set_status("failed", error="no disk")
    status = run.status()
    assert before <= status.pop("time") <= time.time()
    assert status == {"state": "failed", "error": "no disk"}


@pytest.mark.parametrize("text", ["", '{"state": "run', "[1]", "7"])
def test_an_unreadable_status_is_never_taken_for_none(run: Run, text: str) -> None:
    run.folder.mkdir(parents=True)
    run.status_file.write_text(text)
    with pytest.raises(UserError, match=r"cannot be read .*; fix or delete this file") as caught:
        run.status()
    assert str(run.status_file) in str(caught.value)


def test_a_place_where_no_run_can_be_is_reported_without_advice_about_its_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").touch()
    below_a_file = Run(tmp_path / "notes.txt" / "synthetic" / "0123456789ab")
    with pytest.raises(UserError) as caught:
        below_a_file.status()
    assert str(caught.value) == (
        f"{tmp_path / 'notes.txt'}: is a file; name a folder (run.runs=FOLDER)"
    )
    for nowhere in (below_a_file, Run(Path("/proc/nope/synthetic/0123456789ab"))):
        with pytest.raises(Hindered, match=r"cannot be written: .*name another place \(run\.runs"):
            nowhere.create("root: /here\n")


def test_a_run_is_complete_when_its_result_is_there_whatever_its_status(run: Run) -> None:
    run.set_status("complete")
    assert not run.is_complete()
    run.result_file.write_text('{"mAP": 0.5}')
    run.set_status("failed")
    assert run.is_complete()
    assert run.result() == {"mAP": 0.5}
    run.result_file.write_text("{")
    with pytest.raises(UserError, match=r"result.json: cannot be read"):
        run.result()


# --- metric log ---


def lines(*numbers: int) -> list[dict[str, int]]:
    return [{"step": number} for number in numbers]


def test_metrics_come_back_in_order(run: Run) -> None:
    for entry in lines(1, 2, 3):
        run.log_metrics(entry)
    assert run.metrics() == lines(1, 2, 3)
    with pytest.raises(ValueError, match="JSON compliant"):
        run.log_metrics({"loss": float("nan")})
    assert run.metrics() == lines(1, 2, 3)


def test_a_line_cut_short_by_a_kill_is_left_out_and_cut_away(run: Run) -> None:
    for entry in lines(1, 2):
        run.log_metrics(entry)
    whole = run.metrics_file.read_bytes()
    for cut in range(1, len(whole) // 2):
        run.metrics_file.write_bytes(whole[:-cut])
        assert run.metrics() == lines(1)
    run.keep_metrics(1)
    run.log_metrics({"step": 2})
    assert run.metrics_file.read_bytes() == whole


def test_the_log_is_cut_back_to_what_a_checkpoint_knew_of(run: Run) -> None:
    for entry in lines(1, 2, 3):
        run.log_metrics(entry)
    run.keep_metrics(2)
    run.log_metrics({"step": 33})
    assert run.metrics() == lines(1, 2, 33)
    run.keep_metrics(0)
    assert run.metrics() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "it has no state of a run"), ("[]", "no state"), ('{"state": "dead"}', "no state"),
        ('{"state": ["new"]}', "no state"), ('{"state": "new", "time": NaN}', "NaN is not JSON"),
        ('{"state": "failed", "host": 5}', "host is 5"),
        ('{"state": "failed", "attempts": true}', "attempts is True"),
        ('{"state": "failed", "started": "now"}', "started is 'now'"),
        ('{"state": "failed", "lines": [1]}', "lines are not all texts"),
        ('{"state": "failed", "log": null}', "log is None"),
    ],
)  # fmt: skip
def test_a_status_with_odd_values_is_named(run: Run, text: str, said: str) -> None:
    write_text(run.status_file, text)
    with pytest.raises(UserError, match=rf"status\.json: cannot be read \(.*{said}.*; fix or del"):
        run.status()


def test_a_status_that_an_editor_saved_with_a_mark_and_windows_lines_is_read(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    run.status_file.write_bytes(b'\xef\xbb\xbf{\r\n"state": "failed",\r\n"error": "x"}\r\n')
    assert run.status() == {"state": "failed", "error": "x"}


@pytest.mark.parametrize("text", ["NaN", "[]", '{"mAP": NaN}', '{"mAP": 1e400}', "5", "[[1, 2]]"])
def test_a_result_that_is_no_json_object_is_named(run: Run, text: str) -> None:
    write_text(run.result_file, text)
    with pytest.raises(UserError, match=r"result\.json: cannot be read: .*; put a copy back"):
        run.result()


@pytest.mark.parametrize(
    "line", ["5", "[]", '"stage"', '{"epoch": "3"}', '{"epoch": 2.5}', '{"stage": "../up"}',
             '{"stage": ["a"]}', '{"kind": null}', '{"step": true}', '{"loss": NaN}'],
)  # fmt: skip
def test_a_log_ends_at_a_line_that_is_no_entry(run: Run, line: str) -> None:
    run.log_metrics({"epoch": 1, "stage": "stage1"})
    with run.metrics_file.open("a") as log:
        log.write(line + '\n{"epoch": 3}\n')
    assert run.metrics() == [{"epoch": 1, "stage": "stage1"}]
    write_text(run.result_file, "{}")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        run.metrics()


@pytest.mark.parametrize(
    ("host", "seconds", "state"),
    [("here", 0, "interrupted"), ("elsewhere", 0, "running"), ("elsewhere", 600, "interrupted")],
)
def test_a_run_whose_process_is_gone_is_interrupted_as_far_as_this_machine_can_tell(
    run: Run, host: str, seconds: float, state: str
) -> None:
    run.set_status("running", host=host, pid=2**22 + 1)
    name = socket.gethostname() if host == "here" else host
    holder = {"host": name, "pid": 2**22 + 1, "started": "1", "token": "t"}  # no pid is so large
    run.lock_file.write_text(json.dumps(holder))
    os.utime(run.lock_file, (time.time() - seconds,) * 2)
    assert state_of(run) == state


def test_a_run_is_running_while_a_living_process_holds_it(run: Run) -> None:
    run.set_status("running")
    assert state_of(run) == "interrupted"
    with run.lock():
        assert state_of(run) == "running"
    write_text(run.result_file, "{}")
    assert state_of(run) == "complete"


def test_a_process_that_ends_while_its_state_is_asked_is_not_taken_for_an_interrupted_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.set_status("running")

    def ends_now(_: Path) -> None:
        run.set_status("stopped")  # as a process does before it releases its lock

    monkeypatch.setattr("harness.runs.run.lock_holder", ends_now)
    assert state_of(run) == "stopped"
