"""What backend ray requests and refuses."""

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.base.errors import UserError
from harness.cluster.launch import launch
from harness.cluster.ray import plan
from harness.cluster.states import survey
from harness.sweeps.keys import Allocation, Resources

ASHA = {"asha": {"grace": 1, "reduction": 2}}


def test_what_a_search_cannot_do_is_refused_together(toy: ModuleType, tmp_path: Path) -> None:
    sweep = toy.make_sweep(
        tmp_path, {}, backend="ray", metric="mAP", scheduler=ASHA, resources={"nodes": 2},
        ray={"nodes": 3, "trials_per_gpu": 2},
    )
    with pytest.raises(UserError) as caught:
        launch(sweep, "local")
    metric, gpus, nodes = str(caught.value).splitlines()
    assert "mAP is computed after the last epoch" in metric
    assert "2 trials share one GPU, so resources.gpus must be 1, found null" in gpus
    assert "a trial of 2 nodes needs them for itself" in nodes
    assert [view.state for view in survey(sweep)] == ["missing"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scheduler": {"pbt": {}}, "search": {"work.epochs": {"randint": [1, 3]}}},
         "and none that is searched can be changed; search one of work.quality"),
        ({"scheduler": {"pbt": {}}, "algorithm": "tpe"}, "pbt starts with a population"),
        ({"scheduler": {"hyperband": {}}, "algorithm": "tpe"}, "hyperband halves trials"),
        ({"scheduler": {"pbt": {}}, "constraints": ["work.quality > 0.5"]},
         "pbt cannot search conditions or recipes"),
    ],
)
def test_what_does_not_go_together_in_a_search_is_refused(
    toy: ModuleType, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    search = {"work.quality": {"uniform": [0.1, 0.9]}}
    sweep = toy.make_sweep(tmp_path, **{"search": search, "backend": "ray", **keys})
    with pytest.raises(UserError) as caught:
        plan.check(sweep)
    assert message in str(caught.value)


def test_the_dashboard_is_refused_where_it_is_not_installed_and_nowhere_else(
    toy: ModuleType, tmp_path: Path
) -> None:
    sweep = toy.make_sweep(tmp_path, {}, backend="ray", ray={"dashboard": True})
    if importlib.util.find_spec("aiohttp_cors") is None:
        with pytest.raises(UserError, match=r"is not installed: pip install 'ray\[default\]'"):
            plan.check(sweep)
    else:
        plan.check(sweep)


def test_the_job_asks_for_what_its_trials_need_together(toy: ModuleType, tmp_path: Path) -> None:
    one = {"cpus": 4, "gpus": 1, "memory": "1.5GB", "time": "2h"}
    sweep = toy.make_sweep(
        tmp_path, {}, backend="ray", resources=one, ray={"nodes": 3, "trials_per_node": 2}
    )
    assert plan.allocation(sweep.resources, sweep.ray) == Resources(
        nodes=3, tasks=1, cpus=8, gpus=2, memory="3072MB", time="2h"
    )
    sharing = dataclasses.replace(sweep, ray=Allocation(trials_per_node=5, trials_per_gpu=2))
    assert plan.allocation(sharing.resources, sharing.ray).gpus == 3
    ranks = dataclasses.replace(sweep, resources=Resources(tasks=2, cpus=4))
    assert plan.allocation(ranks.resources, ranks.ray).cpus == 16
