"""Our own packages are logged, libraries only when they warn."""

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cluster.rank_processes import log_to_stderr
from harness.runs import logs
from harness.runs.execute import load_function
from harness.runs.logs import announce_torch
from harness.runs.run import Run

LIBRARIES = ("compilers.C.base", "matplotlib", "numba.core", "httpx", "torch._inductor", "wandb",
             "submitit")


def test_a_job_logs_our_own_packages_and_of_libraries_only_warnings(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stderr = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr("sys.stderr", stderr)
    log_to_stderr()
    monkeypatch.setattr(logging.getLogger("submitit"), "level", logging.INFO)
    for name in (*LIBRARIES, "harness.x", "svll.y", "__main__", "root"):
        logging.getLogger(None if name == "root" else name).info("from %s", name)
    logging.getLogger("httpx").warning("a warning")
    said = [line.split(" ", 2)[2] for line in stderr.getvalue().splitlines()]
    assert said == ["INFO harness.x: from harness.x", "INFO svll.y: from svll.y",
                    "INFO __main__: from __main__", "WARNING httpx: a warning"]


def test_the_import_of_torch_is_announced_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("harness.x")
    for modules, lines in (({}, ["loading torch and other libraries: 5 to 20 s, more from a slow "
                                 "disk"]), ({"torch": None}, [])):
        monkeypatch.setattr("harness.runs.logs.sys", SimpleNamespace(modules=modules))
        with caplog.at_level(logging.INFO):
            announce_torch(log)
        assert caplog.messages == lines
        caplog.clear()


def test_a_users_own_experiment_is_logged_as_our_packages_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "OWN", set(logs.OWN))
    (tmp_path / "their_work.py").write_text("def run(run): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = Run(tmp_path / "run")
    run.create("run: {experiment: their_work.run}\n")
    record = logging.makeLogRecord({"name": "their_work.model", "levelno": logging.INFO})
    assert not logs.is_logged(record)
    load_function(run, "experiment")
    assert logs.is_logged(record)
    assert logging.getLogger("their_work.model").isEnabledFor(logging.INFO)
