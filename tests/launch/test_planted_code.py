"""Nothing that lies in a run folder is ever executed: not by a resume, not by an evaluation."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from harness.config.values import to_yaml
from harness.runs.run import Run
from harness.runs.stopping import Stopped
from harness.training import loop
from svll.config import RECIPES, Config
from svll.experiment import run as experiment
from tests.commands import ROOT, called

NAMES = (
    # what DeepSpeed, torch, Lightning and others would look for, and what Python would import
    "checkpoints/latest", "checkpoints/global_step1/mp_rank_00_model_states.pt",
    "checkpoints/last.ckpt", "model.pt", "pytorch_model.bin", "optimizer.pt", "training_args.bin",
    "features.pkl", "result.pkl", "params.pkl", "config.pkl",
)
CODE = ("sitecustomize.py", "conftest.py", "torch.py", "numpy.py", "yaml.py", "harness.py")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


def as_pickle(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def as_archive(canary: Path) -> bytes:
    """The form that torch.save writes."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("archive/data.pkl", as_pickle(canary))
        archive.writestr("archive/version", "3\\n")
    return whole.getvalue()


def command(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    program, *more = words
    # this process is a rank of its own already
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "RANK", "WORLD"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / program), *more], text=True, capture_output=True,
        cwd=cwd, env=alone, timeout=180,
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped in stage 2."""
    folder = tmp_path_factory.mktemp("begun")
    words = ["run.tensorboard=false", f"run.runs={folder / 'runs'}", "run.keep_checkpoints=true"]
    config = build(
        Config,
        [*read_recipe(RECIPES / "synthetic_tiny.yaml", Config), *parse_overrides(words)],
    )
    run = Run(folder / "runs" / "synthetic_tiny" / signature(config))
    run.create(to_yaml(config))
    asked = iter([False] * 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: next(asked, True))
        with pytest.raises(Stopped):
            experiment(run)
    assert any(path.name.startswith("stage2") for path in run.checkpoints.iterdir())
    return run


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder.parents[1], folder / "runs")
    return Run(folder / "runs" / run.folder.parent.name / run.folder.name)


def train(run: Run, folder: Path) -> "subprocess.CompletedProcess[str]":
    return command(
        "train.py", "--recipe", "synthetic_tiny", f"run.runs={folder / 'runs'}",
        "run.tensorboard=false", "run.keep_checkpoints=true", cwd=run.folder,
    )


def test_the_payload_is_one_that_works(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    pickle.loads(as_pickle(canary))
    assert canary.exists()


def test_what_is_planted_beside_a_runs_files_is_left_alone(
    begun: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, canary = copied(begun, tmp_path), tmp_path / "executed"
    for name in NAMES:
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_archive(canary) if path.suffix == ".pt" else as_pickle(canary))
    for name in CODE:
        (run.folder / name).write_text(f"open({str(canary)!r}, 'w').close()")
    done = train(run, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumes at epoch" in run.log_file.read_text()
    words = ("--recipe", "synthetic_tiny", f"run.runs={tmp_path / 'runs'}", "--status")
    told = command("slurm.py", *words, cwd=run.folder)
    assert told.returncode == 0, told.stderr
    assert "1 complete" in told.stdout
    monkeypatch.chdir(run.folder)
    assert called("evaluate", run.folder).status == 0
    assert not canary.exists()
    for form in (as_pickle, as_archive):
        run.features_file.write_bytes(form(canary))
        refused = called("evaluate", run.folder)
        assert refused.status == 1
        assert f"{run.features_file}: " in refused.err
        assert not canary.exists()


@pytest.mark.parametrize("form", [as_pickle, as_archive])
@pytest.mark.parametrize(
    "name", ["weights.safetensors", "moments.safetensors", "rng.safetensors", "state.json"]
)
def test_a_pickle_in_place_of_a_checkpoints_file_is_refused(
    begun: Run, tmp_path: Path, name: str, form
) -> None:
    run, canary = copied(begun, tmp_path), tmp_path / "executed"
    for path in run.checkpoints.glob(f"*/{name}"):
        path.write_bytes(form(canary))
    with pytest.raises(Exception, match=r"cannot be read|does not match its checksum"):
        experiment(run)
    assert not canary.exists()


@pytest.mark.parametrize("form", [as_pickle, as_archive])
@pytest.mark.parametrize("name", ["prompts.safetensors", "model.safetensors"])
def test_a_pickle_in_place_of_a_result_is_refused(
    begun: Run, tmp_path: Path, name: str, form
) -> None:
    run, canary = copied(begun, tmp_path), tmp_path / "executed"
    (run.folder / name).write_bytes(form(canary))
    with pytest.raises(Exception, match="cannot be used") as caught:
        experiment(run)
    assert name in str(caught.value)
    assert not canary.exists()
