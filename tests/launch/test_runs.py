"""The command on runs, as it is typed."""

import io
import json
import sys
from datetime import datetime
from pathlib import Path

import pytest

from harness.base.files import read_json, write_json
from harness.runs.run import Run
from tests.commands import Command, Ended, called
from tests.tiny_run import tiny_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return the command, in a folder whose runs are to come."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object, script: str = "runs") -> Ended:
        return called(script, *words)

    return run


@pytest.fixture
def pair(runs: Command) -> tuple[Run, Run]:
    """A complete run, and one whose process is gone."""
    one = tiny_run("runs/synthetic_tiny", "seed=1")
    one.set_status("complete", attempts=1)
    write_json(one.result_file, {
        "mAP": 0.5, "cmc": {"1": 0.75}, "validation": {"mAP": 0.625},
    })
    other = tiny_run("runs/synthetic_tiny", "seed=2", "stage2.lr=0.125")
    other.set_status("running")
    return one, other


def test_runs_are_listed_in_80_columns_and_as_json(
    runs: Command, pair: tuple[Run, Run]
) -> None:
    done, gone = pair
    shown = runs("ls")
    lines = shown.out.splitlines()
    assert (shown.status, shown.err) == (0, "")
    assert f"synthetic_tiny/{done.signature}" in shown.out
    assert any(gone.signature in line and "! interrupted" in line for line in lines)
    assert "0.6250" in shown.out
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("2 runs: ")
    found = json.loads(runs("ls", "--state", "complete", "--json").out)
    assert [(one["name"], one["value"]) for one in found] == [(done.name, 0.625)]
    assert json.loads(runs("ls", done.signature[:6], "--json").out) == found
    assert "no runs" in runs("ls", "--since", "2999-01-01").out
    # the launcher lists the same without a sweep
    assert json.loads(runs("--status", "--json", script="slurm").out) == json.loads(
        runs("ls", "--json").out)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("ls", "--state", "faild"), "--state: no state 'faild'; did you mean failed?"),
     (("ls", "--since", "soon"), "--since: 'soon' is neither a time such as 90m"),
     (("ls", "--since", "2025"), "--since: '2025' is neither a time such as 90m, 12h or 2d nor a "
      "date such as 2025-12-31 or 2025-12"),
     (("ls", "--since", "2025-13"), "--since: '2025-13' is neither a time such as 90m"),
     (("ls", "nowhere"), "nowhere: no run or sweep of this name in runs; there are "),
     (("note", "RUN"), "give either a text or --remove"),
     (("tag", "RUN", "x", "--remove"), "has no tag x; its tags: none"),
     (("rm", "RUN"), "not in a terminal, so nobody can be asked; add --yes")],
)
def test_what_cannot_be_done_is_told(
    runs: Command, pair: tuple[Run, Run], words: tuple[str, ...], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    ended = runs(*(pair[0].signature[:6] if word == "RUN" else word for word in words))
    assert ended.status == (2 if "give either" in message else 1)
    assert message in ended.err
    assert pair[0].is_complete()


def test_a_run_is_shown_with_its_scores_its_settings_its_notes_and_what_comes_next(
    runs: Command, pair: tuple[Run, Run]
) -> None:
    done, gone = pair
    assert runs("tag", gone.signature, "late").out == "tags: late\n"
    assert runs("note", gone.signature, "look again").status == 0
    shown = runs("show", gone.signature[:8]).out
    for part in ("state: interrupted", "notes: #late look again", "stage2.lr", "0.125",
                 "recipe synthetic_tiny", "resume it here: python launch/train.py --recipe"):
        assert part in shown
    shown = runs("show", done.folder).out
    for part in ("state: complete, attempts 1", "mAP 0.5000  Rank-1 0.7500",
                 f"score its features again: python launch/evaluate.py {done.folder}"):
        assert part in shown
    assert runs("tag", gone.signature, "late", "--remove").out == "tags: none\n"


def test_two_runs_are_compared_over_their_seeds(runs: Command) -> None:
    made = []
    for rate, values in ((0.125, (0.5, 0.625)), (0.25, (0.25, 0.5))):
        for seed, value in enumerate(values, start=1):
            run = tiny_run("runs/mine", f"seed={seed}", f"stage2.lr={rate}")
            write_json(run.result_file, {"validation": {"mAP": value}, "mAP": value})
            made.append(run)
    shown = runs("compare", made[0].signature, made[2].folder).out
    assert "stage2.lr  0.125  0.25" in shown
    assert "seed  " not in shown
    assert "validation.mAP: 0.5625 and 0.3750" in shown
    assert "validation.mAP over 2 seeds: A - B = +0.1875, higher 2 times, lower 0" in shown
    assert "not tested over queries: " in shown


def test_a_run_is_removed_after_yes_and_shared_files_only_when_no_run_needs_them(
    runs: Command, pair: tuple[Run, Run]
) -> None:
    done, gone = pair
    world = Path("runs/cache/data/person-0123")
    world.mkdir(parents=True)
    (world / "image.jpg").write_bytes(b"x" * 10_000)
    kept = runs("prune", "--yes").out
    assert f"made data stays for runs that are not complete: {gone.name}" in kept
    assert world.exists()
    assert "removed 1 run" in runs("rm", gone.signature, "--yes").out
    assert not gone.folder.exists()
    assert f"    {world}\n" in runs("prune", "--dry-run").out
    assert world.exists()
    assert "freed " in runs("prune", "--yes").out
    assert not world.exists()
    assert done.is_complete()


def test_a_year_and_a_month_are_a_date(runs: Command, pair: tuple[Run, Run]) -> None:
    for run, day in zip(pair, ("2026-02-28T23:00", "2026-03-01T01:00"), strict=True):
        status = read_json(run.status_file)
        write_json(run.status_file, {**status, "time": datetime.fromisoformat(day).timestamp()})
    for since, wanted in (("2026-02", {*pair}), ("2026-03", {pair[1]}), ("2026-04", set())):
        found = json.loads(runs("ls", "--since", since, "--json").out)
        assert {one["name"] for one in found} == {run.name for run in wanted}


def test_notes_tags_and_patterns_stay_as_they_are_typed(
    runs: Command, pair: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COST", "7")
    for text in ("cost $50", "~", "~/a costs $COST"):
        assert runs("note", f"$HOME/{pair[0].folder}", text).status == 0
        assert read_json(pair[0].folder / "notes.json")["note"] == text
    assert runs("tag", pair[0].signature, "$50", "~").out == "tags: $50, ~\n"
    for words in (("--tag", "$50"), ("--tag", "~"), ("--name", pair[0].signature)):
        assert [one["name"] for one in json.loads(runs("ls", *words, "--json").out)] == [
            pair[0].name]
    assert runs("ls", "--name", "$x").out == "no runs\n"


def test_notes_are_no_part_of_what_a_run_is(runs: Command, pair: tuple[Run, Run]) -> None:
    before = pair[0].config_file.read_bytes()
    runs("note", pair[0].signature, "mine")
    assert read_json(pair[0].folder / "notes.json") == {"tags": [], "note": "mine"}
    assert pair[0].config_file.read_bytes() == before
    assert pair[0].folder.exists()
