"""A sweep that went through JSON makes the same trials."""

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.sweeps.reading import make_trial, read_sweep, with_proposed
from harness.sweeps.space import add_point
from harness.sweeps.sweep_json import freeze, thaw
from svll.config import RECIPES, Config
from svll.reuse.fingerprints import pin
from tests.harness.conftest import toy

__all__ = ["toy"]  # a fixture

FILE = """
recipe: synthetic_tiny
overrides: {stage2.milestones: [3, 5], stage1.lr: 1e-3}
search:
  stage2.vss_weight: {uniform: [0.0, 1.0]}
  stage2.vss_loss: {choice: [ntxent, simsiam], when: stage2.vss_weight > 0.1}
  stage2.erase_area: {choice: [[0.02, 0.33], [0.1, 0.2]]}
constraints: [stage2.vss_weight != 0.5]
samples: 5
search_seed: 3
seeds: [3, 4]
backend: ray
algorithm: {tpe: {startup: 2}}
objectives: {images_per_s: max}
scheduler: {asha: {grace: 2}}
resources: {cpus: 2, time: 2h}
slurm: {partition: gpu, setup: [module load cuda]}
"""


def test_a_thawed_sweep_makes_the_trials_of_the_one_that_was_frozen(tmp_path: Path) -> None:
    file = tmp_path / "found.yaml"
    file.write_text(FILE)
    sweep = read_sweep(
        file, schema=Config, recipes=RECIPES, complete=partial(pin, seen={}),
        overrides=[f"run.runs={tmp_path / 'runs'}", "engine.precision=fp32"],
    )
    assert (sweep.trials, sweep.to_propose) == ((), 5)
    point: dict[str, Any] = {"stage2.vss_weight": 0.3, "stage2.vss_loss": "simsiam",
                             "stage2.erase_area": [0.1, 0.2]}
    sweep.folder.mkdir(parents=True)
    for one in (point, {"stage2.vss_weight": 7.0}):  # the second is of an earlier form of the file
        add_point(sweep.folder, one, 3)
    known = with_proposed(sweep)
    found = thaw(json.loads(json.dumps(freeze(sweep))))
    assert [t.signature for t in known.trials] == [t.signature for t in found.trials]
    assert [t.config for t in known.trials] == [t.config for t in found.trials]
    assert [(t.point, t.seed) for t in found.trials] == [(point, 3), (point, 4)]
    assert (known.to_propose, found.to_propose) == (4, 4)
    fields = ("scheduler", "algorithm", "resources", "ray", "slurm", "metric", "mode", "samples",
              "objectives")
    for name in fields:
        assert getattr(found, name) == getattr(sweep, name)
    other = {**point, "stage2.vss_weight": 0.4}
    made = [make_trial(one, 2, other, one.seeds[0]).signature for one in (sweep, found)]
    assert made[0] == made[1]


def test_a_grid_is_handed_over_as_folders(toy: ModuleType, tmp_path: Path) -> None:
    sweep = toy.make_sweep(tmp_path, {"work.quality": {"grid": [0.1, 0.2]}}, backend="ray")
    assert thaw(json.loads(json.dumps(freeze(sweep)))).trials == ()


@pytest.mark.parametrize("words", [["backend=array"], ["search.stage2.erase={grid: [0.1]}"]])
def test_an_algorithm_needs_a_search_to_propose_to(tmp_path: Path, words: list[str]) -> None:
    from harness.base.errors import UserError

    file = tmp_path / "found.yaml"
    file.write_text(FILE)
    with pytest.raises(UserError, match=r"set backend: ray|all points of a grid: write choice"):
        read_sweep(file, schema=Config, recipes=RECIPES, overrides=words)
