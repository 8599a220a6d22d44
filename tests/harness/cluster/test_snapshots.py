"""Jobs run the code that was submitted, whatever has been edited since."""

import logging
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import harness
from harness.base.errors import UserError
from harness.base.paths import NO_UTF8, shown
from harness.cluster import snapshots, states
from harness.cluster.launch import launch
from harness.cluster.local import worker
from harness.cluster.local.place import living_workers
from harness.cluster.records import new_record, read_records
from harness.cluster.states import survey
from harness.sweeps.reading import Sweep
from tests.disk import Disk

EXPERIMENT = """
import time
from helping.words import WORD
from harness.base.files import write_json

def run(run, report=None):
    time.sleep(1.0)
    write_json(run.result_file, {"mAP": 0.5, "word": WORD, "from": __file__})
"""


@pytest.fixture
def sweep(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sweep]:
    """Two trials of an experiment that is a package of its own, `helping`."""
    package = tmp_path / "src" / "helping"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(EXPERIMENT)
    (package / "words.py").write_text("WORD = 'old'\n")
    (package / "README.md").write_text("Words.")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "words.pyc").write_bytes(b"x")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    runs = str(tmp_path / toy.ODD_HERE / "runs")  # where the code is copied to and found
    yield toy.make_sweep(
        tmp_path / toy.ODD_HERE, {"work.quality": {"grid": [0.1, 0.2]}},
        recipe={"run": {"runs": runs, "experiment": "helping.run"}},
    )
    for name in [name for name in sys.modules if name.startswith("helping")]:
        del sys.modules[name]


def edit(tmp_path: Path) -> None:
    (tmp_path / "src" / "helping" / "words.py").write_text("WORD = 'new'\n")


def over(toy: ModuleType, sweep: Sweep) -> None:
    """Wait until the workers are over, too: a trial is complete before its process has ended."""
    toy.until(
        lambda: not any(view.state in states.ALIVE for view in survey(sweep))
        and not living_workers(sweep.folder)
    )


def test_the_snapshot_has_the_packages_as_they_are_and_nothing_compiled(sweep: Sweep) -> None:
    code = snapshots.current_code(sweep)
    assert not code.folder.exists()
    folder = code.freeze()
    root = Path(harness.__file__).parents[1]
    frozen = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    expected = {
        str(p.relative_to(root)) for name in ("harness", "svll", "launch")
        for p in (root / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts
        and p.suffix != ".md"
    }
    # the sweep's own experiment, and the file that prepares it
    more = {"helping/__init__.py", "helping/words.py", "toy_experiment.py"}
    assert frozen == expected | more
    for name in expected:
        assert (folder / name).read_bytes() == (root / name).read_bytes()
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("odd", "keys", "where", "why"),
    [
        ("a:b", {}, "local", "':' separates the folders in PYTHONPATH, where jobs find their code"),
        (b"a\xff", {}, "local", f"{NO_UTF8} cannot be in the path of weights"),
        (b"a\xff", {"backend": "ray"}, "local", f"{NO_UTF8} cannot be in a message between Ray's"),
        ("a$b", {"backend": "ray", "ray": {"address": "nowhere:1"}}, "local",
         "'$' begins a variable, which Ray replaces"),
        ("a:b", {}, "slurm", "':' separates the folders in PYTHONPATH, where jobs find their code"),
        ("a%jb", {}, "slurm", "'%' begins a placeholder such as %j in the names of SLURM's logs"),
        ("a\\b", {}, "slurm", "'\\\\' changes how SLURM reads the names of logs"),
        ("a\nb", {}, "slurm", "'\\n' ends an option of sbatch"),
        (b"a\xff", {}, "slurm", f"{NO_UTF8} cannot be in the path of weights"),
    ],
)
def test_a_folder_that_jobs_would_not_find_is_refused_by_name(
    toy: ModuleType, tmp_path: Path, odd: str | bytes, keys: dict[str, Any], where: str, why: str,
) -> None:
    folder = tmp_path / os.fsdecode(odd)
    sweep = toy.make_sweep(folder, {}, **keys)
    with pytest.raises(UserError) as caught:
        launch(sweep, where)
    start = f"{shown(sweep.file)}: run.runs: {shown(sweep.folder)!r} cannot be used here: {why}"
    assert shown(str(caught.value)).startswith(start)
    assert str(caught.value).endswith("; name a folder without that")
    assert survey(sweep)[0].state == "missing"


@pytest.mark.parametrize(("odd", "where"), [("a:b", "local"), (b"a\xff", "slurm")])
def test_a_current_folder_that_jobs_would_not_find_is_refused_by_name(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str | bytes, where: str,
) -> None:
    sweep, here = toy.make_sweep(tmp_path, {}), tmp_path / os.fsdecode(odd)
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(UserError) as caught:
        launch(sweep, where)
    assert str(caught.value).startswith(f"the current folder: {shown(here)!r} cannot be used here")


def test_a_search_that_has_no_trial_yet_freezes_its_experiment_too(
    toy: ModuleType, tmp_path: Path, sweep: Sweep
) -> None:
    runs = str(tmp_path / "runs")
    search = toy.make_sweep(
        tmp_path, {"work.quality": {"uniform": [0.1, 0.9]}}, samples=4, backend="ray",
        algorithm="tpe", recipe={"run": {"runs": runs, "experiment": "helping.run"}},
    )
    assert not search.trials
    assert {"helping/__init__.py", "helping/words.py"} <= set(snapshots.current_code(search).files)


def test_the_same_code_is_the_same_folder_and_other_code_another(
    sweep: Sweep, tmp_path: Path
) -> None:
    before = snapshots.current_code(sweep)
    assert before.freeze() == snapshots.current_code(sweep).freeze() == before.folder
    edit(tmp_path)
    now = snapshots.current_code(sweep)
    assert now.folder != before.folder
    assert snapshots.differing(before.folder, now) == ["helping/words.py"]
    assert snapshots.differing(now.freeze(), now) == []
    folders = [path for path in before.folder.parent.iterdir() if path.is_dir()]
    assert sorted(folders) == sorted([before.folder, now.folder])


def test_an_experiment_that_is_one_file_or_nowhere_is_no_fault(
    toy: ModuleType, tmp_path: Path
) -> None:
    single = toy.make_sweep(tmp_path / "a", {})
    assert "toy_experiment.py" in snapshots.current_code(single).files
    nowhere = {"runs": str(tmp_path), "experiment": "nowhere.run", "prepare": "nowhere.make",
               "report": "nowhere.report"}
    absent = toy.make_sweep(tmp_path / "b", {}, recipe={"run": nowhere})
    packages = {name.partition("/")[0] for name in snapshots.current_code(absent).files}
    assert packages == {"harness", "svll", "launch"}


def test_what_editors_leave_beside_the_code_is_no_code(sweep: Sweep, tmp_path: Path) -> None:
    before = snapshots.current_code(sweep).folder
    package = tmp_path / "src" / "helping"
    (package / ".words.py.swp").write_bytes(b"x")
    (package / ".#words.py").symlink_to("nobody@nowhere.1")
    (package / "gone.py").symlink_to(tmp_path / "nowhere")
    assert snapshots.current_code(sweep).folder == before


def test_a_snapshot_that_somebody_changed_or_planted_is_refused(sweep: Sweep) -> None:
    code = snapshots.current_code(sweep)
    words = code.freeze() / "helping" / "words.py"
    words.write_text("WORD = 'planted'\n")
    with pytest.raises(UserError, match="is not the code that was frozen there"):
        code.freeze()
    words.write_text("WORD = 'old'\n")
    assert code.freeze() == code.folder


def test_code_edited_while_it_is_frozen_is_named_by_what_was_copied(
    sweep: Sweep, tmp_path: Path
) -> None:
    looked_at = snapshots.current_code(sweep)
    edit(tmp_path)
    assert looked_at.freeze() == snapshots.current_code(sweep).folder != looked_at.folder


def test_a_trial_that_waited_runs_what_was_submitted(
    sweep: Sweep, toy: ModuleType, tmp_path: Path
) -> None:
    launch(sweep, "local", jobs=1)
    toy.until(lambda: sweep.trials[0].run.status()["state"] == "running")
    edit(tmp_path)
    over(toy, sweep)
    folder = snapshots_of(sweep)[0]
    for trial in sweep.trials:
        assert trial.run.result() == {
            "mAP": 0.5, "word": "old", "from": str(folder / "helping" / "__init__.py")
        }
        assert trial.run.status()["code"] == str(folder)


def snapshots_of(sweep: Sweep) -> list[Path]:
    return [Path(record.options["code"]) for record in read_records(sweep.folder)]


def test_trials_with_different_code_are_reported(
    sweep: Sweep, toy: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    launch(sweep, "local", jobs=2)
    over(toy, sweep)
    signatures = [trial.signature for trial in sweep.trials]
    assert snapshots.differences(sweep, signatures, read_records(sweep.folder)) == []
    edit(tmp_path)
    before, now = snapshots_of(sweep)[0].name, snapshots.current_code(sweep).folder.name
    line = f"with code {before}, the working tree is {now}; different: helping/words.py"
    assert snapshots.differences(sweep, signatures, read_records(sweep.folder)) == [f"2 {line}"]
    assert snapshots.differences(sweep, [], read_records(sweep.folder)) == []
    [trial, _] = sweep.trials
    trial.run.result_file.unlink()
    trial.run.set_status("stopped", attempts=1)
    with caplog.at_level(logging.WARNING):
        launch(sweep, "local")
    assert f"trials that have begun continue with other code: 1 {line}" in caplog.text
    over(toy, sweep)
    assert [t.run.result()["word"] for t in sweep.trials] == ["new", "old"]


def test_a_worker_leaves_a_trial_of_other_code_to_a_worker_of_its_submission(
    sweep: Sweep, toy: ModuleType
) -> None:
    launch(sweep, "local", jobs=2)
    over(toy, sweep)
    [record] = read_records(sweep.folder)
    run = sweep.trials[0].run
    run.result_file.unlink()
    run.set_status("submitted", code=record.options["code"])
    assert list(worker._OpenTrials(record)) == [run]
    run.set_status("submitted", code=f"{record.options['code']}2")
    assert not worker._OpenTrials(record)


def test_frozen_code_and_the_record_that_names_it_outlast_a_crash_of_the_machine(
    sweep: Sweep, tmp_path: Path
) -> None:
    (root := sweep.folder.parent.resolve()).mkdir(exist_ok=True)
    disk = Disk(root)
    with disk.watch(lambda: None):
        code = snapshots.current_code(sweep).freeze()
        record = new_record(sweep.folder, "local", [], code=str(code))
        record.write()
        disk.image("nothing more", tmp_path / "left")
    written = [file for file in root.rglob("*") if file.is_file()]
    assert {record.file.resolve(), code / "helping" / "words.py"} <= set(written)
    for file in written:
        left = tmp_path / "left" / file.relative_to(root)
        assert left.read_bytes() == file.read_bytes(), file
