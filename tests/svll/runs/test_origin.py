"""The recipe that a run comes from, and the command that resumes it."""

import shlex
from pathlib import Path

import pytest

from harness.base.files import write_json
from harness.config.build import build
from harness.config.recipes import named_recipe
from harness.config.signature import signature
from harness.config.sources import parse_overrides
from svll.config import RECIPES, Config
from svll.runs.origin import next_commands, origin
from tests.tiny_run import tiny_run


def test_a_run_differs_from_its_recipe_in_what_was_given_with_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "synthetic_tiny", "stage2.lr=0.125", "seed=7", "run.runs=/there")
    recipe, differing = origin(run)
    assert recipe == "synthetic_tiny"
    assert {key: ours for key, (_, ours) in differing.items()} == {"stage2.lr": 0.125, "seed": 7}


def test_a_trials_recipe_is_its_sweeps(tmp_path: Path) -> None:
    file, folder = tmp_path / "mine.yaml", tmp_path / "anything"
    file.write_text("recipe: synthetic_tiny\nsearch: {seed: {grid: [1, 2]}}\n")
    run = tiny_run(folder, "stage1.lr=0.25")
    assert origin(run).recipe == ""  # nothing tells: it differs from the defaults
    write_json(folder / "sweep.json", {"file": str(file)})
    found = origin(run)
    assert (found.recipe, [*found.differing]) == ("synthetic_tiny", ["stage1.lr"])


@pytest.mark.parametrize("state", ["stopped", "failed", "interrupted"])
def test_the_command_that_resumes_a_run_is_that_of_the_same_run(
    tmp_path: Path, state: str
) -> None:
    run = tiny_run(tmp_path / "my runs" / "mine", "stage2.lr=0.125")
    [(command, what)] = next_commands(run, state)
    words = shlex.split(command)
    assert (words[:3], what) == (["python", "launch/train.py", "--recipe"], "resume it here")
    config = build(Config, [*named_recipe(words[3], Config, RECIPES), *parse_overrides(words[4:])])
    assert Path(config.run.runs, config.run.name, signature(config)) == run.folder
