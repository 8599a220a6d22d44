"""The fixture `slurm`: a real SLURM of two nodes, one for all files that a process runs."""

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slurm")


@pytest.fixture(scope="module")
def slurm(running: Any) -> Iterator[Any]:
    """A running `cluster.Cluster`, also found by SLURM's commands through SLURM_CONF."""
    with pytest.MonkeyPatch.context() as patch:  # other tests are of a machine without SLURM
        patch.setenv("SLURM_CONF", str(running.conf))
        yield running


@pytest.fixture(scope="session")
def running() -> Iterator[Any]:
    """Start the cluster, once in each process.

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
    try:
        cluster.up()
        yield cluster
    finally:
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
    """Add a row to the fault table: fault, how the trial resumed, steps done twice, numbers."""
    return lambda *row: request.node.user_properties.append(("fault", row))
