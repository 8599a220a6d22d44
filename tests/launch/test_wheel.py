"""The wheel, installed without the tree that it was built of."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest

import svll
from harness.sweeps.reading import read_sweep
from svll.config import RECIPES, SWEEPS, Config
from svll.reuse.fingerprints import pin
from tests.commands import ROOT, Ended

PACKED = ("harness", "svll", "launch")
BESIDE = ("sweeps", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in PACKED + BESIDE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"symlinks": True} if copy == shutil.copytree else {}))
    pip("wheel", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    [file] = (source / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """Return a function that runs an installed command in an empty folder."""
    place, here = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    pip("install", "--target", place, wheel)

    def run(name: str, *words: object) -> Ended:
        done = subprocess.run(
            [place / "bin" / name, *map(str, words)], cwd=here, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(place)}, timeout=60, check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def pip(command: str, *words: object) -> None:
    """Call pip on what is here, without the packages that ours needs."""
    subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", *map(str, words)], check=True,
    )


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix() for package in PACKED
        for path in [*(ROOT / package).rglob("*"), *(ROOT / package / "sweeps").glob("*")]
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == {name for name in here if not name.endswith("README.md")}


def test_a_shipped_sweep_runs_by_its_name_from_any_folder(installed: Callable[..., Ended]) -> None:
    ended = installed("svll-slurm", "--sweep", "loss_weights", "--dry-run", "--cluster", "local")
    assert ended.status == 0, ended.err
    sweep = read_sweep(SWEEPS / "loss_weights.yaml", schema=Config, recipes=RECIPES,
                       metrics=["mAP", "validation.mAP"], complete=pin)
    shown = re.findall(r"\b[0-9a-f]{12}\b", ended.out)
    assert sorted(shown) == sorted(trial.signature for trial in sweep.trials)


def test_help_and_errors_show_commands_as_they_were_called(
    installed: Callable[..., Ended]
) -> None:
    told = installed("svll-evaluate", "--help").out + installed("svll-evaluate", "--run", "x").err
    assert "      svll-evaluate runs/" in told
    assert "torchrun --nproc-per-node 4 --no-python svll-evaluate " in told
    assert "use svll-evaluate RUN (svll-features RUN makes the features)" in told
    assert "launch/" not in told


def test_the_version_is_the_distributions(installed: Callable[..., Ended]) -> None:
    assert distribution("svll-reid").version == svll.__version__
    for name in ("svll-train", "svll-data", "svll-runs"):
        assert installed(name, "--version") == (0, f"svll-reid {svll.__version__}\n", "")
