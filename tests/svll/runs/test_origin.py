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


def sweep_json(file: str, words: list[str], *recipes: str, **more: object) -> dict[str, object]:
    return {"file": file, "words": words, "recipes": recipes, **more}


@pytest.mark.parametrize(
    ("about", "options"),
    [(sweep_json("my.yaml", [], "synthetic_tiny"), "--sweep my.yaml"),
     (sweep_json("my.yaml", ["my.yaml", "seed=1,2"], "my.yaml"), "--sweep-name mine"),
     (sweep_json("my.yaml", [], "my.yaml"), None),
     (sweep_json("synthetic_tiny", [], "synthetic_tiny"), None),
     ({"file": "my.yaml", "words": 3}, None)],
)
def test_a_sweep_is_resumed_by_its_file_or_the_name_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, object], options: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for runs in ("runs", "my runs"):
        run = tiny_run(f"{runs}/mine", "stage2.lr=0.125")
        write_json(run.folder.parent / "sweep.json", about)
        found = {what: command for command, what in next_commands(run, "failed")}
        place = " 'run.runs=my runs'" if runs != "runs" and about["words"] else ""
        assert found.get("resume its sweep") == (
            f"python launch/slurm.py {options}{place} --retry-failed" if options else None)
        assert ("rank its sweep" in found) == (options is not None)


def test_the_recipe_of_a_sweep_without_a_file_is_the_one_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("extends: synthetic_tiny\nstage1.lr: 0.25\n")
    run = tiny_run("runs/anything", "stage1.lr=0.25", "seed=7")
    file = run.folder.parent / "sweep.json"
    write_json(file, sweep_json("my.yaml", ["my.yaml", "seed=7,8"], "my.yaml"))
    found = origin(run)
    assert (found.recipe, [*found.differing]) == ("my.yaml", ["seed"])
    words, both = ["synthetic,my.yaml", "seed=7"], ("synthetic", "my.yaml")
    trial = {"signature": run.signature, "point": {"recipe": "my.yaml"}}
    write_json(file, sweep_json("synthetic,my.yaml", words, *both, trials=[trial]))
    found = origin(run)
    assert (found.recipe, [*found.differing]) == ("my.yaml", ["seed"])
