"""A profile of both stages: what it adds up to, and that it leaves the run as it was."""

import json
from pathlib import Path

import pytest

from harness.config.build import build
from harness.config.recipes import read_recipe
from harness.runs.run import Run
from svll.config import Config
from svll.runs.profiling import PHASES, StageProfile, kind_of, profile_run
from tests.tiny_run import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    return tiny_run(folder / "profiled", f"run.runs={folder}", "run.tensorboard=false")


@pytest.fixture(scope="module")
def profiles(run: Run) -> list[StageProfile]:
    return profile_run(run, build(Config, read_recipe(run.config_file, Config)))


def test_an_epoch_of_stage_1_and_a_step_of_stage_2_are_profiled(
    profiles: list[StageProfile],
) -> None:
    first, second = profiles
    assert (first.stage, second.stage) == ("stage1", "stage2")
    assert first.steps > 1
    assert second.steps == 1


def test_phases_and_operations_add_up_to_the_time_that_passed(profiles: list[StageProfile]) -> None:
    for one in profiles:
        assert tuple(one.phases) == PHASES
        assert 0.5 * one.seconds < sum(one.phases.values()) < 1.1 * one.seconds
        assert one.phases["backward"] > 0
        kinds = one.kinds()
        assert sum(item.seconds for item in kinds) == pytest.approx(
            sum(item.seconds for item in one.operations)
        )
        assert {"matrix products", "normalisation", "Adam"} <= {item.name for item in kinds}
        assert kinds == sorted(kinds, key=lambda item: -item.seconds)


def test_traces_can_be_opened_and_nothing_else_is_left(
    run: Run, profiles: list[StageProfile]
) -> None:
    for one in profiles:
        names = {event.get("name") for event in json.loads(one.trace.read_text())["traceEvents"]}
        assert {"forward", "backward", "optimizer", "aten::mm"} <= names
    left = {path.name for path in Path(run.folder).iterdir()}
    assert left == {"config.yaml", "profile"}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("aten::addmm", "matrix products"), ("aten::add_", "sums and products of elements"),
     ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
     ("aten::native_layer_norm_backward", "normalisation"), ("aten::empty", "other")],
)
def test_operations_have_kinds(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind
