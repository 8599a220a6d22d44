"""Which reports a launch takes up, without SLURM."""

from pathlib import Path
from types import ModuleType

import pytest

from harness.cluster.records import Record, new_record
from harness.cluster.slurm import commands
from harness.cluster.slurm.place import Slurm


def test_a_missing_report_is_taken_up_only_where_it_was_asked_for(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, report=True)
    monkeypatch.setattr(commands, "my_jobs", dict)
    monkeypatch.setattr(commands, "cluster_name", lambda: "here")
    (tmp_path / "elsewhere").mkdir()
    submitted: list[Record] = []
    monkeypatch.setattr(Slurm, "submit", lambda self, jobs, record, after: submitted.append(record))
    for site, origin in [("there", sweep.origin), ("here", f"{tmp_path}/elsewhere"),
                         ("here", sweep.origin)]:
        record = new_record(sweep.folder, "slurm", [], around="after",
                            about=[trial.signature for trial in sweep.trials])
        record.site, record.origin = site, origin
        record.write("submitted")
        with Slurm().surrounding_jobs(sweep, [], []):
            pass
    assert [record.options["about"] for record in submitted] == [[sweep.trials[0].signature]]
