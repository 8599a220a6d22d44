"""What the class of a configuration tells the harness of its experiment."""

from dataclasses import dataclass
from typing import ClassVar

from harness.runs.experiment import Experiment, experiment_of


@dataclass
class Silent:
    seed: int = 1


@dataclass
class Telling(Silent):
    experiment: ClassVar[Experiment] = Experiment(metric="accuracy", carried_files=("words.txt",))


def test_a_configuration_that_tells_nothing_has_no_names_of_its_own() -> None:
    assert experiment_of(Silent) == Experiment("", {}, (), {})
    assert experiment_of(Telling).metric == "accuracy"
    assert experiment_of(Telling).carried_files == ("words.txt",)
