"""What shells complete."""

from pathlib import Path

import pytest

from harness.config.completion import keys_of, recipes_in, sweeps_in
from svll.config import RECIPES, SWEEPS, Config


def test_names_of_recipes_and_sweeps_files_and_keys_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, sweeps = recipes_in(RECIPES), sweeps_in(SWEEPS)
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "other.txt", "deep/mind.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert recipes("synthetic_t") == ["synthetic_tiny"]
    assert recipes("market1501+c") == ["market1501+clipreid"]
    assert "clipreid" not in recipes("")
    assert recipes("m") == ["market1501", "msmt17", "mine.yaml"]
    assert recipes("./deep/m") == ["./deep/mind.yml"]
    assert sweeps("loss") == ["loss_weights"]
    assert sweeps("de") == ["deep/"]
    assert sweeps("none/a") == []
    assert keys_of(Config)("stage1.lss_w") == ["stage1.lss_weight="]
