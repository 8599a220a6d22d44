"""A path means the same in every option and key that takes one."""

import importlib
from pathlib import Path

import click
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
report no --ranked --query PATH
export --weights PATH/w --out o.onnx
export --weights w --out PATH/o.onnx
export --weights w --out o.onnx --images PATH/
""".strip().splitlines()
"""Commands that fail because of PATH, a file that is none of what they want."""
NO_PATHS = {"--k1", "--k2", "--weight", "--ray-address", "--size", "--dataset"}
"""Options with a text that is no path."""


@pytest.mark.parametrize("line", LINES)
def test_home_and_variables_mean_the_same_in_every_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "x").write_text("junk")
    ended = [called(*shlex.split(line.replace("PATH", path)))
             for path in (f"{tmp_path}/home/x", "~/x", "$HOME/x", "${HOME}/x")]
    assert ended[0] == ended[1] == ended[2] == ended[3]
    assert ended[0].status in (1, 2)
    assert "Traceback" not in ended[0].err
    told = called(*shlex.split(line.replace("PATH", "$NOWHERE/x")))
    assert told.status == 1
    assert "$NOWHERE is not known on this machine" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_every_option_that_takes_a_path_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    apps: list[typer.Typer] = []
    missing = []
    for name in {line.split()[0] for line in LINES} | {"pretrain"}:
        module = importlib.import_module(f"launch.{name}")
        for place in (cli, module):
            monkeypatch.setattr(place, "run", lambda app, moved=None: apps.append(app),
                                raising=False)
        module.main()
        found = typer.main.get_command(apps[-1])
        commands = found.commands.values() if isinstance(found, click.Group) else [found]
        for option in [param for command in commands for param in command.params]:
            if not isinstance(option.type, click.Path | click.types.StringParamType):
                continue
            if not any(line.startswith(name) and f"{word} PATH" in line or f"{word} synthetic_tiny+PATH" in line
                       for line in LINES for word in option.opts if word not in NO_PATHS):
                missing.append((name, option.opts))
    assert [one for one in missing if one[1][0] not in NO_PATHS] == []
