"""Paths as people write them are expanded alike wherever they stand."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.paths import NO_UTF8, expanded, is_utf8, normal, refuse, shown, typed, unknown_in


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
    (tmp_path / "a$HOME").mkdir()  # what is made in it, too
    assert expanded("a$HOME/new/runs") == "a$HOME/new/runs"
    assert expanded("$HOME/a$HOME/new") == "/home/anna/a/home/anna/new"


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


@pytest.mark.parametrize("name", [
    "plain", "a b", "a'b", 'a"b', "a\nb", "a\tb\r", "100%j", "a#b", "a:b", "a,b", "a\\b", "-a",
    "a$HOME`id`", "a;b&c|d", "a[b]*?{c}", "~a", "a.", " a ", "\N{GRINNING FACE}", "x" * 200,
    os.fsdecode(b"a\xff'\\b"),
])
def test_a_path_in_a_printed_command_is_the_same_path_when_it_is_typed(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(name, errors="surrogateescape")
    command = f"cat {typed(name)}; echo -n {typed(name, 'data.root=')}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == os.fsencode(f"{name}data.root={name}")
    assert "\n" not in command


def test_a_path_that_would_be_read_as_another_one_is_refused_with_every_reason() -> None:
    reasons = {":": "ends it", "%": "is a number", NO_UTF8: "cannot be written"}
    refuse("run.runs", Path("a b"), reasons)
    with pytest.raises(UserError) as caught:
        refuse("run.runs", os.fsdecode(b"a:\xff"), reasons)
    assert str(caught.value) == (
        "run.runs: 'a:\N{REPLACEMENT CHARACTER}' cannot be used here: ':' ends it; bytes that are "
        "not UTF-8 cannot be written; name a folder without that"
    )
