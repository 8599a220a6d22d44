"""One run from the command line: what it would cost, and what it needs."""

import os
import shlex
from pathlib import Path

import pytest
import yaml

import launch.train
from harness.base.errors import UserError
from harness.base.files import write_json
from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs.run import Run
from harness.runs.stopping import Stopped
from harness.training import ranks
from svll.config import RECIPES, Config
from tests.commands import called, started
from tests.svll.data.trees import picture


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are given in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_dry_run_shows_configuration_groups_and_costs_and_makes_nothing(tmp_path: Path) -> None:
    words = ("--recipe", "synthetic_tiny", "--dry-run", "stage1.lss_weight=0.25")
    status, out, err = called("train", *words)
    assert status == 0
    assert [line.split(" ", 3)[3] for line in err.splitlines()] == [
        "measuring a step of each stage: some seconds, minutes for large models"
    ]
    config = yaml.safe_load(out.partition("training part")[0])
    assert config["stage1"]["lss_weight"] == 0.25
    assert config["stage2"]["batch"] == 16
    assert "(to be drawn)" in out
    for word in ("prompts", "weights", "biases", "hours", "before, s", "before: encoding",
                 "memory, GB", "one rank"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_how_a_file_of_another_project_is_converted(tmp_path: Path) -> None:
    (tmp_path / "theirs.yml").write_text(
        "MODEL: {NAME: ViT-B-16}\nSOLVER:\n  STAGE1: {MAX_EPOCHS: 7}\n"
        "  STAGE2: {LOG_PERIOD: 50, OPTIMIZER_NAME: SGD}\n")
    status, out, err = called("train", "--recipe", "theirs.yml", "--dry-run", "data.root=nowhere")
    assert (status, "no Market-1501 was found" in err) == (1, True)  # after the conversion
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "theirs.yml is a configuration of CLIP-ReID. Converted:"
    assert "3 SOLVER.STAGE1.MAX_EPOCHS: 7 stage1.epochs=7" in lines
    assert "default MODEL.SIE_CAMERA: false model.sie=none" in lines
    assert "4 SOLVER.STAGE2.LOG_PERIOD: 50 lines of the metric log: run.log_every" in lines
    loud = ("theirs.yml, line 4: SOLVER.STAGE2.OPTIMIZER_NAME: SGD has no counterpart: Adam with "
            "L2 weight decay trains here")
    assert loud in lines
    assert f"WARNING the result will differ from CLIP-ReID: {loud}" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config_file", "x.yml"], "--config_file is not an option of this command; use --recipe "
                                     "FILE"),
        (["--resume"], "use the same command again, which resumes from the last checkpoint"),
        (["--eval-only"], "use python launch/evaluate.py --weights FILE --recipe NAME"),
        (["--multirun"], "use python launch/slurm.py --sweep-name NAME"),
        (["--recipe", "market1501", "MODEL.DEVICE_ID", "('0')"],
         "override 1: MODEL.DEVICE_ID ('0'): a key of CLIP-ReID without counterpart: "
         "CUDA_VISIBLE_DEVICES=0 chooses the GPU"),
        (["--recipe", "market1501", "seed=1", "MODEL.STRIDE_SIZE", "[12, 12]"],
         "override 2: MODEL.STRIDE_SIZE [12, 12]: a key of CLIP-ReID; write model.stride=12"),
        (["--recipe", "market1501", "stage2.lr", "1e-5"], "override 1: stage2.lr 1e-5: write "
                                                          "stage2.lr=1e-5"),
        (["--recipe", "market1501", "SOLVER.MAX_EPOCH=60"], "override 1: SOLVER.MAX_EPOCH: a key "
                                                            "of fast-reid; write stage2.epochs=60"),
        (["--recipe", "market1501", "train.max_epoch=60"], "a key of torchreid; write "
                                                           "stage2.epochs=60"),
        (["--recipe", "market1501", "seed=1,2"], "--sweep-name NAME --recipe RECIPE seed=1,2"),
    ],
)
def test_words_of_other_programs_are_answered_with_ours(words: list[str], message: str) -> None:
    status, out, err = called("train", *words)
    assert (status != 0, out) == (True, "")
    assert message in err
    assert "Traceback" not in err


def test_a_benchmark_without_its_folder_reports_what_to_give(tmp_path: Path) -> None:
    status, out, err = started("train", "--recipe", "market1501")
    assert (status, out) == (1, "")
    assert err == "error: data.root: the folder of market1501 is needed: data.root=DIR\n"
    assert list(tmp_path.iterdir()) == []


def test_gpus_that_were_given_and_cannot_be_used_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(launch.train, "preflight", lambda *_: pytest.fail("too late"))
    for words in ([], ["--dry-run"]):
        status, out, err = called("train", "--recipe", "synthetic_tiny", *words)
        assert (status, out) == (1, "")
        cause = err.splitlines()[-1]  # after the line that torch is loaded
        assert cause.startswith("error: CUDA_VISIBLE_DEVICES=0, but torch cannot use a GPU: ")
        assert err.endswith("; CUDA_VISIBLE_DEVICES= (in a sweep resources.gpus=0) computes on "
                            "the CPU\n")
    assert not list(tmp_path.glob("**/config.yaml"))


def test_a_folder_without_the_benchmark_says_where_it_looked(tmp_path: Path) -> None:
    status, _, err = called("train", "--recipe", "msmt17", f"data.root={tmp_path}")
    assert status == 1
    assert "no MSMT17 was found. Looked in:" in err
    assert "Traceback" not in err


def test_an_impossible_runs_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for place in ("/proc/nope", "notes.txt"):
        status, out, err = called("train", "--recipe", "synthetic", f"run.runs={place}")
        assert (status, out) == (1, "")
        assert err.startswith(f"error: {tmp_path / place}/synthetic/")
        assert err.endswith("or name another place (run.runs=FOLDER)\n")
        assert err.count("\n") == 1


def test_folders_that_weights_cannot_be_in_are_refused_by_name(tmp_path: Path) -> None:
    odd = os.fsdecode(b"a\xff")
    (tmp_path / odd).mkdir()
    (tmp_path / odd / "w.safetensors").touch()
    why = ("cannot be used here: bytes that are not UTF-8 cannot be in the path of weights "
           "(safetensors); name a folder without that\n")
    for word, place in ((f"run.runs={odd}", f"run.runs: {str(tmp_path)!r}"[:-1]),
                        (f"model.weights={odd}/w.safetensors", "model.weights: 'a")):
        status, _, err = called("train", "--recipe", "synthetic_tiny", word)
        assert status == 1
        assert err.splitlines()[-1].startswith(f"error: {place}")
        assert err.endswith(why)
    assert not list(tmp_path.glob("**/config.yaml"))


def test_the_option_that_deepspeed_adds_is_taken_and_not_shown() -> None:
    status, _, err = called("train", "--local_rank=1", "--recipe", "market1501")
    assert (status, "the folder of market1501" in err) == (1, True)
    status, out, _ = called("train", "--help")
    assert (status, "local_rank" in out) == (0, False)


@pytest.mark.slow
def test_a_profile_shows_both_stages_and_trains_nothing(tmp_path: Path) -> None:
    status, out, err = called("train", "--recipe", "synthetic_tiny", "--profile")
    assert (status, "Traceback" in err) == (0, False)
    for stage, what in (("stage1", "steps"), ("stage2", "1 step")):
        [title] = [line for line in out.splitlines() if line.strip().startswith(f"{stage}: ")]
        assert what in title
        [trace] = tmp_path.glob(f"runs/*/*/profile/{stage}.json")
        assert str(trace) in out
    assert out.count("matrix products") == 2
    assert out.count("waiting for data") == 2
    assert not list(tmp_path.glob("runs/*/*/checkpoints"))


def test_the_cause_of_a_failure_is_reported_once_with_where_the_log_is(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("no weights")
    status, out, err = called("train", "--recipe", "synthetic_tiny", "model.weights=w.pt")
    assert (status, out) == (1, "")
    cause = "model.weights: w.pt does not fit svll-tiny"
    assert err.count(cause) == 1
    [log] = (tmp_path / "runs" / "synthetic_tiny").glob("*/log.txt")
    assert err.endswith(f"\nfailed; log: {log}\n")
    assert cause in log.read_text()


def test_the_first_of_several_ranks_reads_the_datasets_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = build(Config, read_recipe(RECIPES / "synthetic_tiny.yaml", Config))
    read: list[int] = []
    monkeypatch.setattr(launch.train, "preflight", lambda config, world: read.append(world))
    monkeypatch.setattr(ranks, "init_ranks", lambda timeout: None)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "any_rank", lambda flag: flag)
    sent: list[str | None] = [None]
    monkeypatch.setattr(
        ranks.dist, "broadcast_object_list", lambda box, src: box.__setitem__(0, sent[0])
    )
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        launch.train._check(config, 2)
        assert read == [2]
    sent[0] = "UserError: stage2.batch=64 asks for too many"
    with pytest.raises(UserError, match=r"rank 0 failed: UserError: stage2\.batch=64"):
        launch.train._check(config, 2)
    monkeypatch.setattr(ranks, "any_rank", lambda flag: True)
    with pytest.raises(Stopped, match="while the ranks joined"):
        launch.train._check(config, 2)


def test_what_a_run_would_refuse_is_refused_without_a_folder_and_by_a_dry_run_too(
    tmp_path: Path
) -> None:
    words = ("--recipe", "synthetic_tiny", "stage2.batch=64")
    for status, out, err in (
        called("train", *words), called("train", *words, "--dry-run"),
        called("train", *words, "--profile"),
    ):
        assert (status, out) == (1, "")
        assert err == (
            "error: stage2.batch=64 asks for 16 identities at a time, the training part has 6; add "
            "stage2.batch=24\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_own_images_are_trained_by_one_command_which_shows_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(run: Run) -> str:
        write_json(run.result_file, {"mAP": 0.5, "cmc": {"1": 0.25}})
        return "complete"

    monkeypatch.setattr("harness.runs.execute.execute", execute)
    for number in range(24):
        picture(tmp_path / "my cats" / f"{number // 4:04}_c{number % 4}s1_{number}.jpg")
    status, out, _ = called("train", "--data", "my cats", "--extends", "synthetic")
    assert status == 0
    [run] = (tmp_path / "runs" / "my cats").glob("*/result.json")
    lines = out.splitlines()
    assert lines[0] == f"{tmp_path / 'my cats'}: 24 images of 6 identities, 4 cameras"
    commands = [shlex.split(line) for line in lines if "launch/" in line and "python" in line]
    assert [words[:2] for words in commands] == [
        ["python", f"launch/{name}.py"] for name in ("train", "slurm", "search", "export")
    ]
    again, _, search, export = commands
    assert search[2:4] == export[2:4] == ["--weights", str(run.parent)]
    assert (Path(search[5]).parent.name, search[7]) == ("my cats", "my cats")
    before = sorted(tmp_path.glob("runs/*/*/config.yaml"))
    assert called("train", *again[2:]).status == 0  # the same run by its recipe
    assert sorted(tmp_path.glob("runs/*/*/config.yaml")) == before


@pytest.mark.parametrize(
    ("named", "name"),
    [((), "my_cats"), (("run.name=2026",), "2026"), (("run.name=_b",), "own_b")],
)
def test_the_printed_job_of_own_images_is_accepted_and_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...], name: str
) -> None:
    monkeypatch.setattr("harness.runs.execute.execute", lambda run: "stopped")
    for number in range(24):
        picture(tmp_path / "my cats" / f"{number // 4:04}_c{number % 4}s1_{number}.jpg")
    out = called("train", "--data", "my cats", "--extends", "synthetic", "seed=3", *named).out
    [job] = [shlex.split(line) for line in out.splitlines() if "launch/slurm.py" in line]
    shown = called("slurm", *job[2:], "--dry-run", "--cluster", "local")
    assert (shown.status, shown.err) == (0, "")
    [run] = tmp_path.glob("runs/*/*/config.yaml")
    assert f"{name}: 1 trial" in shown.out
    listed = called("slurm", *job[2:], "--status", "--json", "--cluster", "local")
    assert f"{name}/{run.parent.name}" in listed.out


def test_options_that_do_not_go_with_own_images_are_refused() -> None:
    for words, said in (
        (["--data", "x", "--recipe", "synthetic"], "write --extends synthetic"),
        (["--extends", "synthetic"], "--extends without --data has no effect; add --data"),
        ([], "give --recipe NAME (or FILE), or --data DIR for your own images"),
    ):
        status, _, err = called("train", *words)
        assert (status != 0, said in err) == (True, True)


def test_a_world_size_that_another_program_left_in_the_shell_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, out, err = called("train", "--recipe", "synthetic_tiny", "seed=99")
    assert (status, out) == (1, "")
    assert err == (
        "error: WORLD_SIZE=2 is set and RANK is not; unset both to run in one process, or start "
        "the ranks with torchrun --nproc-per-node=N\n"
    )
    assert not (tmp_path / "runs").exists()
