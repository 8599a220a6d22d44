"""A search on an external Ray, which keeps running."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.base.errors import UserError
from harness.base.files import read_json
from harness.cluster.launch import launch
from harness.cluster.local.place import end_workers, living_workers
from harness.cluster.ray import external, nodes
from harness.cluster.ray.nodes import Rendezvous
from harness.cluster.states import survey
from harness.sweeps.keys import Allocation, Resources
from tests.commands import free_port

OTHER_VERSION = """
import sys
import ray
ray.__version__ = "1.2.3"
from ray.scripts.scripts import main
sys.argv = ["ray", *sys.argv[1:]]
main()
"""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray of two cores on this machine; the user's environment has its token."""
    rendezvous = Rendezvous(tmp_path, "theirs")
    with nodes.head(rendezvous, Resources(cpus=2, gpus=0), peer=None):
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(rendezvous.token))
        yield rendezvous.read()["address"]


def test_a_search_runs_on_it_and_leaves_it_as_it_was(
    address: str, toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(
        tmp_path / toy.ODD_HERE.replace("$", ""),  # which Ray would expand
        {"work.quality": {"grid": [0.1, 0.2, 0.3]}}, backend="ray", ray={"address": address},
    )
    try:
        launch(sweep, "local")
        toy.until(lambda: not living_workers(sweep.folder), seconds=200)
        assert [view.state for view in survey(sweep)] == ["complete"] * 3
        seen = read_json(sweep.trials[0].run.folder / "seen-0.json")
        # compiled code stays on the node, though not our job started Ray there
        assert seen["TRITON_CACHE_DIR"] == f"{tempfile.gettempdir()}/svll-{os.getuid()}/triton"
        [node] = external.nodes_of(address)
        assert node["CPU"] == 2
    finally:
        end_workers(sweep.folder)

    # what it has no room for is refused before anything starts
    large = toy.make_sweep(
        tmp_path / "large", {}, backend="ray", ray={"address": address}, resources={"cpus": 3}
    )
    with pytest.raises(UserError, match=r"a trial wants 1 node\(s\) with 3 CPU and 0 GPU each; the "
                                        r"Ray at .* has 2 CPU, 0 GPU"):
        launch(large, "local")
    assert [view.state for view in survey(large)] == ["missing"]
    assert external.room(address, Resources(), Allocation()) == (2, Resources(gpus=0))
    with pytest.raises(UserError, match="a trial wants 2 node"):
        external.room(address, Resources(nodes=2), Allocation())


def test_as_many_trials_fit_on_a_gpu_as_may_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "nodes_of", lambda _: [{"CPU": 99.0, "GPU": 1.0},
                                                         {"CPU": 99.0, "GPU": 3.0}])
    for together in range(1, 13):
        count, one = external.room("", Resources(gpus=1), Allocation(trials_per_gpu=together))
        assert (count, one.gpus) == (4 * together, 1)
    assert external.room("", Resources(gpus=2), Allocation())[0] == 1


def test_a_ray_of_another_version_is_refused_with_both() -> None:
    port = free_port()
    # a short path: that of a socket may have 107 characters
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    theirs = subprocess.Popen(
        [sys.executable, "-c", OTHER_VERSION, "start", "--head", "--block", f"--port={port}",
         "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=1",
         f"--temp-dir={folder}", "--object-store-memory=100000000"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_MODE", "disabled")
            patch.setattr(external, "ANSWER_LIMIT_S", 10.0)
            for _ in range(12):
                with pytest.raises(UserError) as caught:
                    external.nodes_of(f"127.0.0.1:{port}")
                if "Version mismatch" in str(caught.value):
                    break
        assert "1.2.3" in str(caught.value)
        assert str(caught.value).startswith(f"ray.address: 127.0.0.1:{port}: ")
    finally:
        os.killpg(theirs.pid, signal.SIGKILL)
        theirs.wait()
        shutil.rmtree(folder, ignore_errors=True)
