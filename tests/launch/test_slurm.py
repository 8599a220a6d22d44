"""The launcher as it is typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cluster.pages import write_summary
from harness.sweeps.reading import Sweep
from tests.commands import ROOT, Command, Ended, as_nobody, called, open_folder, started

SWEEP = ROOT / "sweeps" / "loss_weights.yaml"
SEARCH = ROOT / "sweeps" / "search_tpe.yaml"
HEAVY = ("torch", "ray", "deepspeed", "open_clip", "nvidia", "numba", "h5py", "scipy")


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that gives the command, with a toy in place of the experiment."""
    toys = ROOT / "tests" / "toy"
    monkeypatch.syspath_prepend(toys)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{toys}")
    monkeypatch.chdir(tmp_path)

    def run(*words: str, by: Command = called, **work: object) -> Ended:
        monkeypatch.setenv("TOY_WORK", json.dumps(work))
        place = f"run.runs={tmp_path}/runs"
        return by("slurm", place, *words, "run.experiment=toy_experiment.run")

    return run


@pytest.mark.slow
def test_a_sweep_is_submitted_followed_ranked_and_then_done(
    launch: Command, tmp_path: Path
) -> None:
    sweep = ("--sweep", str(SWEEP), "--cluster", "local")
    first = launch(*sweep, "--follow", "--jobs", "2", by=started)
    assert first.status == 0, first.err
    assert "4 trials submitted on this machine" in first.out
    assert "selected on validation (validation.mAP, max)" in first.out
    assert "test Rank-1" in first.out
    assert f"files: {tmp_path}/runs/loss_weights" in first.out
    again = launch(*sweep)
    assert again.status == 0
    assert "nothing to submit, 4 trials: 4 complete" in again.out


@pytest.mark.slow
def test_submission_returns_at_once_status_shows_it_and_cancel_ends_it(launch: Command) -> None:
    recipe = ("--recipe", "synthetic_tiny", "--cluster", "local")
    begun = launch(*recipe, epochs=99, epoch_s=3.0)
    assert begun.status == 0, begun.err
    shown = launch(*recipe, "--status")
    assert shown.status == 0
    assert "1 queued" in shown.out or "1 running" in shown.out
    assert "1 trial ended" in launch(*recipe, "--cancel").out
    assert "1 stopped" in launch(*recipe, "--status").out


def test_what_every_job_would_refuse_is_refused_before_one_is_submitted(
    launch: Command, tmp_path: Path
) -> None:
    words = ("--recipe", "synthetic_tiny", "--cluster", "local", "seeds=[1,2]", "stage2.batch=64")
    ended = launch(*words)
    assert ended.status == 1
    assert ended.err == (
        "error: seed=1: stage2.batch=64 asks for 16 identities at a time, the training part "
        "has 6; add stage2.batch=24\n"
    )
    assert not list(tmp_path.glob("runs/*/*/config.yaml"))


@pytest.mark.slow
def test_what_another_user_may_not_see_is_told_with_its_owner(
    launch: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ("--recipe", "synthetic_tiny", "--cluster", "local")
    with open_folder() as folder:
        monkeypatch.chdir(folder)
        jobs = folder / "runs" / "synthetic_tiny" / "jobs"
        jobs.mkdir(parents=True, mode=0o700)
        runs = f"run.runs={folder}/runs"
        for words in (("--dry-run",), ("--status",), ("--cancel",)):
            launch(*recipe, *words, runs)  # nobody may not read the modules of this Python
        told = f"{folder}/runs/synthetic_tiny: this sweep belongs to root (uid 0), who alone"
        with as_nobody():
            shown = launch(*recipe, "--status", runs)
            assert (shown.status, shown.err) == (0, "")
            assert "1 trial: 1 missing" in shown.out
            assert f"warning: {told}" in shown.out
            for words in ((), ("--cancel",)):
                refused = launch(*recipe, *words, runs)
                assert refused.status == 1
                assert refused.err.startswith(f"error: {told}"), refused.err
        jobs.parent.chmod(0o700)
        with as_nobody():
            for words in ((), ("--cancel",), ("--status",), ("--dry-run",)):
                refused = launch(*recipe, *words, runs)
                assert refused.status == 1
                assert "belongs to root (uid 0)" in refused.err
                assert "Traceback" not in refused.err


def test_the_exit_status_of_following_a_failed_trial_is_1_and_its_error_is_shown(
    launch: Command,
) -> None:
    ended = launch("--recipe", "synthetic_tiny", "--cluster", "local", "--follow", fail="raise")
    assert ended.status == 1
    assert "failed: RuntimeError: the toy broke, as it was told to" in ended.out
    assert "log.txt" in ended.out
    again = launch("--recipe", "synthetic_tiny", "--cluster", "local", "--follow")
    assert again.status == 1
    assert "nothing to submit, 1 trial: 1 failed" in again.out
    assert "1 trial failed. Fix the cause, then add --retry-failed." in again.out
    mended = launch(
        "--recipe", "synthetic_tiny", "--cluster", "local", "--follow", "--retry-failed"
    )
    assert mended.status == 0, mended.out


@pytest.mark.slow
def test_the_first_trials_are_tried_here_and_then_the_rest(launch: Command, tmp_path: Path) -> None:
    sweep = ("--sweep", str(SWEEP), "--cluster", "local", "--follow")
    first = launch(*sweep, "--first", "1")
    assert first.status == 0, first.err
    assert "1 trial submitted on this machine" in first.out
    assert "1 trial: 1 complete" in first.out
    whole = json.loads((tmp_path / "runs" / "loss_weights" / "sweep.json").read_text())
    assert len(whole["trials"]) == 4
    assert "3 trials submitted on this machine" in launch(*sweep).out


def test_a_dry_run_shows_trials_and_the_sbatch_script_and_writes_nothing(
    launch: Command, tmp_path: Path
) -> None:
    words = ("--dry-run", "slurm.partition=gpu", "resources.gpus=2")
    shown = launch("--sweep", "loss_weights", "--cluster", "slurm", *words)
    assert shown.status == 0, shown.err
    assert "4 trials: 4 missing" in shown.out
    assert "for no GPU" not in shown.out
    assert "3  vss_weight=0 lss_weight=0.8    missing" in shown.out
    for line in ("#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=2", "#SBATCH --array=0-3%4"):
        assert line in shown.out.splitlines()
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_typed_words_is_shown_and_extended_by_its_name(
    launch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(sweep: Sweep, place: str, **_: object) -> list[object]:
        write_summary(sweep)
        for trial in sweep.trials:
            trial.run.create("seed: 1")
            trial.run.result_file.write_text("{}")
            trial.run.set_status("complete")
        return []

    monkeypatch.setattr("launch.slurm.launch", finish)
    name = ("--sweep-name", "rates", "--cluster", "local")
    words = ("--recipe", "synthetic_tiny", "stage2.lr=1e-4,1e-3", "seed=1")
    first = launch(*name, *words)
    assert (first.status, first.err) == (0, "")
    record = json.loads((tmp_path / "runs" / "rates" / "sweep.json").read_text())
    assert [trial["point"] for trial in record["trials"]] == [
        {"stage2.lr": 1e-4}, {"stage2.lr": 1e-3}]
    assert "2 trials: 2 complete" in launch(*name, *words, "--status").out
    assert "2 trials: 2 complete" in launch(*name, "--status").out
    more = launch(*name, "stage2.lr=1e-4,1e-3,3e-4", "--dry-run")  # points are added
    assert "3 trials: 1 missing, 2 complete" in more.out
    assert "1 to run on this machine" in more.out


def test_a_dry_run_of_a_search_shows_its_one_job(launch: Command) -> None:
    file = ROOT / "sweeps" / "prompt_length.yaml"
    words = ("ray.nodes=3", "ray.trials_per_node=4", "resources.cpus=2")
    shown = launch("--sweep", str(file), "--cluster", "slurm", "--dry-run", *words)
    assert shown.status == 0, shown.err
    for line in ("#SBATCH --nodes=3", "#SBATCH --cpus-per-task=8", "#SBATCH --ntasks-per-node=1"):
        assert line in shown.out.splitlines()
    assert "--array" not in shown.out
    assert "trials run on the CPU, because the sweep requests no GPU; resources.gpus=1" in (
        shown.out
    )


def test_a_dry_run_of_a_search_shows_how_many_points_will_be_proposed(
    launch: Command, tmp_path: Path
) -> None:
    shown = launch("--sweep", str(SEARCH), "--dry-run", "--cluster", "local", "--jobs", "2")
    assert shown.status == 0, shown.err
    assert shown.out == "0 to run on this machine, 16 points to be proposed\n2 at a time\n"
    assert launch("--sweep", str(SEARCH), "--status").out == "search_tpe: no trial yet\n"
    assert not list(tmp_path.iterdir())


def test_mistakes_are_reported_together_and_nothing_starts(launch: Command, tmp_path: Path) -> None:
    words = ("stage2.lrr=1", "resources.time=4x", "metric=validation.map")
    ended = launch("--sweep", str(SWEEP), *words)
    assert ended.status == 1
    assert "stage2.lrr; did you mean stage2.lr?" in ended.err
    assert "'4x' is not a time" in ended.err
    assert "did you mean validation.mAP?" in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --sweep NAME (or FILE) or --recipe NAME"),
        (("--sweep", str(SWEEP), "--recipe", "synthetic"), "give either"),
        (("--sweep", str(SWEEP), "--status", "--cancel"), "choose one of --dry-run"),
        (("--sweep-name", "mine", "--sweep", str(SWEEP)), "write name=NAME"),
    ],
)
def test_missing_options_and_such_as_do_not_go_together_are_wrong_usage(
    launch: Command, words: tuple[str, ...], message: str
) -> None:
    ended = launch(*words)
    assert ended.status == 2
    assert message in ended.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sweep", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--sweep", "los_weights", "--status"), "no shipped sweep of this name; did you mean "
                                                 "loss_weights?"),
        (("--recipe", "synthetix"), "did you mean synthetic"),
        (("--recipe", "synthetic", "seed=1,2"), "launch/slurm.py --sweep-name NAME --recipe RECIPE "
                                                "seed=1,2"),
        (("--sweep-name", "none", "--status"), "no such sweep in "),
        (("--sweep-name", "a/b"), "'a/b' must be a plain folder name"),
        (("--sweep-name", "mine", "--recipe", "synthetic", "data.validation=0", "stage2.lr=1,2"),
         "validation.mAP needs a validation part"),
        (("--sweep", str(SWEEP), "data.validation=0"), "validation.mAP needs a validation part"),
        (("--sweep", str(SWEEP), "--ray-address", "here:1"), "ray.address needs backend: ray"),
        (("--sweep", str(SEARCH), "--first", "2"), "set their number with samples=N"),
        (("--sweep", str(SEARCH), "data.validation=0"), "validation.mAP needs a validation part"),
        (("--sweep", str(SEARCH), "scheduler.asha.early=margin"),
         "no run reports margin; choose one of prompts.mAP, prompts.margin"),
    ],
)
def test_a_wrong_command_is_refused_with_the_cause(
    launch: Command, words: tuple[str, ...], message: str
) -> None:
    ended = launch(*words)
    assert ended.status == 1
    assert message in ended.err


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--sweep", str(SWEEP), "--status"),
        ("--sweep", str(SWEEP), "--dry-run", "--cluster", "slurm"),
    ],
)
def test_looking_imports_nothing_heavy(words: tuple[str, ...], tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['launch/slurm.py', *{list(words)!r}, 'run.runs={tmp_path}/runs']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'launch' / 'slurm.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('heavy:', sorted({set(HEAVY)!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stdout + done.stderr


@pytest.mark.slow
def test_the_doctor_looks_around_here_where_there_is_no_cluster(
    launch: Command, tmp_path: Path, gpus
) -> None:
    gpus(0)
    seen = launch("--doctor", "--cluster", "local")
    assert seen.status == 0, seen.out + seen.err
    [cells] = [line for line in seen.out.splitlines() if "this machine" in line]
    assert "2 on " in cells
    assert "8 found" in cells
    assert "gloo, 2 ranks, 8 MB in" in cells
    assert "create, link, replace, lock" in cells
    assert not any((tmp_path / "runs" / ".doctor").iterdir())


@pytest.mark.slow
def test_the_doctor_names_what_is_wrong_what_to_change_and_what_it_did_not_try(
    launch: Command, tmp_path: Path, gpus
) -> None:
    gpus(1)
    seen = launch("--doctor", "--cluster", "local", "resources.cpus=4096")
    assert seen.status == 1
    assert "cores: " in seen.out
    cores = sorted(os.sched_getaffinity(0))
    assert f"cores: {','.join(map(str, cores))}; 4096 asked" in seen.out
    assert "see slurm.srun_args and resources.cpus" in seen.out
    [cells] = [line for line in seen.out.splitlines() if "this machine │" in line]
    assert "1 on " in cells
    assert "not tried: see gpus" in cells
    assert "gpus: CUDA_VISIBLE_DEVICES=GPU-aaaaaaaa, but torch cannot use a GPU: " in seen.out
    assert f"files: {tmp_path}/runs/.doctor" in seen.out


def test_status_names_a_damaged_file_and_shows_all_other_trials(
    launch: Command, tmp_path: Path
) -> None:
    recipe = ("--recipe", "synthetic_tiny", "seeds=[1,2]", "--cluster", "local")
    before = launch(*recipe, "--status").out
    first, second = dict.fromkeys(re.findall(r"\b[0-9a-f]{12}\b", before))
    file = tmp_path / "runs" / "synthetic_tiny" / first / "status.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"state": ')
    shown = launch(*recipe, "--status")
    assert (shown.status, shown.err) == (1, "")
    assert "2 trials: 1 missing, 1 unreadable" in shown.out
    assert f"unreadable: {file}: cannot be read" in shown.out
    assert second in shown.out
    assert f"{file}: cannot be read" in launch(*recipe).err


def test_status_counts_first_and_shows_all_trials_only_if_asked_for(launch: Command) -> None:
    words = ("--recipe", "synthetic_tiny", f"seeds={list(range(60))}", "--status")
    first, _, *rows, last = launch(*words).out.splitlines()
    assert first == "synthetic_tiny: 60 trials: 60 missing"
    assert (len(rows), last) == (50, "and 10 more: 10 missing")
    _, _, *rows = launch(*words, "--all").out.splitlines()
    assert [row.split()[1] for row in rows] == [f"seed={n}" for n in range(60)]
    assert "--all without --status, --dry-run or --follow has no effect" in launch(
        "--recipe", "synthetic_tiny", "--cancel", "--all"
    ).err


def test_the_status_of_a_sweep_is_told_as_json_too(launch: Command, tmp_path: Path) -> None:
    recipe = ("--recipe", "synthetic_tiny", "seeds=[1,2]")
    shown = launch(*recipe, "--status", "--json")
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    assert (found["name"], found["counts"], found["faults"]) == (
        "synthetic_tiny", {"missing": 2}, [])
    assert [(one["seed"], one["state"]) for one in found["trials"]] == [
        (1, "missing"), (2, "missing")]
    refused = launch(*recipe, "--json")
    assert refused.status == 2
    assert "--json without --status has no effect" in refused.err
    missing = launch("--status")
    assert f"{tmp_path}/runs: no such folder" in missing.err
