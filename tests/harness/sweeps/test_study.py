"""A sweep as an Optuna study, read back by Optuna and compared with the run folders."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from harness.base.errors import UserError
from harness.base.files import write_json
from harness.base.locks import held_lock
from harness.runs.run import Run
from harness.sweeps.dimensions import Dimension
from harness.sweeps.study import as_study, check_study_file, distribution, write_study
from harness.sweeps.sweep_results import SweepResults, read_outcomes

SEARCH = {"lr": {"loguniform": [1e-4, 1e-2]}, "tokens": {"randint": [1, 9]},
          "area": {"grid": [[0.1, 0.2], "all"]}}
STARTED = 1_700_000_000.0
STATES = ("complete", "complete", "failed", "running", "stopped", "ended early")


@pytest.fixture
def results(tmp_path: Path) -> Iterator[SweepResults]:
    """A sweep with a run of each state."""
    folder, trials = tmp_path / "tried", []
    for n, state in enumerate(STATES):
        run = Run(folder / f"run{n}")
        point = {"lr": 1e-3 * (n + 1), "tokens": n + 1, "area": [[0.1, 0.2], "all"][n % 2]}
        trials.append({"point": point, "seed": 7, "signature": run.signature})
        for epoch in (1, 2):
            run.log_metrics({"kind": "epoch", "epoch": epoch, "validation": {"mAP": n + epoch}})
        end = {"pruned": True} if state == "ended early" else {}
        said: Any = "stopped" if state == "ended early" else state
        run.set_status(said, started=STARTED + n, **end)
        if state == "complete":
            write_json(run.result_file, {"mAP": 0.5 + n, "size": 3.0} if n else {"mAP": 0.5})
    write_json(folder / "sweep.json", {"name": "tried", "metric": "mAP", "mode": "max",
                                       "trials": trials, "search": SEARCH})
    with held_lock(folder / f"run{STATES.index('running')}" / "lock.json"):
        yield read_outcomes(folder)


def read_back(file: Path) -> optuna.Study:
    return optuna.load_study(study_name="tried", storage=JournalStorage(
        JournalFileBackend(str(file))
    ))


def test_a_study_that_optuna_reads_back_has_every_run_of_the_sweep(
    results: SweepResults, tmp_path: Path
) -> None:
    study = read_back(write_study(results, tmp_path / "tried.journal"))
    assert study.best_trial.user_attrs["signature"] == "run1"
    assert study.direction.name == "MAXIMIZE"
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE", "COMPLETE", "FAIL", "RUNNING", "WAITING", "PRUNED"
    ]
    assert [trial.user_attrs["state"] for trial in study.trials] == list(STATES)
    assert [trial.value for trial in study.trials] == [0.5, 1.5, None, None, None, None]
    for n, (trial, one) in enumerate(zip(study.trials, results.outcomes, strict=True)):
        area = "all" if n % 2 else "[0.1, 0.2]"
        assert trial.params == {"lr": 1e-3 * (n + 1), "tokens": n + 1, "area": area}
        assert trial.intermediate_values == {1: n + 1, 2: n + 2}
        told = trial.user_attrs
        assert (told["signature"], told["seed"]) == (one.run.signature, one.seed)
        assert Path(told["folder"]) == one.run.folder
        if trial.state.name != "WAITING":
            assert trial.datetime_start == datetime.fromtimestamp(STARTED + n)
        if trial.state.is_finished():
            assert trial.datetime_complete == datetime.fromtimestamp(one.run.status()["time"])


@pytest.mark.parametrize(
    ("dimension", "tried", "expected"),
    [
        (("loguniform", (1e-4, 1e-2)), [1e-3], FloatDistribution(1e-4, 1e-2, log=True)),
        (("uniform", (0, 2)), [1], FloatDistribution(0, 2)),
        (("randint", (1, 9)), [8, 2], IntDistribution(1, 8)),
        (("grid", (1, 2, 4, 8)), [4], IntDistribution(1, 8, log=True)),
        (("grid", (0.0, 0.8)), [0.0], FloatDistribution(0.0, 0.8)),
        (("choice", ("a", "b")), ["b"], CategoricalDistribution(["a", "b"])),
        (("grid", (0.5, "auto", None, True, [1])), [],
         CategoricalDistribution(["0.5", "auto", None, True, "[1]"])),
        # an earlier form of the file had wider ranges
        (("uniform", (0.0, 1.0)), [3.0], FloatDistribution(0.0, 3.0)),
        (("loguniform", (0.1, 1.0)), [0.0], FloatDistribution(0.0, 1.0)),
        (("choice", ("a",)), ["b"], CategoricalDistribution(["a", "b"])),
    ],
)  # fmt: skip
def test_distributions_are_what_the_sweep_declares_and_hold_what_was_tried(
    dimension: tuple[Any, Sequence[Any]], tried: list[Any], expected: Any
) -> None:
    kind, values = dimension
    assert distribution(Dimension("key", kind, tuple(values), ""), tried) == expected


def test_a_run_without_one_of_several_objectives_is_a_failed_trial(results: SweepResults) -> None:
    record = results.folder / "sweep.json"
    text = record.read_text().replace('"mode"', '"objectives": {"size": "min"}, "mode"')
    record.write_text(text)
    study = as_study(read_outcomes(results.folder))
    assert [one.name for one in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.trials[1].values == [1.5, 3.0]
    assert [study.trials[n].state.name for n in (0, 5)] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    "text", ["", "my notes\n", '{"op_code": 0, "study_name": "tried"}\n', "[]"]
)
def test_a_file_that_is_something_else_stays(
    results: SweepResults, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^{file}: exists and is not a study of the sweep in "):
        write_study(results, file)
    assert file.read_text() == text


def test_an_earlier_study_of_the_sweep_is_replaced_and_another_sweeps_is_not(
    results: SweepResults, tmp_path: Path
) -> None:
    file = tmp_path / "tried.journal"
    for _ in range(2):
        write_study(results, file)
    assert len(read_back(file).trials) == len(STATES)
    few = replace(results, outcomes=results.outcomes[:1])
    for _ in range(2):
        write_study(few, file)
    assert len(read_back(file).trials) == 1
    with pytest.raises(UserError, match="delete this one"):
        check_study_file(file, tmp_path / "other")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["tried", "tried.journal"]
