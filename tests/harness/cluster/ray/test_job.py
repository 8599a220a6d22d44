"""The end of a search's job, without Ray."""

import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from harness.base import locks
from harness.base.locks import held_lock
from harness.cluster.ray import job
from harness.cluster.records import new_record
from harness.sweeps.sweep_json import freeze


def test_a_job_waits_for_the_run_that_still_saves_without_reading_all_the_time(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [n / 500 for n in range(500)]}})
    names = [trial.signature for trial in sweep.trials]
    frozen = {"sweep": {**freeze(sweep), "known": names}}
    record = new_record(sweep.folder, "local", names, **frozen)
    looks: list[Path] = []

    def counted(lock: Path) -> object:
        looks.append(lock)
        return locks.lock_holder(lock)

    monkeypatch.setattr(job, "lock_holder", counted)
    begun, free = threading.Event(), threading.Event()

    def save() -> None:
        with held_lock(sweep.trials[7].run.lock_file):
            begun.set()
            free.wait(20)

    saving = threading.Thread(target=save)
    saving.start()
    begun.wait(20)
    threading.Timer(3.0, free.set).start()
    started = time.monotonic()
    job._wait_for_runs(record)
    waited = time.monotonic() - started
    saving.join()
    assert 2.5 < waited < 15.0
    assert 1000 <= len(looks) < 1030  # each at the beginning and at the end, one in between
    assert set(looks[500:-500]) == {sweep.trials[7].run.lock_file}
