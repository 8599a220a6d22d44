"""Cores and GPUs that a process may use."""

import os
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


def test_models_are_those_of_the_gpus_that_a_process_may_use(
    gpus: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(3)
    command = Path(os.environ["PATH"].split(os.pathsep)[0]) / "nvidia-smi"
    part = "  MIG 3g.40gb     Device  0: (UUID: MIG-0)"
    lines = command.read_text().replace("GPU 1: NVIDIA H100", "GPU 1: NVIDIA A100-SXM4-80GB")
    command.write_text(lines.replace("GPU-cccccccc)", f"GPU-cccccccc)\n{part}"))
    for visible, models in (
        ("0", ["NVIDIA H100"]), ("1,0", ["NVIDIA A100-SXM4-80GB", "NVIDIA H100"]),
        ("MIG-0", ["NVIDIA H100 MIG 3g.40gb"]), ("", []),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.visible_models() == models


def test_gpus_are_given_by_cuda_visible_devices_or_else_by_slurm(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    for visible, count, given in (
        (None, None, ""), ("0", None, "CUDA_VISIBLE_DEVICES=0"), ("", "2", ""), ("-1", None, ""),
        ("GPU-8f,1", "2", "CUDA_VISIBLE_DEVICES=GPU-8f,1"), ("NoDevFiles", None, ""),
        ("MIG-1/2", None, "CUDA_VISIBLE_DEVICES=MIG-1/2"), (None, "0", ""),
        (None, "2", "SLURM_GPUS_ON_NODE=2"),
    ):
        for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("SLURM_GPUS_ON_NODE", count)):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        assert machine.allotted_gpus() == given


def test_a_driver_that_is_missing_or_too_old_for_torch_is_reported_with_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "version"
    driver.write_text("535.183.01\n")
    monkeypatch.setattr(machine, "DRIVER", driver)
    own = f"torch {metadata.version('torch')}"
    for built, runs, fault in (
        ((13, 0), (13, 1), ""), ((12, 8), (12, 2), ""),  # goes with all of its major version
        ((12, 8), (13, 0), ""),
        ((13, 0), (12, 2), "the driver is too old for torch: update it, or install torch for CUDA "
         f"12 ({own} for CUDA 13.0; driver 535.183.01, up to CUDA 12.2)"),
        (None, (12, 2), "torch was built without CUDA "
         f"({own} without CUDA; driver 535.183.01, up to CUDA 12.2)"),
        ((13, 0), None, "libcuda.so.1, the driver's library, is not found; in a container, start "
         f"it with its GPUs (docker --gpus all, apptainer --nv) ({own} for CUDA 13.0; no driver)"),
    ):
        monkeypatch.setattr(machine, "torch_cuda", lambda built=built: built)
        monkeypatch.setattr(machine, "driver_cuda", lambda runs=runs: runs)
        assert machine.cuda_fault() == fault


def test_the_versions_of_cuda_are_those_of_torch_and_of_the_drivers_library(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    built = machine.torch_cuda()
    assert torch.version.cuda == (built and f"{built[0]}.{built[1]}")

    def answer(number: int, failed: int = 0) -> SimpleNamespace:
        def ask(found: Any) -> int:
            found._obj.value = number
            return failed

        return SimpleNamespace(cuDriverGetVersion=ask)

    for library, found in ((answer(12020), (12, 2)), (answer(13010), (13, 1)),
                           (answer(0), None), (answer(12020, failed=35), None)):
        monkeypatch.setattr(machine.ctypes, "CDLL", lambda _, library=library: library)
        assert machine.driver_cuda() == found


def test_without_nvidia_smi_gpus_are_numbered_by_their_device_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.setattr(machine, "MODELS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (machine.visible_gpus(), machine.has_gpu()) == ([], False)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert (machine.visible_gpus(), machine.has_gpu()) == (["0", "1"], True)
    (tmp_path / "0000:1b:00.0").mkdir()
    facts = "Model: \t NVIDIA L40S\nIRQ:   42\nDevice Minor: \t 1\n"
    (tmp_path / "0000:1b:00.0" / "information").write_text(facts)
    assert machine.visible_models() == ["", "NVIDIA L40S"]
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
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
