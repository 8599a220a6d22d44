"""Sweep files of a small configuration."""

from pathlib import Path

import pytest

from harness.sweeps.reading import read_sweep
from tests.harness.sweeps.small import METRICS, Config


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "base.yaml").write_text("train: {epochs: 6}\nrun: {runs: here}\n")
    return folder


@pytest.fixture
def read(tmp_path: Path, recipes: Path):
    def read_text(text: str, *words: str):
        file = tmp_path / "tried.yaml"
        file.write_text(text)
        return read_sweep(file, schema=Config, recipes=recipes, overrides=words, metrics=METRICS)

    return read_text
