"""How every command ends, and how it logs."""

import logging
import sys

import pytest

from harness.errors import UserError
from launch import cli


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
