"""SLURM's commands, answered by scripts in their place."""

import dataclasses
import os
import shlex
import stat
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.cluster.known_places import default_place
from harness.cluster.records import EVERY, new_record, read_records
from harness.cluster.slurm import commands
from harness.cluster.slurm.place import recover


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a command on PATH that prints `text` and notes how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def answer(command: str, text: str = "", *, status: int = 0, words: str = "") -> Path:
        calls = folder / f"{command}.calls"
        script = folder / command
        script.write_text(
            f"#!/bin/sh\necho \"$SQUEUE_STATES $@\" >> {calls}\n"
            f"printf %s {shlex.quote(text)}\nprintf %s {shlex.quote(words)} >&2\nexit {status}\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return calls

    return answer


def test_the_queue_is_read_in_one_call_whatever_the_users_own_settings(
    answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    calls = answers("squeue", "12_0|RUNNING|None|N/A|toys.abc\n"
                    "12_1|PENDING|Job|N/A|Array|Limit|x\n\n13|PENDING|BeginTime|2031-12-01T18:30:00|toys.abd\n")
    assert commands.my_jobs() == {
        "12_0": ("RUNNING", "None", "toys.abc"), "12_1": ("PENDING", "Job", "Array|Limit|x"),
        "13": ("PENDING", "BeginTime 2031-12-01T18:30:00", "toys.abd"),
    }
    [call] = calls.read_text().splitlines()
    assert call.startswith(" --all --noheader")
    assert f"--user={os.getuid()}" in call.split()


def test_a_failing_command_is_reported_with_its_message(answers) -> None:
    answers("squeue", status=1, words="slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(UserError, match="squeue: slurm_load_jobs error: Unable") as raised:
        commands.my_jobs()
    assert "--cluster local" in str(raised.value)


def test_without_slurm_the_error_names_the_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert default_place() == "local"
    with pytest.raises(UserError, match=r"squeue: not on PATH; .* with --cluster local"):
        commands.my_jobs()


def test_the_largest_array_is_asked_for_with_slurms_default_as_fallback(answers) -> None:
    answers("scontrol", "Configuration data\nMaxArraySize            = 5\nMaxJobCount = 9\n")
    assert commands.max_array_size() == 5
    answers("scontrol", "Configuration data\n")
    assert commands.max_array_size() == 1001


def test_many_jobs_are_cancelled_in_calls_of_bearable_length(answers) -> None:
    calls = answers("scancel")
    commands.scancel(str(n) for n in range(1200))
    lines = [line.split() for line in calls.read_text().splitlines()]
    assert [len(line) - 1 for line in lines] == [500, 500, 200]
    assert [word for line in lines for word in line[1:]] == [str(n) for n in range(1200)]


def test_accounting_is_asked_for_arrays_in_pieces_and_jobs_of_another_name_are_not_believed(
    answers, tmp_path: Path
) -> None:
    calls = answers("sacct", "7_0|FAILED|1:0|node1|toys|x.token\n7_1|FAILED|1:0|node1|toys.other\n"
                             "8|NODE_FAIL|1:0|node2|toys.token\n9|COMPLETED|0:0|node1|toys.token\n")
    jobs = [f"7_{n}" for n in range(100_000)] + [str(n) for n in range(8, 12_000)]
    deaths = commands.deaths(dict.fromkeys(jobs, tmp_path / "token"))
    silent = f"no output of it is in {tmp_path / 'token'}"
    assert deaths == dict.fromkeys(jobs, silent) | {
        "7_0": f"FAILED (exit status 1:0) on node1: {silent}",
        "8": "NODE_FAIL (exit status 1:0) on node2",
    }
    asked = [word for word in calls.read_text().split() if word.startswith("--jobs=")]
    assert max(map(len, asked)) < 10_000  # Linux allows 128 kB
    numbers = [number for word in asked for number in word.removeprefix("--jobs=").split(",")]
    assert numbers == [str(n) for n in range(7, 12_000)]


def test_a_single_job_of_a_killed_launcher_is_found_by_its_name(answers, tmp_path: Path) -> None:
    calls = answers("scancel")
    record = new_record(tmp_path, "slurm", ["aaa"])
    record.write()
    (Path(record.folder) / "77_submitted.pkl").touch()
    recover(record, {
        "77": ("PENDING", "", f"toys.{record.token}"), "78": ("PENDING", "", "toys.other"),
    })
    [found] = read_records(tmp_path)
    assert (found.state, found.jobs) == ("submitted", {"aaa": "77"})
    assert not calls.exists()
    recover(dataclasses.replace(record, jobs={}), {
        "79": ("PENDING", "", f"toys.{record.token}"),
    })
    assert calls.read_text().split() == ["--quiet", "79"]


def test_the_job_of_a_function_belongs_to_no_trial_and_is_adopted(tmp_path: Path) -> None:
    record = new_record(tmp_path, "slurm", [], function="harness.somewhere")
    (Path(record.folder) / "77_submitted.pkl").touch()
    recover(record, {"77": ("PENDING", "", f"toys.before.{record.token}")})
    [found] = read_records(tmp_path)
    assert (found.state, found.jobs) == ("submitted", {EVERY: "77"})
