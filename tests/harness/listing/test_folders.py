"""What a user's word means: a path, a sweep's name, or the beginning of a signature."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.listing.folders import named
from tests.harness.listing.conftest import MakeRun


def test_a_run_is_named_by_its_path_or_by_the_beginning_of_its_signature(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = make_run(0xA10000000000), make_run(0xA20000000000, group="others")
    sweep, runs = make_sweep(), tmp_path / "runs"
    assert named(str(one.folder), runs) == one.folder
    assert named("runs/others/a2", runs) == Path("runs/others", two.signature)
    assert [named(word, runs) for word in ("a1", "toys/a", one.signature, "others/a2", "toys")] == [
        one.folder, one.folder, one.folder, two.folder, sweep]


@pytest.mark.parametrize(
    ("word", "message"),
    [("a", r"a: 2 runs begin so: others/a20000000000, toys/a10000000000; write more of it$"),
     ("a10000000001", r"no run or sweep of this name in .*runs; did you mean a10000000000\?$"),
     ("tois", r"^tois: .* did you mean toys\?$"),
     ("gone/a1", r"there is no folder .*runs/gone; name another folder of runs with --runs$")],
)
def test_a_word_that_means_none_or_several_is_an_error_which_names_the_nearest(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path], word: str, message: str
) -> None:
    make_run(0xA10000000000)
    make_run(0xA20000000000, group="others")
    make_sweep()
    with pytest.raises(UserError, match=message):
        named(word, tmp_path / "runs")


def test_a_folder_of_another_kind_is_refused_with_the_runs_in_it(
    tmp_path: Path, make_run: MakeRun
) -> None:
    run = make_run(1)
    with pytest.raises(UserError, match=f"neither a run's folder nor a sweep's; it has {run.name}"):
        named(str(run.folder.parent), tmp_path)


def test_the_beginning_of_a_sweeps_name_is_not_the_sweep(
    tmp_path: Path, make_run: MakeRun, make_sweep: Callable[..., Path]
) -> None:
    make_run(1, group="tokens2")
    sweep = make_sweep("tokens2")
    with pytest.raises(UserError, match=r"^tokens: no run .*; did you mean tokens2\?$"):
        named("tokens", tmp_path / "runs")
    assert named("tokens2", tmp_path / "runs") == sweep
