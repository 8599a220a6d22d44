"""Tests of the CPU see none of a machine's GPUs, and those marked `gpu` see what there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.base import machine
from tests.gpu import hiding


def test_on_a_machine_with_gpus_they_are_hidden_but_from_tests_that_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "driver" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-real)'\n")
    smi.chmod(0o755)
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.delenv(hiding.VISIBLE)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    assert hiding.no_gpu() == "this machine has no GPU"
    (tmp_path / "nvidia0").touch()
    before = dict(os.environ)
    assert machine.machine_gpus() == machine.visible_gpus() == ["GPU-real"]
    hiding.hide()
    hiding.hide()  # as in a process of xdist
    assert machine.machine_gpus() == machine.visible_gpus() == []
    assert (machine.has_gpu(), hiding.no_gpu(), hiding.shown()) == (False, "", before)
    program = "from harness.base import machine as m; print(m.machine_gpus(), m.visible_gpus())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[] []\n"


def test_gpus_that_the_user_hides_stay_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv(hiding.VISIBLE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    hiding.hide()
    assert hiding.no_gpu() == "CUDA_VISIBLE_DEVICES=-1 hides all"
    assert hiding.shown()["CUDA_VISIBLE_DEVICES"] == "-1"
