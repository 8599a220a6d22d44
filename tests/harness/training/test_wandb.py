"""What W&B gets is what the metric log has, and whatever becomes of W&B, training goes on.

Every part runs in a process of its own, as W&B reads its environment once per process.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.runs.run import Run
from harness.training.wandb import check_installed, sent_steps
from tests.wandb_files import records, rows, summary

ROOT = Path(__file__).parents[3]
SCALARS = {"stage1/loss": 0.5, "prompts/mAP": 0.25}
SCORES = {"result/accuracy": 0.75}
PICTURE = "np.full((2, 3, 3), 7, np.uint8)"


def run_script(folder: Path, lines: str, **environment: str) -> str:
    """Run lines with a writer that is about to be opened; returns what came to stderr."""
    script = f"""
import json, logging, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
from harness.base.files import write_json
from harness.runs.run import Run
from harness.training.about import About
from harness.training.wandb import WandbWriter
logging.basicConfig(format="%(message)s")
run = Run(Path({str(folder)!r}))
about = About({{"stage1": {{"lr": 0.1}}}}, "lr=0.1 seed=2", ("a sweep", "tiny"))
writer = WandbWriter(run, "persons", about)
{lines}
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    home = {"HOME": str(folder.parent), "NETRC": os.devnull}  # of nobody who is logged in
    done = subprocess.run(
        [sys.executable, "-c", script], env=kept | home | environment, capture_output=True,
        text=True, cwd=ROOT, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


def log_line(step: int) -> str:
    return (f"run.log_metrics({{'stage': 'stage1', 'step': {step}}})\n"
            f"writer.write({SCALARS!r}, 'stage1', {step})\n")


def test_nothing_is_printed_and_a_resumed_run_goes_on_under_the_same_name_and_repeats_no_step(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a sweep" / "0a1b2c3d4e5f"
    folder.mkdir(parents=True)
    attempts = [((3, 5, 6), True, [3, 5, 6]), ((5, 6, 7), False, [7])]
    for steps, failed, _ in attempts:
        lines = "run.keep_metrics(1)\n" + "".join(map(log_line, steps))
        lines += "" if failed else f"writer.finish({SCORES}, {{'seen': {PICTURE}}})\n"
        lines += f"writer.close(failed={failed})"
        told = run_script(folder, lines, WANDB_MODE="offline", WANDB_TAGS="mine, tiny")
        assert told == ""
    ids = set()
    for attempt, (_, failed, sent) in zip(records(folder), attempts, strict=True):
        (about,) = [record.run for record in attempt if record.HasField("run")]
        ids.add(about.run_id)
        assert about.display_name == "a sweep lr=0.1 seed=2"
        assert list(about.tags) == ["a sweep", "tiny", "mine"]
        assert (about.project, about.run_group) == ("persons", "a sweep")
        config = {item.key: json.loads(item.value_json) for item in about.config.update}
        assert config["stage1"] == {"lr": 0.1}
        curves = [row for row in rows(attempt) if not any(key.startswith("seen") for key in row)]
        assert curves == [{**SCALARS, "stage1/step": step} for step in sent]
        assert failed or SCORES.items() <= summary(attempt).items()
        axes = {r.metric.glob_name: r.metric.step_metric for r in attempt if r.HasField("metric")}
        assert axes == {"stage1/*": "stage1/step", "prompts/*": "stage1/step"}
        (end,) = [record.exit for record in attempt if record.HasField("exit")]
        assert end.exit_code == failed
    [name] = ids
    [picture] = folder.glob("wandb/offline-*/files/media/images/seen_*.png")
    assert np.array_equal(np.asarray(Image.open(picture)), np.full((2, 3, 3), 7))
    assert re.fullmatch(r"a-sweep-0a1b2c3d4e5f-[0-9a-f]{8}", name)


def test_what_was_sent_is_known_after_several_kills_but_not_after_a_takeover(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path / "0a1b2c3d4e5f")
    assert sent_steps(run) == {}
    for stage, step in (("stage1", 9), ("stage2", 4), ("stage2", 8)):
        run.log_metrics({"stage": stage, "step": step})
    assert sent_steps(run) == {"stage1": 9, "stage2": 8}
    run.keep_metrics(2)  # as a resume does
    assert sent_steps(run) == {"stage1": 9, "stage2": 8}
    write_json(run.changes_file, {"changes": [{"epoch": 1, "settings": {}}]})
    assert sent_steps(run) == {"stage1": 9, "stage2": 4}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "No API key"),
        (
            # nobody listens there
            {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9",
             "WANDB_INIT_TIMEOUT": "1"},
            "127.0.0.1:9",
        ),
    ],
)
def test_where_w_and_b_cannot_be_reached_everything_is_kept_and_the_log_says_how_to_send_it(
    tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    folder = tmp_path / "runs" / "0a1b2c3d4e5f"
    folder.mkdir(parents=True)
    output = run_script(folder, log_line(1) + "writer.close(failed=False)", **environment)
    assert re.search(rf"^W&B: .*{reason}", output, re.MULTILINE)
    assert f"`wandb sync {folder}/wandb/offline-*` sends them" in output
    assert "Traceback" not in output
    (attempt,) = records(folder)
    assert rows(attempt) == [{**SCALARS, "stage1/step": 1}]


def test_when_w_and_bs_own_process_is_killed_that_is_told_once_and_training_goes_on(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "runs" / "0a1b2c3d4e5f"
    folder.mkdir(parents=True)
    kill = """
own = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="],
                     capture_output=True, text=True).stdout
os.kill(next(int(l.split()[0]) for l in own.splitlines() if "wandb-core" in l), signal.SIGKILL)
time.sleep(0.5)
"""
    lines = f"{log_line(1)}{kill}{log_line(2)}{log_line(3)}writer.close(failed=False)"
    output = run_script(folder, lines, WANDB_MODE="offline")
    assert output.count("this attempt sends nothing more") == 1


def test_a_run_that_asks_for_w_and_b_where_it_is_not_installed_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError) as caught:
        check_installed("persons")
    assert str(caught.value) == (
        "run.wandb=persons: Weights & Biases is not installed here; pip install wandb, or leave "
        "run.wandb empty (TensorBoard curves do not need it)"
    )
    check_installed("")
