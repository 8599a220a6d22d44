"""A small configuration, and what is said about sweep files of it."""

import re
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from harness.base.errors import UserError
from harness.config.fields import runtime
from harness.runs.experiment import Experiment


@dataclass
class Train:
    lr: float = 0.1
    epochs: int = 4
    width: int = 8
    name: str = "plain"

    def faults(self):
        if self.epochs < 1:
            yield "epochs", "must be at least 1"


@dataclass
class Place:
    runs: str = runtime("runs")
    name: str = runtime("")
    threads: int = runtime(1)


@dataclass
class Config:
    seed: int = 7
    train: Train = field(default_factory=Train)
    run: Place = field(default_factory=Place)

    experiment: ClassVar[Experiment] = Experiment(metric="validation.mAP")


METRICS = ["validation.mAP", "mAP"]


def faults_of(read, text: str, *words: str) -> list[str]:
    """Return what is said about a faulty file, without its folder."""
    with pytest.raises(UserError) as caught:
        read(text, *words)
    return [re.sub(r"/\S*/", "", line) for line in str(caught.value).splitlines()]
