"""How every command ends, and how it logs."""

import importlib
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer

from harness.base.errors import UserError, WrongUsage
from harness.runs.run import Run
from launch import cli
from launch.cli import print_result

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""Installed commands, by name: module:function."""


def end(monkeypatch, capsys, function, *arguments):
    """Run `function` as a command; returns exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["launch/toy.py", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        cli.command("A toy.\n\n    python launch/toy.py --size 3\n    and more")(function)()
    return ended.value.code, *capsys.readouterr()


def test_the_function_decides_the_exit_status(monkeypatch, capsys):
    for status in (0, 1, 7):
        assert end(monkeypatch, capsys, lambda status=status: status)[0] == status


def test_a_users_mistake_is_one_message_and_status_1(monkeypatch, capsys):
    def mistaken() -> int:
        raise UserError("f.yaml, line 3: no key a\nf.yaml, line 4: no key b")

    status, out, err = end(monkeypatch, capsys, mistaken)
    assert (status, out) == (1, "")
    assert err == "error: f.yaml, line 3: no key a\nf.yaml, line 4: no key b\n"


def test_a_name_that_no_file_system_takes_is_one_message_and_status_1(monkeypatch, capsys):
    name = "x" * 300

    def look() -> int:
        return int(os.path.exists(name) or Path(name).exists())

    status, out, err = end(monkeypatch, capsys, look)
    assert (status, out, err) == (1, "", f"error: {name}: File name too long; name another\n")


def test_wrong_usage_is_one_line_and_status_2(monkeypatch, capsys):
    def sized(size: int) -> int:
        return size

    for arguments, reason in (([], "Missing"), (["many"], "valid integer"), (["1", "-x"], "-x")):
        status, out, err = end(monkeypatch, capsys, sized, *arguments)
        assert (status, out) == (2, "")
        assert reason in err
        assert err.endswith("(see launch/toy.py --help)\n")
        assert err.count("\n") == 1


def test_an_interrupt_is_status_130_without_a_traceback(monkeypatch, capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert end(monkeypatch, capsys, interrupted) == (130, "", "interrupted\n")


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def broken() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["launch/toy.py"])
    with pytest.raises(ZeroDivisionError):
        cli.command("A toy.")(broken)()


def test_examples_keep_their_lines_in_the_help(monkeypatch, capsys):
    status, out, _ = end(monkeypatch, capsys, lambda: 0, "--help")
    assert status == 0
    assert "python launch/toy.py --size 3\n      and more\n" in out
    assert "--install-completion" not in out


def test_our_scripts_do_not_stand_in_for_packages_of_the_same_name(monkeypatch, capsys):
    own = cli.__file__.rsplit("/", 1)[0]
    seen = []

    def look() -> int:
        seen.extend(sys.path)
        return 0

    monkeypatch.setattr(sys, "path", [own, *sys.path])
    monkeypatch.setattr(sys, "argv", ["launch/toy.py"])
    with pytest.raises(SystemExit):
        cli.command("A toy.")(look)()
    assert own not in seen
    assert len(seen) > 1


def test_logs_are_plain_lines_outside_of_a_terminal(monkeypatch, capsys):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    def talk() -> int:
        logging.getLogger("svll.toy").info("epoch %d", 3)
        logging.getLogger("elsewhere").info("chatter")
        return 0

    status, out, err = end(monkeypatch, capsys, talk)
    assert (status, out) == (0, "")
    assert err.endswith(" INFO epoch 3\n")
    assert err.count("\n") == 1


# --- what every command's help holds, and installed commands ---


@pytest.fixture
def help_of(monkeypatch, capsys):
    """Return a function that returns the help of a command under launch/."""

    def printed(name, *words):
        monkeypatch.setattr(sys, "argv", [f"launch/{name}.py", *words, "--help"])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"launch.{name}").main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("target", SCRIPTS.values())
def test_every_help_begins_with_an_example_and_ends_with_the_exit_status(help_of, target):
    name = target.removeprefix("launch.").removesuffix(":main")
    texts = [help_of(name)]
    if name == "data":
        texts += [help_of(name, word) for word in ("check", "split", "synthetic")]
    for text in texts:
        assert f"\n      python launch/{name}.py" in text.partition("Options:")[0]
        assert " ".join(text.split()).endswith(cli.EXIT_STATUS)


def test_every_command_is_installed_under_a_name_of_its_own():
    modules = {path.stem for path in ROOT.glob("launch/*.py")} - {"__init__", "cli"}
    assert {f"svll-{name}": f"launch.{name}:main" for name in modules} == SCRIPTS


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_script_starts_from_any_folder(name, tmp_path):
    script = ROOT / f"{SCRIPTS[name].partition(':')[0].replace('.', '/')}.py"
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{script.stem}.py" in done.stdout


def test_options_are_completed_by_bash_for_installed_commands(tmp_path):
    for name, target in SCRIPTS.items():
        script = tmp_path / name  # as pip writes it
        module, function = target.split(":")
        script.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
        script.chmod(0o755)

    def completed(line):
        name, *_ = words = line.split(" ")
        loaded = f'eval "$(_{name.replace("-", "_").upper()}_COMPLETE=source_bash {name})"'
        asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}"
        called = f'{loaded}; {asked}; _{name.replace("-", "_")}_completion {name}'
        done = subprocess.run(
            ["bash", "-c", called + '; printf "%s\n" "${COMPREPLY[@]}"'], text=True,
            capture_output=True, check=True,
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        )
        return done.stdout.split()

    assert completed("svll-slurm --re") == ["--recipe", "--retry-failed"]
    assert completed("svll-data split --va") == ["--validation"]
    assert completed("svll-train --recipe market") == ["market1501"]
    assert completed("svll-slurm resources.ti") == ["resources.time="]


def test_completion_is_offered_by_installed_commands_only(monkeypatch):
    for word, offered in (("/usr/bin/svll-slurm", True), ("launch/slurm.py", False)):
        monkeypatch.setattr(sys, "argv", [word])
        app = cli.new_app()
        app.command()(lambda: 0)
        names = [name for p in typer.main.get_command(app).params for name in p.opts]
        assert ("--install-completion" in names) is offered


def test_help_on_keys_is_printed_without_a_recipe_or_a_sweep(monkeypatch, capsys):
    for name, words, told in (
        ("train", ["stage1.lss"], "stage1.lss_weight: a number, default 0.8"),
        ("train", [], "run.runs: a string, default runs; outside the signature"),
        ("slurm", [], "scheduler.asha.grace: an integer, default 1"),
        ("slurm", ["trials_per"], "ray.trials_per_gpu: an integer, default 1"),
    ):
        monkeypatch.setattr(sys, "argv", [f"launch/{name}.py", "--help-config", *words])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"launch.{name}").main()
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert re.search(rf"^  {re.escape(told)}", out, re.MULTILINE)
        assert ("seed" in out) == (not words)


def test_training_without_a_recipe_says_what_to_give(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch/train.py", "seed=2"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("launch.train").main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: give --recipe NAME (or FILE), or --data DIR for your own images; --help shows "
        "examples\n"
    )


def test_paths_of_options_are_expanded_as_those_of_keys_are(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    taken = []

    def toy(
        words: Annotated[list[str], typer.Argument()], root: Annotated[Path, typer.Option()],
        more: Annotated[list[Path] | None, typer.Option()] = None,
        name: Annotated[str, typer.Option()] = "x",
    ) -> int:
        taken.extend([root, *(more or []), name, *words])
        return 0

    options = ["--root=~/a", "--more=$HOME/b", "--name=~/c.yaml", "~/d", "data.root=~/e", "f~",
               "data/$HOME/f.h5"]
    assert end(monkeypatch, capsys, toy, *options)[0] == 0
    assert taken == [
        tmp_path / "a", tmp_path / "b", f"{tmp_path}/c.yaml", f"{tmp_path}/d", "data.root=~/e",
        "f~", f"data/{tmp_path}/f.h5",
    ]


def test_names_that_are_not_utf_8_are_printed_with_backslashes(tmp_path):
    program = (
        "import os, sys, typer; from launch import cli\n"
        "def main() -> int:\n    typer.echo(os.fsdecode(b'caf\\xe9'))\n    return 0\n"
        "cli.command('x')(main)()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"caf\\udce9\n", b"")


@pytest.mark.parametrize("words", [["--root", ""], ["--root", " "], ["--root="], ["--root=a", ""]])
def test_an_empty_word_is_no_path_to_the_current_folder(monkeypatch, capsys, words):
    def toy(root: Annotated[Path, typer.Option()]) -> int:
        return 0

    status, out, err = end(monkeypatch, capsys, toy, *words)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: word \d of the command line, '.*', is empty: was a variable not "
                        r"set\?\n", err)
    assert end(monkeypatch, capsys, toy, "--root=.")[0] == 0


def test_a_path_with_an_unknown_variable_is_refused(monkeypatch, capsys):
    def toy(root: Annotated[Path, typer.Option()]) -> int:
        return 0

    status, _, err = end(monkeypatch, capsys, toy, "--root=$NO_SUCH_PLACE/x")
    assert (status, err) == (
        1, "error: $NO_SUCH_PLACE/x: $NO_SUCH_PLACE is not known on this machine\n"
    )


def test_an_option_that_is_0_is_given_too() -> None:
    cli.refuse_without("--a", None, {"--b": None, "--c": False, "--d": [], "--e": ()})
    cli.refuse_without("--a", "there", {"--b": 0})
    with pytest.raises(WrongUsage, match=r"^--b, --c without --a has no effect; add --a$"):
        cli.refuse_without("--a", None, {"--b": 0, "--c": 0.0})


def test_a_result_that_is_not_of_a_run_is_named_and_none_of_it_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = Run(tmp_path)
    whole = {"mAP": 0.5, "cmc": {"1": 0.25}, "initial": {"mAP": 0.125, "cmc": {"1": 0.5}}}
    finished.result_file.write_text(json.dumps(whole))
    print_result(finished)
    assert capsys.readouterr().out.splitlines() == [
        "test            mAP 0.5000  Rank-1 0.2500", "before training mAP 0.1250  Rank-1 0.5000",
        f"files           {tmp_path}",
    ]  # fmt: skip
    for odd in ({"mAP": 0.5}, {"mAP": "x", "cmc": {"1": 1}}, {"tests": [1]},
                whole | {"validation": 5}):  # fmt: skip
        finished.result_file.write_text(json.dumps(odd))
        with pytest.raises(UserError, match=r"result\.json: cannot be read"):
            print_result(finished)
        assert capsys.readouterr().out == ""
