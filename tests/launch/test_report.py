"""The report command on sweep folders of trained runs' results and features."""

import json
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from harness.base.files import write_json
from harness.config.build import build
from harness.config.values import to_mapping, to_yaml
from harness.reporting.page import Html
from harness.runs.run import Run
from harness.sweeps.paired_test import compare
from svll.base.feature_file import FeatureGroup, write_features
from svll.config import Config
from svll.evaluation import evaluate_ranking
from svll.reports import report
from svll.reports.ranked_page import STYLE
from svll.reports.report import report_sweep
from tests.commands import Command, called

NOISE = {0.0: 1.6, 0.8: 1.2}
"""How well features of each point tell identities apart."""
SEEDS = (1, 2, 3)


def groups(noise: float, seed: int) -> dict[str, FeatureGroup]:
    labels = np.random.default_rng(7)
    found = {}
    for name, rows in (("query", 60), ("gallery", 200)):
        ids, cameras = labels.integers(0, 12, rows), labels.integers(0, 4, rows)
        random = np.random.default_rng([seed, rows])
        features = np.eye(12, 16)[ids] + noise * random.standard_normal((rows, 16))
        paths = [f"{name}/{number}.jpg" for number in range(rows)]
        found[name] = FeatureGroup(features.astype(np.float32), ids, cameras, paths=paths)
    return found


def average_precisions(parts: dict[str, FeatureGroup]) -> np.ndarray:
    query, gallery = parts["query"], parts["gallery"]
    return evaluate_ranking(
        query.features, gallery.features, query.identities, gallery.identities, query.cameras,
        gallery.cameras,
    ).average_precision


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    trials = []
    for weight, noise in NOISE.items():
        for seed in SEEDS:
            run = Run(tmp_path / f"{weight}-{seed}")
            config = build(Config, [])
            config.seed, config.stage2.vss_weight = seed, weight
            config.data.validation, config.data.fingerprint = 0.2, "feed"
            run.create(to_yaml(config))
            parts = groups(noise, seed)
            write_features(run.features_file, parts, dataset="drawn", model=run.signature)
            mAP = float(np.nanmean(average_precisions(parts)))
            write_json(run.result_file, {
                "mAP": mAP, "cmc": {"1": 0.5}, "validation": {"mAP": mAP + 0.1},
            })
            trials.append({"point": {"stage2.vss_weight": weight}, "seed": seed,
                           "signature": run.signature})
    failed = Run(tmp_path / "failed")
    failed.set_status("failed", error="out of luck")
    trials.append({"point": {"stage2.vss_weight": 2.0}, "seed": 1, "signature": "failed"})
    write_json(tmp_path / "sweep.json", {
        "name": "weights", "metric": "validation.mAP", "mode": "max", "trials": trials,
    })
    return tmp_path


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page's figures, curves and time: drawing takes most of a report's time."""
    monkeypatch.setattr(report, "_points", lambda subject, figures: Html(""))
    monkeypatch.setattr(report, "_curves", lambda runs, figures: Html(""))
    monkeypatch.setattr(time, "strftime", lambda *_: "now")


@pytest.fixture
def call() -> Command:
    """Call the command in this process; returns exit status, stdout and stderr."""
    return partial(called, "report")


def test_points_are_ranked_with_their_spread_and_the_best_is_a_recipe_for_all_identities(
    sweep: Path, call: Command
) -> None:
    status, told, _ = call(sweep)
    assert status == 0
    assert "weights: selected on validation (validation.mAP, max)" in told
    rows = [line.split("│")[1:-1] for line in told.splitlines() if line.startswith("│")]
    values = [[float(np.nanmean(average_precisions(groups(noise, seed)))) for seed in SEEDS]
              for noise in NOISE.values()]
    assert [row[1].strip() for row in rows] == ["0.8", "0.0"]
    assert float(rows[0][3]) == pytest.approx(np.mean(values[1]) + 0.1, abs=1e-4)
    assert float(rows[0][5]) == pytest.approx(np.mean(values[1]), abs=1e-4)
    assert "7 trials: 6 complete, 1 failed" in told
    best = yaml.safe_load((sweep / "best.yaml").read_text())
    assert best["data"]["validation"] == 0.0
    assert "fingerprint" not in best["data"]
    assert "run" not in best
    assert best["stage2"]["vss_weight"] == 0.8
    again = build(Config, [])
    again.seed, again.stage2.vss_weight = 1, 0.8
    assert best == {key: value for key, value in _known(again).items() if key != "run"}
    assert (sweep / "trials.csv").read_text().count("\n") == 8
    assert (sweep / "trials.parquet").exists()


def _known(config: Config) -> dict:
    mapping = to_mapping(config)
    del mapping["data"]["fingerprint"], mapping["model"]["fingerprint"]
    return yaml.safe_load(yaml.safe_dump(yaml.safe_load(to_yaml(config)) | {
        "data": mapping["data"], "model": mapping["model"],
    }))


def test_two_points_are_compared_over_seeds_and_over_queries(
    sweep: Path, call: Command
) -> None:
    status, told, _ = call(sweep, "--compare", 1, 2)
    assert status == 0
    assert "A: stage2.vss_weight=0.8" in told
    assert "with 3 seeds p is at least 0.25" in told
    a, b = ([average_precisions(groups(noise, seed)) for seed in SEEDS]
            for noise in (NOISE[0.8], NOISE[0.0]))
    expected = compare(np.mean(a, axis=0), np.mean(b, axis=0))
    [line] = [line for line in told.splitlines() if line.startswith("test AP")]
    assert line == (
        f"test AP (cross_camera) over {expected.pairs} queries: A - B = {expected.mean:+.4f}, "
        f"higher {expected.wins} times, lower {expected.losses} times, p = {expected.p:.2g}: "
        "A and B differ"
    )


def test_points_of_two_sweeps_are_compared(sweep: Path, tmp_path: Path, call: Command) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for seed in SEEDS:
        (other / f"0.0-{seed}").symlink_to(sweep / f"0.0-{seed}")
    record = json.loads((sweep / "sweep.json").read_text())
    record["trials"] = [one for one in record["trials"] if one["signature"].startswith("0.0")]
    write_json(other / "sweep.json", record)
    status, told, _ = call(sweep, other, "--compare", 1, 1)
    alone = call(sweep, "--compare", 1, 2)
    assert (status, alone[0]) == (0, 0)
    assert f"A: stage2.vss_weight=0.8 ({sweep})\nB: stage2.vss_weight=0.0 ({other})\n" in told
    assert told.splitlines()[2:] == alone[1].splitlines()[2:]  # the same runs
    write_json(other / "sweep.json", record | {"metric": "mAP"})
    status, _, told = call(sweep, other, "--compare", 1, 1)
    assert (status, told) == (
        1, f"error: {other}: is ranked by mAP, {sweep} by validation.mAP; launch one of the sweeps "
        "again with the other's metric (metric=validation.mAP)\n"
    )


@pytest.mark.usefixtures("unwritten")
def test_the_page_after_a_sweep_and_the_command_leave_the_same_files_and_say_what_is_next(
    sweep: Path, call: Command
) -> None:
    before = {file.name for file in sweep.iterdir()}
    steps = report_sweep(sweep)
    found = {file: file.read_bytes() for file in sweep.iterdir() if file.name not in before}
    assert {file.name for file in found} == {"report.html", "best.yaml", "trials.csv",
                                             "trials.parquet"}
    status, told, _ = call(sweep)
    assert status == 0
    assert {file: file.read_bytes() for file in found} == found
    assert told.splitlines()[-3:] == steps
    best = float(np.mean([np.nanmean(average_precisions(groups(NOISE[0.8], s))) for s in SEEDS]))
    assert steps == [
        f"best point: stage2.vss_weight=0.8 (validation.mAP {best + 0.1:.4f})",
        f"train it on all identities: python launch/train.py --recipe {sweep / 'best.yaml'}",
        f"open the page: python -m webbrowser {sweep / 'report.html'}",
    ]


@pytest.mark.usefixtures("unwritten")
def test_a_sweep_is_written_as_an_optuna_study_and_other_files_stay(
    sweep: Path, tmp_path: Path, call: Command
) -> None:
    journal = tmp_path / "weights.journal"
    status, told, _ = call(sweep, "--study", journal)
    assert status == 0
    assert told.endswith(f"open the study: optuna-dashboard {journal}\n")
    study = optuna.load_study(study_name=None, storage=JournalStorage(
        JournalFileBackend(str(journal))
    ))
    values = {trial.user_attrs["signature"]: trial.value for trial in study.trials}
    results = {run: json.loads((sweep / run / "result.json").read_text())["validation"]["mAP"]
               for run, value in values.items() if value is not None}
    assert values == results | {"failed": None}
    notes = sweep / "0.0-1" / "config.yaml"
    status, out, told = call(sweep, "--study", notes)
    assert (status, out) == (1, "")
    assert told.startswith(f"error: {notes}: exists and is not a study of the sweep in {sweep}; ")
    status, _, told = call(sweep / "0.0-1", "--study", journal)
    assert (status, told) == (
        2, "error: --study takes one sweep: give its folder, the one with sweep.json\n"
    )


@pytest.mark.usefixtures("unwritten")
def test_the_ranking_follows_a_metric_that_was_changed_afterwards(
    sweep: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((sweep / "sweep.json").read_text())
    write_json(sweep / "sweep.json", record | {"metric": "mAP", "mode": "min"})
    monkeypatch.setattr("launch.report.MOST_ROWS", 1)
    status, told, _ = call(sweep)
    assert status == 0
    assert "weights: selected on test (mAP, min)" in told
    assert "The best 1 of 2 points; all are in the page.\n" in told
    assert yaml.safe_load((sweep / "best.yaml").read_text())["stage2"]["vss_weight"] == 0.0


def test_what_cannot_be_reported_is_told(
    sweep: Path, call: Command
) -> None:
    status, _, told = call(sweep, "--compare", 1, 3)
    assert (status, told) == (1, "error: --compare: there is no rank 3; ranks are 1 to 2\n")
    other = sweep / "0.0-2" / "features.h5"
    with h5py.File(other, "r+") as file:
        file.attrs.update(protocol="all_gallery", complete=True)  # changed on purpose
    status, _, told = call(sweep, "--compare", 1, 2)
    assert status == 1
    assert f"{other}: is ranked by all_gallery, " in told
    other.unlink()
    status, _, told = call(sweep, "--compare", 1, 2)
    assert status == 1
    assert "features.h5: is missing; python launch/features.py" in told
    status, _, told = call(sweep, "--compare", 1, 2, "--study", sweep / "study")
    assert (status, told) == (
        2, "error: --compare takes points of one sweep or of two: give one folder or two, without "
        "--out, --figures, --ranked and --study\n"
    )
    status, _, told = call(sweep / "0.0-1", "--compare", 1, 2)
    assert status == 1
    assert "not a sweep folder" in told
    for result in sweep.glob("*/result.json"):
        result.unlink()
    status, _, told = call(sweep, "--compare", 1, 2)
    assert (status, told) == (
        1, f"error: {sweep}: no trial is complete, so there is nothing to compare\n"
    )
    status, out, _ = call(sweep)
    assert status == 0
    assert "7 trials: 6 new, 1 failed\nNo trial is complete." in out
    assert "No trial is complete." in (sweep / "report.html").read_text()


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_drawn(
    sweep: Path, call: Command
) -> None:
    before = sorted(sweep.rglob("*"))
    page = "/proc/nope/x.html"
    status, out, told = call(sweep, "--out", page)
    assert (status, out) == (1, "")
    assert told.startswith(f"error: {page}: cannot be written: ")
    status, out, told = call(sweep, "--out", sweep / "0.0-1")
    assert (status, out) == (1, "")
    assert told == f"error: {sweep / '0.0-1'}: is a folder; name a file\n"
    assert sorted(sweep.rglob("*")) == before


def test_runs_and_sweeps_are_reported_on_side_by_side(
    sweep: Path, tmp_path: Path, call: Command
) -> None:
    page = tmp_path / "elsewhere" / "both.html"
    status, told, _ = call(sweep, sweep / "0.0-1", "--out", page)
    assert status == 0
    assert f"files: {page}, {sweep / 'best.yaml'}" in told
    text = page.read_text()
    assert "Report on weights, 0.0-1" in text
    assert "weights: vss_weight=0.8 seed=1" in text
    assert ">0.0-1<" in text
    assert (page.parent / "figures" / "weights-points.png").is_file()


def test_the_best_runs_ranked_lists_are_made_when_asked_for(
    sweep: Path, call: Command
) -> None:
    status, _, told = call(sweep, "--query", "3")
    assert (status, told) == (
        2, "error: --query without --ranked has no effect; add --ranked\n"
    )
    best = sweep / f"0.8-{SEEDS[0]}"  # the best point's first seed
    status, told, _ = call(sweep, "--ranked", "--query", "3", "--query", "query/5.jpg")
    assert status == 0
    assert f", {best / 'ranked.html'}, {sweep / 'figures'}\n" in told
    text = (best / "ranked.html").read_text()
    assert text.count("asking") == 2 + STYLE.count("asking")
    assert "3.jpg" in text
    assert "5.jpg" in text
    assert f'href="{best.name}/ranked.html"' in (sweep / "report.html").read_text()
    (sweep / "failed" / "config.yaml").touch()
    status, _, told = call(sweep / "failed", "--figures", "--ranked")
    assert (status, told) == (
        1, f"error: {sweep / 'failed' / 'report.html'}: report written; sections are missing:\n"
        f"{sweep / 'failed'}: no run is complete\n"
    )
    text = (sweep / "failed" / "report.html").read_text()
    assert text.count("no run is complete") == 1
