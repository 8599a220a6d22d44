"""The launcher as it is typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "sweeps" / "loss_weights.yaml"
SEARCH = ROOT / "sweeps" / "search_tpe.yaml"
HEAVY = ("torch", "ray", "deepspeed", "open_clip", "nvidia", "numba", "h5py", "scipy")


@pytest.fixture
def launch(tmp_path: Path):
    """Return a function that runs the command with a toy in place of the experiment."""

    def run(*words: str, **work: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [
                sys.executable,
                str(ROOT / "launch" / "slurm.py"),
                *words,
                f"run.runs={tmp_path}/runs",
                "run.experiment=toy_experiment.run",
            ],
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'toy'}",
                "TOY_WORK": json.dumps(work),
            },
            text=True,
            capture_output=True,
            timeout=120,
            cwd=tmp_path,
        )

    return run


def test_a_sweep_is_submitted_followed_ranked_and_then_done(launch, tmp_path: Path) -> None:
    sweep = ("--sweep", str(SWEEP), "--cluster", "local")
    first = launch(*sweep, "--follow", "--jobs", "2")
    assert first.returncode == 0, first.stderr
    assert "4 trials submitted on this machine" in first.stdout
    assert "selected on validation (validation.mAP, max)" in first.stdout
    assert "test Rank-1" in first.stdout
    assert f"files: {tmp_path}/runs/loss_weights" in first.stdout
    again = launch(*sweep)
    assert again.returncode == 0
    assert "nothing to submit, 4 trials: 4 complete" in again.stdout


def test_submission_returns_at_once_status_shows_it_and_cancel_ends_it(launch) -> None:
    recipe = ("--recipe", "synthetic_tiny", "--cluster", "local")
    started = launch(*recipe, epochs=99, epoch_s=3.0)
    assert started.returncode == 0, started.stderr
    shown = launch(*recipe, "--status")
    assert shown.returncode == 0
    assert "1 queued" in shown.stdout or "1 running" in shown.stdout
    assert "1 trial ended" in launch(*recipe, "--cancel").stdout
    assert "1 stopped" in launch(*recipe, "--status").stdout


def test_what_every_job_would_refuse_is_refused_before_one_is_submitted(
    launch, tmp_path: Path
) -> None:
    words = ("--recipe", "synthetic_tiny", "--cluster", "local", "seeds=[1,2]", "stage2.batch=64")
    told = launch(*words)
    assert told.returncode == 1
    assert told.stderr == (
        "error: seed=1: stage2.batch=64 asks for 16 identities at a time, the training part "
        "has 6; add stage2.batch=24\n"
    )
    assert not list(tmp_path.glob("runs/*/*/config.yaml"))


def test_the_exit_status_of_following_a_failed_trial_is_1_and_its_error_is_shown(launch) -> None:
    ended = launch("--recipe", "synthetic_tiny", "--cluster", "local", "--follow", fail="raise")
    assert ended.returncode == 1
    assert "failed: RuntimeError: the toy broke, as it was told to" in ended.stdout
    assert "log.txt" in ended.stdout
    again = launch("--recipe", "synthetic_tiny", "--cluster", "local", "--follow")
    assert again.returncode == 1
    assert "nothing to submit, 1 trial: 1 failed" in again.stdout
    assert "1 trial failed. Fix the cause, then add --retry-failed." in (
        again.stdout
    )
    mended = launch(
        "--recipe", "synthetic_tiny", "--cluster", "local", "--follow", "--retry-failed"
    )
    assert mended.returncode == 0, mended.stdout


def test_the_first_trials_are_tried_here_and_then_the_rest(launch, tmp_path: Path) -> None:
    sweep = ("--sweep", str(SWEEP), "--cluster", "local", "--follow")
    first = launch(*sweep, "--first", "1")
    assert first.returncode == 0, first.stderr
    assert "1 trial submitted on this machine" in first.stdout
    assert "1 trial: 1 complete" in first.stdout
    whole = json.loads((tmp_path / "runs" / "loss_weights" / "sweep.json").read_text())
    assert len(whole["trials"]) == 4
    assert "3 trials submitted on this machine" in launch(*sweep).stdout


def test_a_dry_run_shows_trials_and_the_sbatch_script_and_writes_nothing(
    launch, tmp_path: Path
) -> None:
    shown = launch(
        "--sweep",
        "loss_weights",
        "--cluster",
        "slurm",
        "--dry-run",
        "slurm.partition=gpu",
        "resources.gpus=2",
    )
    assert shown.returncode == 0, shown.stderr
    assert "4 trials: 4 missing" in shown.stdout
    assert "for no GPU" not in shown.stdout
    assert "vss_weight=0 lss_weight=0.8 seed=1" in shown.stdout
    for line in ("#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=2", "#SBATCH --array=0-3%4"):
        assert line in shown.stdout.splitlines()
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_search_shows_its_one_job(launch) -> None:
    file = ROOT / "sweeps" / "prompt_length.yaml"
    words = ("ray.nodes=3", "ray.trials_per_node=4", "resources.cpus=2")
    shown = launch("--sweep", str(file), "--cluster", "slurm", "--dry-run", *words)
    assert shown.returncode == 0, shown.stderr
    for line in ("#SBATCH --nodes=3", "#SBATCH --cpus-per-task=8", "#SBATCH --ntasks-per-node=1"):
        assert line in shown.stdout.splitlines()
    assert "--array" not in shown.stdout
    assert "each trial asks SLURM for no GPU and computes on the CPU; resources.gpus=1 asks" in (
        shown.stdout
    )


def test_a_dry_run_of_a_search_says_how_many_points_are_to_be_proposed(
    launch, tmp_path: Path
) -> None:
    shown = launch("--sweep", str(SEARCH), "--dry-run", "--cluster", "local", "--jobs", "2")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == (
        "0 to run on this machine, 16 points to be proposed, 2 at a time\n"
    )
    assert launch("--sweep", str(SEARCH), "--status").stdout == "search_tpe: no trial yet\n"
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_at_once_and_nothing_starts(launch, tmp_path: Path) -> None:
    words = ("stage2.lrr=1", "resources.time=4x", "metric=validation.map")
    told = launch("--sweep", str(SWEEP), *words)
    assert told.returncode == 1
    assert "stage2.lrr; did you mean stage2.lr?" in told.stderr
    assert "'4x' is not a time" in told.stderr
    assert "did you mean validation.mAP?" in told.stderr
    assert "Traceback" not in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either --sweep NAME (or FILE) or --recipe NAME"),
        (("--sweep", str(SWEEP), "--recipe", "synthetic"), "give either"),
        (("--sweep", str(SWEEP), "--status", "--cancel"), "choose one of --dry-run"),
        (("--sweep", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--sweep", "los_weights", "--status"), "no shipped sweep of this name; did you mean "
                                                 "loss_weights?"),
        (("--recipe", "synthetix"), "did you mean synthetic"),
        (("--sweep", str(SWEEP), "data.validation=0"), "validation.mAP needs a validation part"),
        (("--sweep", str(SWEEP), "--ray-address", "here:1"), "ray.address: set backend: ray"),
        (("--sweep", str(SEARCH), "--first", "2"), "say how many by samples=N"),
        (("--sweep", str(SEARCH), "data.validation=0"), "validation.mAP needs a validation part"),
        (("--sweep", str(SEARCH), "scheduler.asha.early=margin"),
         "no run reports margin; there are prompts.mAP, prompts.margin"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(launch, words: tuple[str, ...], message: str) -> None:
    told = launch(*words)
    assert told.returncode == 1
    assert message in told.stderr


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


def test_the_doctor_looks_around_here_where_there_is_no_cluster(
    launch, tmp_path: Path, gpus
) -> None:
    gpus(0)
    seen = launch("--doctor", "--cluster", "local")
    assert seen.returncode == 0, seen.stdout + seen.stderr
    [cells] = [line for line in seen.stdout.splitlines() if "this machine" in line]
    assert "2 on " in cells
    assert "8 found" in cells
    assert "gloo, 2 ranks, 8 MB in" in cells
    assert "create, link, replace, lock" in cells
    assert not any((tmp_path / "runs" / ".doctor").iterdir())


def test_the_doctor_names_what_is_wrong_what_to_change_and_what_one_gpu_cannot_show(
    launch, tmp_path: Path, gpus
) -> None:
    gpus(1)
    seen = launch("--doctor", "--cluster", "local", "resources.cpus=4096")
    assert seen.returncode == 1
    assert "cores: " in seen.stdout
    cores = sorted(os.sched_getaffinity(0))
    assert f"cores: {','.join(map(str, cores))}; 4096 asked" in seen.stdout
    assert "see slurm.srun_args and resources.cpus" in seen.stdout
    [cells] = [line for line in seen.stdout.splitlines() if "this machine │" in line]
    assert "1 on " in cells
    assert "not tested: one rank" in cells
    assert "gpus: 0; 1 asked" in seen.stdout  # the driver names one that torch does not find
    assert f"files: {tmp_path}/runs/.doctor" in seen.stdout
