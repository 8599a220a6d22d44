"""Cores and GPUs that a process may use."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base import machine


def test_the_users_name_is_the_one_of_its_number_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "stale")
    whoami = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True)
    assert machine.user_name() == whoami.stdout.strip()
    assert machine.user_name(2**31 - 7) == str(2**31 - 7)


def test_cuda_visible_devices_limits_gpus_as_cuda_reads_it(
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = gpus(4)
    assert machine.visible_gpus() == machine.machine_gpus() == names
    for visible, expected in (
        ("2,0", [names[2], names[0]]), (" 1 ", [names[1]]), ("", []), ("-1", []),
        ("1,9,2", [names[1]]), ("GPU-c,0", [names[2], names[0]]), ("3,3", [names[3]]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.visible_gpus() == expected
        assert machine.machine_gpus() == names


def test_of_a_split_gpu_the_parts_are_used(
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(2)
    command = Path(os.environ["PATH"].split(os.pathsep)[0]) / "nvidia-smi"
    parts = [f"  MIG 3g.40gb     Device  {n}: (UUID: MIG-{n})\n" for n in (0, 1)]
    command.write_text(command.read_text().replace("GPU 1:", "".join(parts) + "GPU 1:"))
    assert machine.machine_gpus() == ["MIG-0", "MIG-1", "GPU-bbbbbbbb"]


def test_without_nvidia_smi_gpus_are_numbered_by_their_device_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (machine.visible_gpus(), machine.has_gpu()) == ([], False)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert (machine.visible_gpus(), machine.has_gpu()) == (["0", "1"], True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (machine.visible_gpus(), machine.has_gpu()) == ([], False)


def test_an_nvidia_smi_that_fails_is_reported_where_there_are_gpus(
    gpus: Callable[[int], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    for number, line in enumerate(("exit 9", "sleep 9")):
        gpus(number + 1)
        command = Path(os.environ["PATH"].split(os.pathsep)[0]) / "nvidia-smi"
        command.write_text(f"#!/bin/sh\necho 'NVIDIA-SMI has failed.\nIs it running?'\n{line}\n")
        monkeypatch.setattr(machine, "ANSWER_LIMIT_S", 0.3 if number else 30)
        assert machine.machine_gpus() == []
        assert bool(caplog.messages) == bool(number)
        machine._listed.cache_clear()
        (tmp_path / "nvidia0").touch()
        assert machine.visible_gpus() == machine.visible_gpus() == []
    warning = "nvidia-smi fails, so this machine's GPUs are not used: "
    assert caplog.messages[0] == f"{warning}Is it running?"
    assert "timed out after 0.3 seconds" in caplog.messages[1]
    assert len(caplog.messages) == 3


def test_a_containers_quota_limits_how_many_cores_are_used(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 3, 4})
    for texts, cores in (
        ([], [2, 3, 4, 5]), (["max 100000"], [2, 3, 4, 5]), (["50000 100000"], [2]),
        (["250000 100000", "max 100000"], [2, 3]), (["300000"], [2, 3, 4]), (["-1"], [2, 3, 4, 5]),
    ):
        monkeypatch.setattr(machine, "cgroup_texts", lambda *_, found=texts: found)
        assert machine.usable_cores() == cores
