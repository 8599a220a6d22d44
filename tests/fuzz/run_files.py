"""Files of runs and sweeps: metric logs, states, results, records of jobs."""

import importlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from rich.console import Console

from harness.base import reading
from harness.base.errors import UserError
from harness.base.mappings import numeric_leaves
from harness.cluster.known_places import all_places
from harness.cluster.pages import write_summary
from harness.cluster.records import new_record
from harness.cluster.states import survey
from harness.reporting import page, runs_page
from harness.reporting.curves import (
    LabelledRun,
    curve_plots,
    draw_curves,
    logged,
    losses,
    metrics_of,
    stages_of,
)
from harness.reporting.ranking_table import ranking_table
from harness.reporting.terminal import final_table, live_table, trial_line, troubles
from harness.runs.run import Run, epoch_lines
from harness.sweeps.reading import Sweep
from harness.sweeps.sweep_results import read_outcomes, write_tables
from harness.training.writers import scalars_of
from svll.reports import report
from tests.commands import ROOT
from tests.fuzz.inputs import damaged, odd_texts
from tests.fuzz.trying import Target

METRIC = "validation.mAP"
STATES = ["complete", "complete", "failed", "running"]


@contextmanager
def at_once() -> Iterator[None]:
    """Read a damaged file again without a pause."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PAUSES_S", (0.0, 0.0, 0.0))
        yield


def shown(what: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(what)
    return console.file.getvalue()


def odd_json() -> SearchStrategy[Any]:
    """Any value that Python writes as JSON."""
    numbers = st.sampled_from((0, -1, 1e308, -1e-320, 2**63, 10**400, float("nan"), float("inf")))
    single = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), numbers, odd_texts())
    return st.recursive(single, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        odd_texts(), inner, max_size=3), max_leaves=5)


def changed_json(value: Any) -> SearchStrategy[bytes]:
    """The JSON of a value in which one entry is another one, is missing or is new."""
    def put(place: int, new: Any, key: str, how: str) -> bytes:
        copy = json.loads(json.dumps(value))
        places = list(_containers(copy))
        inside = places[place % len(places)]
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if how == "new" and isinstance(inside, dict):
            inside[key] = new
        elif not keys:
            return json.dumps(new).encode()
        elif how == "gone":
            del inside[keys[place % len(keys)]]
        else:
            inside[keys[place % len(keys)]] = new
        return json.dumps(copy).encode()

    hows = st.sampled_from(("other", "other", "gone", "new"))
    return st.builds(put, st.integers(0, 99), odd_json(), odd_texts(), hows)


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


# ---- metric logs ----


def entries() -> list[dict[str, Any]]:
    return [{"kind": "epoch", "stage": stage, "epoch": epoch, "step": 10 * epoch,
             "loss": 9.125 / epoch, "losses": {"triplet": 3.5 / epoch}, "lr": 1e-3 / epoch,
             "validation": {"mAP": 0.125 * epoch, "cmc": {"1": 0.5}}, "images_per_s": 401.5}
            for stage in ("stage1", "stage2") for epoch in (1, 2, 3)]


def log_of(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def logs() -> SearchStrategy[bytes]:
    plain = log_of(entries())
    one = changed_json(entries()[4]) | odd_json().map(lambda value: json.dumps(value).encode())
    extra = st.sampled_from((b"", b"\r", b"\0" * 70, b"\xff\xfe", b"[" * 100_000, b"{", b"NaN",
                             b"\xef\xbb\xbf", plain[:-1], b'{"kind": "epoch"}'))
    texts = st.lists(one | extra, min_size=1, max_size=3)
    ends = st.sampled_from((b"\n", b"\r\n", b""))
    return st.one_of(damaged(plain), st.builds(
        lambda new, end, first: plain * first + b"\n".join(new) + end + plain * (1 - first),
        texts, ends, st.sampled_from((0, 1))))


def numbers_in(content: bytes) -> set[str]:
    """All numbers of a file, as they are shown."""
    found = re.findall(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", content)
    whole = {str(int(text)) for text in found if text.lstrip(b"-").isdigit()}  # of any size
    return whole | {show(value) for value in map(float, found)
                    for show in ("{:.4f}".format, "{:.4g}".format, str)}


def read_log(content: bytes, folder: Path) -> None:
    """Numbers that are shown are in the file; a whole log is shown as it is."""
    sweep = toy_sweep(folder)
    run = sweep.trials[3].run
    run.metrics_file.write_bytes(content)
    known = numbers_in(content)
    with at_once():
        [_, _, _, one] = survey(sweep)
        line = trial_line(sweep, one)
        shown(live_table(sweep, [one]))
        for word, digits in re.findall(rf"(epoch|loss|{METRIC}) (-?[\d.e+-]+)", line):
            assert digits in known, (word, digits)
        read = run.metrics()
        for entry in epoch_lines(run):
            scalars_of(entry, [METRIC])
            assert {str(number) for number in numeric_leaves(entry).values()} <= known
        curves = [logged(LabelledRun("a", run))]
        for stage in stages_of(curves)[:1]:
            if len(read) != len(entries()):  # drawing takes its time
                for select in (losses, metrics_of([METRIC])):
                    draw_curves(curves, stage, select)
                    curve_plots(curves, stage, select, folder)
        if content == log_of(entries()):
            assert read == entries()
        run.result_file.write_text("{}")
        run.metrics()  # which tells of damage, now that the run is complete


# ---- states, results, records ----


@cache
def toy() -> Any:
    """The toy experiment's module."""
    folder = str(ROOT / "tests" / "toy")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module("toy_experiment")


def made_sweep(folder: Path) -> Sweep:
    """Four trials of a sweep: two complete, one that failed, one that runs on another machine."""
    sweep: Sweep = toy().make_sweep(folder, {"work.quality": {"grid": [0.1, 0.2, 0.3, 0.4]}})
    for trial, state in zip(sweep.trials, STATES, strict=True):
        run = trial.run
        run.create("seed: 1\nwork: {quality: 0.1}\n")
        facts = {"host": "node7", "attempts": 1, "started": 5.0, "log": str(run.log_file)}
        if state == "complete":
            value = trial.point["work.quality"]
            write(run.result_file, {"mAP": value, "cmc": {"1": 0.5}, "validation": {"mAP": value},
                                    "seconds": 75.0})
        more = {"failed": {"error": "out of luck", "lines": ["a", "b"], "hindered": False},
                "running": {}, "complete": {"seconds": 75.0}}
        write(run.status_file, {"state": state, "time": 9.5, **facts, **more[state]})
    write(sweep.trials[0].run.environment_file, {"python": "3.14", "git": {"commit": "c0ffee"}})
    write(sweep.trials[1].run.changes_file, {"changes": [
        {"of": "x", "epoch": 2, "settings": {"work.quality": 0.3}}]})
    write(sweep.trials[2].run.folder / "stage1.json", {"of": "x", "epochs": 2})
    write(sweep.trials[3].run.lock_file, {"host": "far", "pid": 5, "token": "t", "job": "9_1",
                                          "started": "77"})
    write_summary(sweep)
    record = new_record(sweep.folder, "local", [t.signature for t in sweep.trials])
    write(Path(record.folder) / "record.json", {
        "token": record.token, "cluster": "local", "time": 7.5, "trials": record.trials,
        "state": "submitted", "jobs": {}, "options": {"code": ""}, "site": "", "origin": "",
        "uid": record.uid, "user": record.user, "folder": record.folder})
    return sweep


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))


PLACES = {"status": (0, "status.json"), "result": (1, "result.json"), "failed": (2, "status.json"),
          "running": (3, "status.json"), "environment": (0, "environment.json"),
          "changes": (1, "changes.json"), "stage1": (2, "stage1.json"), "lock": (3, "lock.json"),
          "sweep": (None, "sweep.json"), "record": (None, "jobs/*/record.json")}
"""The trial, if any, and the file."""


def file_of(sweep: Sweep, name: str) -> Path:
    trial, pattern = PLACES[name]
    folder = sweep.folder if trial is None else sweep.trials[trial].run.folder
    [file] = folder.glob(pattern)
    return file


@cache
def template() -> tuple[Sweep, dict[str, bytes]]:
    """The sweep, and the content of its files by their paths below the sweep's folder."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = made_sweep(Path(folder))
        files = [file for file in sweep.folder.rglob("*") if file.is_file()]
        return sweep, {str(file.relative_to(sweep.folder)): file.read_bytes() for file in files}


def toy_sweep(folder: Path) -> Sweep:
    """A copy of the sweep below another folder."""
    sweep, files = template()
    for name, content in files.items():
        file = folder / "toys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    trials = tuple(replace(trial, run=Run(folder / "toys" / trial.signature))
                   for trial in sweep.trials)
    return replace(sweep, folder=folder / "toys", trials=trials)


@cache
def contents() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        sweep = toy_sweep(Path(folder))
        return {name: file_of(sweep, name).read_bytes() for name in PLACES}


def run_files() -> SearchStrategy[tuple[str, bytes]]:
    def of(name: str) -> SearchStrategy[tuple[str, bytes]]:
        plain = contents()[name]
        odd = st.one_of(damaged(plain), changed_json(json.loads(plain)),
                        odd_json().map(lambda value: json.dumps(value).encode()),
                        st.sampled_from((b"", b"[" * 100_000, b"\xef\xbb\xbf" + plain,
                                         plain.replace(b" ", b"\r\n"), b"\0" * len(plain))))
        return odd.map(lambda content: (name, content))

    return st.sampled_from(sorted(PLACES)).flatmap(of)


def read_run_files(value: tuple[str, bytes], folder: Path) -> None:
    """All trials but the one of the file are shown as before; that one as before, or by name."""
    name, content = value
    sweep = toy_sweep(folder)
    file, (whose, _) = file_of(sweep, name), PLACES[name]
    file.write_bytes(content)
    faults: list[str] = []
    with at_once():
        states = survey(sweep, all_places(patient=True), faults=faults)
        shown(live_table(sweep, states))
        if name == "result":
            shown(final_table(sweep, states, {"test mAP": "mAP"}))
        list(troubles(states))
        for one in states:
            trial_line(sweep, one)
        for number, one in enumerate(states):
            alike = one.state == STATES[number]
            assert alike or number == whose, f"trial {number} of {name}: {one.state}, {one.note}"
        faults += read_report(sweep, name)
    if faults:
        assert all(name in ("status", "failed", "running") or str(file) in line for line in faults)
        raise UserError("\n".join(faults))


def read_report(sweep: Sweep, name: str) -> list[str]:
    """Read what the report shows, and return what is wrong; the best points stay what they are."""
    results = read_outcomes(sweep.folder)
    ranking_table(results, report.TEST)
    runs = report.read_subject(sweep.folder).runs
    facts = [runs_page.facts_of(one) for one in runs]
    notes = runs_page.incomplete(facts)
    page.join(runs_page.runs_table(facts, report.NUMBERS, sweep.folder))
    runs_page.comparison(runs, [runs_page.config_of(one.run) for one in runs], "configuration")
    runs_page.comparison(runs, [runs_page.environment_of(one.run) for one in runs], "environment")
    if name not in ("result", "sweep"):
        values = [one.values for one in results.ranked()]
        assert values == [[0.2], [0.1]], values
    if name in ("result", "sweep"):
        write_tables(results)
    return [line for line in notes if "cannot be read" in line]


TARGETS = [Target("metric_logs", logs(), read_log, examples=20),
           Target("status_files", run_files(), read_run_files, examples=40)]
