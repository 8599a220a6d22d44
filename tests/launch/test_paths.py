"""A path means the same in every option and key that takes one."""

import importlib
import inspect
import re
import shlex
import typing
from pathlib import Path

import pytest
import typer

from launch import cli
from tests.commands import called

LINES = """
train --recipe PATH.yaml
train --recipe synthetic_tiny+PATH.yaml
train --dry-run --recipe synthetic_tiny data.name=folder data.root=PATH/
train --dry-run --recipe synthetic_tiny data.name=list 'data.roots={list: "PATH/"}'
train --dry-run --recipe synthetic_tiny model.weights=PATH/w.pth
train --recipe synthetic_tiny run.runs=PATH
train --data PATH
train --data no --extends PATH.yaml
slurm --status --recipe PATH.yaml
slurm --status --sweep PATH.yaml
slurm --status --recipe synthetic_tiny model.weights=PATH/w.pth
slurm --status --recipe synthetic_tiny data.name=folder data.root=PATH/
data check list --root PATH/
data split --root PATH --out o.csv
data split --root no --out PATH
data synthetic --size 2 --root PATH
evaluate PATH
evaluate --features PATH
evaluate PATH --gallery PATH
evaluate --recipe PATH.yaml --weights w.pth
evaluate --recipe synthetic_tiny --weights PATH/w.pth
evaluate --recipe synthetic_tiny --weights w.pth --save PATH/f.h5
evaluate f.h5 --per-query PATH/f.csv
features PATH --save f.h5
features --recipe PATH.yaml --weights w.pth --save f.h5
features --recipe synthetic_tiny --weights PATH/w.pth --save f.h5
features f.h5 --save PATH/f.h5
features f.h5 --gallery PATH --save f.h5
verify PATH
verify f.h5 --gallery PATH
verify f.h5 --threshold-from PATH
search --weights PATH/w --query q --gallery g
search --weights w --query PATH/q --gallery g
search --weights w --query q --gallery PATH/g
search --weights w --query q --gallery g --out PATH
search --weights w --query q --gallery g --threshold-from PATH
report PATH
report no --out PATH/o.html
report no --ranked --root PATH
report no --study PATH/s
report no --ranked --query PATH
export --weights PATH/w --out o.onnx
export --weights w --out PATH/o.onnx
export --weights w --out o.onnx --images PATH/
""".strip().splitlines()
"""Commands that fail because of PATH, a file that is none of what they want."""
NO_PATHS = ("k1", "k2", "weight", "ray_address", "size", "dataset", "sweep_name")
"""Options with a text that is no path."""


@pytest.mark.parametrize("line", LINES)
def test_home_and_variables_mean_the_same_in_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x").write_text("junk")

    def said(path: str) -> str:
        ended = called(*shlex.split(line.replace("PATH", path)))
        assert ended.status in (1, 2) or "run.runs" in line
        assert "Traceback" not in ended.err
        text = re.sub(r"(?m)^[-0-9]+ [:,0-9]+ INFO .*\n", "", ended.out + ended.err)
        return text.replace(path, f"{tmp_path}/home/x")  # as it was typed

    expected = said(f"{tmp_path}/home/x")
    for path in ("~/x", "$HOME/x", "${HOME}/x"):
        assert said(path) == expected
    if "+" not in line:
        assert "$NOWHERE is not known on this machine" in said("$NOWHERE/x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_every_option_that_takes_a_path_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    apps: list[typer.Typer] = []
    missing = []
    for command in {line.split()[0] for line in LINES} | {"pretrain"}:
        module = importlib.import_module(f"launch.{command}")
        for place in (cli, module):
            monkeypatch.setattr(place, "run", lambda app, moved=None: apps.append(app),
                                raising=False)
        module.main()
        functions = [one.callback for one in apps[-1].registered_commands]
        signatures = [inspect.signature(function) for function in functions if function]
        for name, parameter in [pair for one in signatures for pair in one.parameters.items()]:
            kind = typing.get_args(parameter.annotation)[0]
            option = f"--{name.replace('_', '-')} "
            if "Option" in str(parameter.annotation) and re.search(r"\bstr\b|Path", str(kind)) and (
                name not in NO_PATHS
                and not any(re.match(rf"{command} .*{option}PATH", line) for line in LINES)
            ):
                missing.append(f"{command} {option}")
    assert missing == []
    assert len(apps) == 10
