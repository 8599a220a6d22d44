"""What is shown of a sweep."""

import io
import itertools
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from harness.base.files import write_json
from harness.base.mappings import lookup
from harness.cluster.states import survey
from harness.reporting import follow as following
from harness.reporting.follow import follow
from harness.reporting.overview import Watch, progress
from harness.reporting.terminal import (
    clock,
    counts,
    final_table,
    live_view,
    trial_line,
    trial_rows,
    troubles,
    wide,
)

COLUMNS = {"test mAP": "mAP", "test Rank-1": "cmc.1"}


def shown(*what: object, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(*what, sep="\n")
    return console.file.getvalue()


def rows_of(sweep, width: int = 200, most: int = 50) -> str:
    return shown(*trial_rows(sweep, survey(sweep), most=most, width=width), width=width)


def ranking(sweep, columns: dict[str, str] = COLUMNS, width: int = 200, **most: int) -> str:
    return shown(*final_table(sweep, survey(sweep), columns, width=width, **most), width=width)


def finish(run, **result: object) -> None:
    write_json(run.result_file, result)
    run.set_status("complete", seconds=75.0)


@pytest.fixture
def sweep(toy: ModuleType, tmp_path: Path):
    made = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3, 0.4]}})
    for trial, (val, test) in zip(made.trials, [(0.5, 0.9), (0.7, 0.2), (0.6, 0.3)], strict=False):
        finish(trial.run, mAP=test, cmc={"1": test}, validation={"mAP": val})
    return made


def test_trials_are_ranked_by_the_sweeps_metric_and_the_label_says_on_what(sweep) -> None:
    title, head, *rows = ranking(sweep).splitlines()
    assert title == "toys: selected on validation (validation.mAP, max)"
    assert cells(head) == ["rank", "quality", "seed", "validation.mAP", *COLUMNS, "time", "run"]
    assert [cells(row)[1] for row in rows] == ["0.2", "0.3", "0.1"]
    assert cells(rows[0])[3:] == ["0.7000", "0.2000", "0.2000", "1:15",
                                  sweep.trials[1].signature]


def test_a_test_metric_is_labelled_as_such_and_min_turns_the_order(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, metric="mAP", mode="min"
    )
    finish(sweep.trials[0].run, mAP=0.9)
    finish(sweep.trials[1].run, mAP=0.3)
    title, _, *rows = ranking(sweep).splitlines()
    assert title.endswith("selected on test (mAP, min)")
    assert [cells(row)[1] for row in rows] == ["0.2", "0.1"]


def test_a_long_ranking_shows_the_best_and_says_how_many_are_left_out(sweep) -> None:
    _, _, *rows, last = ranking(sweep, most=2).splitlines()
    assert [cells(row)[1] for row in rows] == ["0.2", "0.3"]
    assert last == "and 1 more"


def cells(row: str) -> list[str]:
    return re.split(r" {2,}", row.strip())


def test_progress_is_the_newest_of_each_number(toy: ModuleType, tmp_path: Path) -> None:
    [trial] = toy.make_sweep(tmp_path, {}).trials
    assert progress(trial.run, "validation.mAP") == {}
    trial.run.log_metrics({"stage": "stage2", "epoch": 1, "loss": 3.0, "validation": {"mAP": 0.4}})
    trial.run.log_metrics({"stage": "stage2", "epoch": 2, "loss": 2.0})
    with trial.run.metrics_file.open("a") as log:
        log.write('{"stage": "stage2", "epoch": 3, "lo')  # being written
    assert progress(trial.run, "validation.mAP") == {
        "stage": "stage2", "epoch": 2, "loss": 2.0, "metric": 0.4
    }


def test_only_the_end_of_a_long_log_is_read(toy: ModuleType, tmp_path: Path) -> None:
    [trial] = toy.make_sweep(tmp_path, {}).trials
    trial.run.folder.mkdir(parents=True)
    entries = [{"stage": "stage1", "epoch": n, "loss": 1.0, "pad": "x" * 300} for n in range(2000)]
    trial.run.metrics_file.write_text(
        "not JSON at all\n" + "".join(json.dumps(e) + "\n" for e in entries)
    )
    assert progress(trial.run, "validation.mAP")["epoch"] == 1999


def test_of_many_trials_those_that_need_eyes_are_shown_and_the_others_counted(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.epochs": {"grid": list(range(1, 61))}})
    for trial in sweep.trials[:50]:
        finish(trial.run, mAP=0.1, validation={"mAP": 0.1})
    sweep.trials[55].run.set_status("failed", error="no luck")
    sweep.trials[57].run.set_status("running")
    with sweep.trials[57].run.lock():
        _, first, second, *rows, last = rows_of(sweep, most=12).splitlines()
    assert cells(first)[1:4] == ["epochs=58", "running", "starting"]
    assert cells(second)[1:4] == ["epochs=56", "failed", "no luck"]
    assert len(rows) == 10
    assert last == "and 48 more: 48 complete"


def test_a_trial_takes_one_line_at_any_width_and_what_runs_is_never_cut(
    toy: ModuleType, tmp_path: Path
) -> None:
    search = {"work.quality": {"grid": [0.123456, 0.654321]}, "work.epoch_s": {"grid": [0.0, 1.0]}}
    sweep = toy.make_sweep(tmp_path, search, recipe={"work": {"epochs": 60}})
    for trial in sweep.trials[:2]:
        trial.run.log_metrics({"stage": "work", "epoch": 3, "loss": 1.25,
                               "validation": {"mAP": 0.4}})
        trial.run.set_status("running", host="node7.cluster", attempts=2)
    sweep.trials[2].run.set_status("failed", error="a cause that is long\n" * 20)
    heads = []
    with sweep.trials[0].run.lock(), sweep.trials[1].run.lock():
        for width in (60, 80, 100, 120, 200):
            head, *rows = rows_of(sweep, width=width).splitlines()
            assert len(rows) == 4
            assert max(map(len, (head, *rows))) <= width
            assert ["work, epoch 3 of 60" in row for row in rows] == [True, True, False, False]
            assert "seed=1" not in rows[0], "what all trials share tells none apart"
            heads.append(set(cells(head)))
    assert heads[0] == {"#", "trial", "state", "progress or cause"}
    assert heads[1] >= {"#", "trial", "state", "progress or cause", "mAP"}
    assert heads[-1] == {"#", "trial", "state", "progress or cause", "mAP", "time", "loss", "host",
                         "run", "attempts"} - {"time"}, "no trial has begun at a known time"
    assert all(less <= more for less, more in itertools.pairwise(heads))


def test_the_live_view_tells_the_counts_how_much_is_over_and_the_best_so_far(sweep) -> None:
    states = survey(sweep)
    text = shown(live_view(sweep, states, Watch(sweep).look(states), 40, 80), width=80)
    first, bar, best, gap, *_ = text.splitlines()
    assert first == "toys: 4 trials: 1 missing, 3 complete"
    assert bar.endswith(" 3 of 4 trials ended")
    assert best == "best validation.mAP 0.7000: trial 1 (quality=0.2 seed=1)"
    assert not gap.strip()


def test_points_without_a_conditional_key_are_ranked_too(toy: ModuleType, tmp_path: Path) -> None:
    search = {"work.quality": {"grid": [0.1, 0.9]},
              "work.epoch_s": {"grid": [0.5], "when": "work.quality > 0.5"}}
    sweep = toy.make_sweep(tmp_path, search)
    for trial in sweep.trials:
        finish(trial.run, mAP=0.1, cmc={"1": 0.1}, validation={"mAP": trial.point["work.quality"]})
    _, _, first, second = ranking(sweep, {}).splitlines()
    assert cells(first)[:4] == ["1", "0.9", "0.5", "1"]
    assert cells(second)[:3] == ["2", "0.1", "1"]


def test_a_table_says_which_host_a_trial_was_on_last_and_how_often_it_began(sweep) -> None:
    sweep.trials[3].run.set_status("stopped", host="node7", attempts=3)
    [row] = [row for row in rows_of(sweep).splitlines() if "node7" in row]
    assert cells(row)[2::2] == ["stopped", sweep.trials[3].signature]
    assert cells(row)[-1] == "3"


def test_troubles_name_the_error_its_last_lines_and_the_log(sweep) -> None:
    run = sweep.trials[3].run
    run.set_status("failed", error="ValueError: nan", lines=["a", "b"], log=str(run.log_file))
    told = ["trial 3 (quality=0.4 seed=1) failed: ValueError: nan", "    a", "    b"]
    assert list(troubles(survey(sweep))) == told, "no log is named that was never made"
    run.log_file.touch()
    assert list(troubles(survey(sweep))) == [*told, f"    log: {run.log_file}"]


def test_square_brackets_in_an_error_are_no_markup(sweep) -> None:
    sweep.trials[3].run.set_status("failed", error="shape [red]3[/red] [/nothing]")
    assert "shape [red]3[/red] [/nothing]" in rows_of(sweep)


def test_a_line_says_where_a_trial_is(sweep) -> None:
    run = sweep.trials[3].run
    run.log_metrics({"stage": "stage2", "epoch": 2, "loss": 1.25, "validation": {"mAP": 0.4}})
    run.set_status("running")
    with run.lock():
        text = trial_line(sweep, survey(sweep)[3])
    assert text.startswith(
        "trial 3 (quality=0.4 seed=1): running stage2, epoch 2 loss 1.25 validation.mAP 0.4000"
    )
    assert trial_line(sweep, survey(sweep)[0]) == (
        "trial 0 (quality=0.1 seed=1): complete validation.mAP 0.5000"
    )


def test_following_without_a_terminal_prints_each_change_once(
    sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweep.trials[3].run
    steps = iter(range(5))

    def move(seconds: float) -> None:
        """Instead of sleeping, let the last trial get on."""
        if next(steps) == 3:
            finish(run, mAP=0.4, validation={"mAP": 0.4})

    monkeypatch.setattr(following.time, "sleep", move)
    console = Console(file=io.StringIO(), width=80)
    run.set_status("running")
    with run.lock():
        views = follow(sweep, console)
    assert [v.state for v in views] == ["complete"] * 4
    lines = [line[9:] for line in console.file.getvalue().splitlines()]
    assert lines == [
        "toys: 4 trials: 1 running, 3 complete; 3 of 4 trials ended; best validation.mAP 0.7000: "
        "trial 1 (quality=0.2 seed=1)",
        "trial 3 (quality=0.4 seed=1): running",
        "trial 3 (quality=0.4 seed=1): complete validation.mAP 0.4000",
    ]


def test_small_formats() -> None:
    assert lookup({"cmc": {"1": 0.5}}, "cmc.1") == 0.5
    assert lookup({"cmc": 3}, "cmc.1") is None
    assert lookup(None, "mAP") is None
    assert [clock(s) for s in (None, 5, 65, 3725)] == ["", "0:05", "1:05", "1:02:05"]
    assert wide(Console(file=io.StringIO())).width == 200


def test_counts_name_every_state_that_occurs(sweep) -> None:
    assert counts(survey(sweep)) == "4 trials: 1 missing, 3 complete"


def test_odd_values_of_a_log_are_shown_as_they_are_and_never_as_numbers(sweep) -> None:
    run = sweep.trials[3].run
    run.set_status("running", host="[/b]")
    lines = ["5", "[1]", '"loss"', '{"stage": "[/a]", "epoch": 1, "loss": true}',
             '{"stage": "[/a]", "epoch": 2, "loss": "[bold]", "validation": {"mAP": true}}',
             '{"loss": NaN, "epoch": 7}']
    run.metrics_file.write_text("\n".join(lines) + "\n")
    assert progress(run, sweep.metric) == {
        "stage": "[/a]", "epoch": 2, "loss": "[bold]", "metric": True
    }
    with run.lock():
        states = survey(sweep)
        row = next(row for row in rows_of(sweep).splitlines() if "[/b]" in row)
        assert cells(row)[2:7] == ["running", "[/a], epoch 2", "True", "[bold]", "[/b]"]
        assert trial_line(sweep, states[3]).endswith(": running [/a], epoch 2 loss [bold] "
                                                     "validation.mAP True on [/b]")
