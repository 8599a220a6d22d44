"""A real SLURM says what it would refuse before anything is submitted, and lets other jobs wait."""

import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).parents[1] / "toy"
sys.path.insert(0, str(TOYS))

import toy_experiment as toy  # noqa: E402

from harness.base.errors import UserError  # noqa: E402
from harness.cluster.launch import cancel, launch  # noqa: E402
from harness.cluster.records import read_records  # noqa: E402
from harness.cluster.slurm import commands, site  # noqa: E402
from harness.cluster.states import survey  # noqa: E402
from harness.sweeps.reading import Sweep  # noqa: E402

NODES = "Requested node configuration is not available"


@pytest.fixture(scope="module")
def strict(slurm: Any) -> Iterator[Any]:
    """The cluster, where accounts have limits: root may use `lab` and `root`, but not `other`."""
    for words in (("account", "lab", "cluster=kit"), ("account", "other", "cluster=kit"),
                  ("user", "root", "account=lab")):
        slurm.run("sacctmgr", "-i", "add", *words)
    limit_jobs(slurm, 2)
    slurm.run("scontrol", "update", "nodename=node1", "features=big")
    try:
        yield slurm
    finally:
        slurm.run("sacctmgr", "-i", "delete", "user", "root", "account=lab")
        slurm.run("sacctmgr", "-i", "delete", "account", "lab,other")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3]}})


def limit_jobs(slurm: Any, most: int) -> None:
    """Set how many jobs root may have in `lab`."""
    slurm.run("sacctmgr", "-i", "modify", "user", "root", "where", "account=lab", "set",
              f"maxsubmit={most}")


def changed(sweep: Sweep, options: dict[str, str], resources: dict[str, Any]) -> Sweep:
    return dataclasses.replace(
        sweep, slurm=options, resources=dataclasses.replace(sweep.resources, **resources)
    )


def faults(sweep: Sweep, jobs: int = 3) -> list[str]:
    """What the check says, less the file's name."""
    try:
        site.check(sweep, jobs)
    except UserError as error:
        return [line.removeprefix(f"{sweep.file}: ") for line in str(error).splitlines()]
    return []


def test_what_slurm_would_refuse_is_reported_in_its_words_with_the_key(
    strict: Any, sweep: Sweep
) -> None:
    account = "Invalid account or account/partition combination specified"
    limit = ("Job violates accounting/QOS policy (job submit limit, user's size and/or time "
             "limits)")
    cases: list[tuple[dict[str, str], dict[str, Any], str]] = [
        ({"partition": "main,moon"}, {}, "slurm.partition: invalid partition specified: moon; "
         "Invalid partition name specified; partitions that accept jobs: main, urgent"),
        ({"account": "other"}, {}, f"slurm.account: {account}; yours: lab, root"),
        ({"qos": "moon"}, {}, "slurm.qos: Invalid qos specification; yours: normal"),
        ({"constraint": "big&fast"}, {}, "slurm.constraint: Invalid feature specification; "
         "features of main: big"),
        ({"account": "lab"}, {}, f"AssocMaxSubmitJobLimit; {limit}; wait for other jobs to end, or "
         "submit fewer (--first N)"),
        ({"begin": "25:99"}, {}, "Invalid --begin specification"),
        ({"partion": "main"}, {}, "unrecognized option '--partion=main'"),
        ({"partition": "urgent,main"}, {"tasks": 4, "cpus": 16}, f"resources.cpus: {NODES}; 64 "
         "CPUs on a node (tasks x cpus), main or urgent has at most 2"),
        ({}, {"memory": "64GB"}, f"resources.memory: {NODES}; 65536 MB on a node, main has at "
         "most 8000"),
        ({}, {"nodes": 3}, f"resources.nodes: {NODES}; 3 nodes, main has at most 2"),
        ({}, {"gpus": 3, "tasks": 1}, f"resources.gpus: {NODES}; 3 GPUs on a node, main has at "
         "most 2"),
        ({"gres": "moon:1"}, {}, "slurm.gres: Invalid generic resource (gres) specification"),
        ({"exclude": "node1"}, {"nodes": 2}, f"resources: {NODES}; main has 2 nodes with at most "
         "2 CPUs, 8000 MB and 2 GPUs"),
    ]
    found = [faults(changed(sweep, options, resources)) for options, resources, _ in cases]
    assert found == [[words] for *_, words in cases]
    assert faults(changed(sweep, {"account": "lab"}, {}), jobs=2) == []
    strict.run("scontrol", "update", "partitionname=main", "maxtime=60")
    try:
        assert faults(changed(sweep, {"qos": "moon"}, {"time": "2h"})) == [
            "resources.time: 2h is more than the 1 h that main allows; a trial that takes longer "
            "continues in a further job",
            "slurm.qos: Invalid qos specification; yours: normal",
        ]
    finally:
        strict.run("scontrol", "update", "partitionname=main", "maxtime=infinite")
    with pytest.raises(UserError, match=r"slurm\.account: Invalid account"):
        launch(changed(sweep, {"account": "other"}, {}), "slurm")
    assert [one.state for one in survey(sweep)] == ["missing"] * 3
    assert strict.run("squeue", "-h") == ""


def test_what_slurm_lets_wait_is_not_refused(
    strict: Any, sweep: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    full = strict.run("sbatch", "--parsable", "--account=root", "--array=0-4", "--begin=now+1hour",
                      "--output=/dev/null", "--wrap=true").strip()
    strict.run("scontrol", "update", "partitionname=urgent", "state=down")
    strict.run("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    try:
        # jobs of another account do not count
        assert faults(changed(sweep, {"account": "lab"}, {}), jobs=2) == []
        assert faults(changed(sweep, {"partition": "urgent,main"}, {})) == []
        assert caplog.messages == []
        assert faults(changed(sweep, {"partition": "urgent"}, {})) == []
        assert faults(changed(sweep, {}, {"nodes": 2})) == []
        assert caplog.messages == [
            f"{sweep.file}: slurm.partition: jobs wait until urgent is up",
            f"jobs wait for nodes that are down, drained or reserved: {NODES}",
        ]
        assert len(faults(changed(sweep, {}, {"cpus": 64}))) == 1
    finally:
        strict.run("scontrol", "update", "nodename=node2", "state=resume")
        strict.run("scontrol", "update", "partitionname=urgent", "state=up")
        strict.run("scancel", full)


def test_a_refusal_says_how_many_trials_were_submitted_before(
    strict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "max_array_size", lambda: 3)
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    limit_jobs(strict, 4)
    sweep = toy.make_sweep(
        tmp_path, {"work.quality": {"grid": [0.1, 0.2, 0.3, 0.4, 0.5]}},
        slurm={"begin": "18:30", "comment": "yes"},
    )
    with pytest.raises(UserError, match=r"job submit limit.*; 3 trials submitted before; the same"):
        launch(sweep, "slurm")
    try:
        assert [one.state for one in survey(sweep)] == ["queued"] * 3 + ["missing"] * 2
        [record] = [one for one in read_records(sweep.folder) if one.jobs]
        shown = strict.run("scontrol", "show", "job", next(iter(record.jobs.values()))).split()
        assert {"Comment=yes", "Account=lab", "TimeLimit=00:10:00"} <= set(shown)
        toy.until(lambda: survey(sweep)[0].note)  # once the scheduler has looked at it
        note = survey(sweep)[0].note
        assert note.startswith("BeginTime 20")
        assert note.endswith("T18:30:00")
    finally:
        cancel(sweep)
