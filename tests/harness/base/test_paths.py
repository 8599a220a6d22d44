"""Paths as people write them are expanded alike wherever they stand."""

import os
from pathlib import Path

import pytest

from harness.base.paths import expanded, is_utf8, normal, shown, unknown_in


def test_home_and_variables_are_replaced_as_a_shell_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("DISK", "/mnt")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert expanded("~/runs") == expanded("$HOME/runs") == expanded("${HOME}/runs")
    assert expanded("~/runs") == "/home/anna/runs"
    assert expanded("$DISK/$DISK") == "/mnt//mnt"
    assert expanded("runs/a~b") == "runs/a~b"
    assert unknown_in(expanded("$NOWHERE/runs")) == "$NOWHERE"
    assert unknown_in(expanded("${NOWHERE}/$DISK")) == "${NOWHERE}"
    assert unknown_in(expanded("~nobody-of-that-name/x")) == "~nobody-of-that-name"
    for name in ("~", "$HOME", "a$NOWHERE"):  # files of such names are meant as they are written
        (tmp_path / name).touch()
        assert (expanded(name), unknown_in(name)) == (name, "")


def test_two_spellings_of_a_file_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    monkeypatch.chdir(tmp_path)
    assert normal("link/../x") == normal("./far//x") == str(tmp_path / "far" / "x")
    assert normal("link/x") == str(tmp_path / "link" / "x")
    assert normal("a..b/x") == str(tmp_path / "a..b" / "x")


def test_bytes_that_are_not_utf_8_can_be_shown() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert (is_utf8(name), is_utf8("caf\u00e9.jpg")) == (False, True)
    assert shown(name) == "caf\N{REPLACEMENT CHARACTER}.jpg"
