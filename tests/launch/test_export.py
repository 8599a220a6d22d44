"""The export command: a file and one line, or one message."""

import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.sources import parse_overrides
from harness.runs.run import Run
from svll.config import RECIPES, Config
from svll.data.side_labels import SideLabels
from svll.models.clip import load_clip
from svll.models.reid import ReIDModel
from svll.models.weights.onnx_export import PACKAGES
from svll.models.weights.run_weights import save_model
from tests.commands import ROOT, Command, called


@pytest.fixture
def run() -> Command:
    """Call the command in this process; returns exit status, stdout and stderr."""
    return partial(called, "export")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = read_recipe(RECIPES / "synthetic_tiny.yaml", Config)
    config = build(Config, [*recipe, *parse_overrides(["model.sie=none"])])
    clip = load_clip("svll-tiny", "shipped", height=64, width=32, stride=8)
    run = Run(tmp_path_factory.mktemp("run"))
    save_model(
        run.weights_file, ReIDModel(clip.image, None).state_dict(), config,
        text=torch.zeros(2, 128), side_labels=SideLabels({}, {}), identities=2,
    )
    return run


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason="the extra `export`"
)
def test_a_run_is_exported_and_compared_on_real_images(
    run: Command, finished: Run, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "more/b.PNG", "c.txt"):
        image = Image.fromarray(rng.integers(0, 256, (70, 40, 3), dtype=np.uint8))
        image.save(tmp_path / "photos" / name, format="png")
    out = tmp_path / "model.onnx"
    status, printed, _ = run(
        "--weights", finished.folder, "--out", out, "--images", tmp_path / "photos"
    )
    assert status == 0
    assert out.is_file()
    assert printed.startswith(f"{out}: ")
    assert "largest difference from torch" in printed
    assert printed.endswith("over 6 images\n")


def test_a_folder_without_images_is_reported(run: Command, finished: Run, tmp_path: Path) -> None:
    status, _, message = run(
        "--weights", finished.folder, "--out", tmp_path / "a.onnx", "--images", tmp_path
    )
    assert status == 1
    assert f"{tmp_path}: no images there (.jpg, " in message


def test_files_that_are_not_weights_are_refused(run: Command, tmp_path: Path) -> None:
    status, _, message = run("--weights", tmp_path / "a.pth", "--out", tmp_path / "a.onnx")
    assert status == 1
    assert f"{tmp_path / 'a.pth'}: no such file" in message


def test_a_missing_package_is_reported_with_what_to_install(
    run: Command, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svll.models.weights.onnx_export.PACKAGES", ("no_such_onnx",))
    status, _, message = run("--weights", finished.folder, "--out", tmp_path / "a.onnx")
    assert status == 1
    assert "no_such_onnx: not installed; pip install '.[export]'" in message


def test_help_shows_the_examples_without_loading_torch() -> None:
    program = (
        "import sys; sys.argv = ['launch/export.py', '--help']; from launch import export\n"
        "try: export.main()\n"
        "finally: print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert "    python launch/export.py --weights" in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_a_place_that_the_runtime_cannot_open_is_refused_before_the_work(tmp_path: Path) -> None:
    status, _, err = called("export", "--weights", tmp_path, "--out", f"{tmp_path}/\udcff.onnx")
    assert status == 1
    assert "--out: " in err
    assert "bytes that are not UTF-8 cannot be in the path of an ONNX file" in err
