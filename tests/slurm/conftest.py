"""The fixture `slurm`: a real SLURM of two nodes, one for the whole test session."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lanes import told

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slurm")


@pytest.fixture(scope="session")
def slurm() -> Iterator[Any]:
    """A running `cluster.Cluster`, also found by SLURM's commands through SLURM_CONF.

    Skips where it cannot be started; under continuous integration (CI is set) that is a failure,
    because a suite that skips its cluster tests proves nothing about clusters.
    """
    kit = _load_kit()
    reason = kit.missing()
    if reason and os.environ.get("CI"):
        pytest.fail(f"{reason} (CI is set, so this is no reason to skip)")
    if reason:
        pytest.skip(reason)
    # not pytest's own folder: the path of a socket may have 107 characters
    cluster = kit.Cluster(Path(tempfile.mkdtemp(prefix="slurm-")))
    guard = cluster.guard()
    outside = os.environ.get("SLURM_CONF")
    try:
        cluster.up()
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    finally:
        if outside is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = outside
        cluster.down()
        guard.stdin.close()
        guard.wait()


def _load_kit() -> Any:
    """Import cluster.py, which is a script beside this file and in no package."""
    spec = importlib.util.spec_from_file_location("slurm_kit", HERE / "cluster.py")
    assert spec is not None
    assert spec.loader is not None
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    return kit


@pytest.fixture
def fault_table(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note a row of the fault table: the fault, how the trial went on, what was done twice, the
    end."""
    return lambda *row: request.node.user_properties.append(("fault", row))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if rows := told(terminalreporter, "fault"):
        terminalreporter.section("faults")
        head = ("fault", "the trial goes on", "steps done twice", "final numbers")
        terminalreporter.write_line(f"| {' | '.join(head)} |")
        terminalreporter.write_line("|---|---|---|---|")
        for row in rows:
            terminalreporter.write_line(f"| {' | '.join(row)} |")
