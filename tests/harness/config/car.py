"""A small schema that the tests of this folder configure."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from harness.base.errors import UserError
from harness.config.build import build
from harness.config.fields import runtime
from harness.config.sources import parse_overrides


@dataclass
class Engine:
    power: float = 1.5
    fuel: Literal["petrol", "wood"] = "wood"
    gears: list[int] = field(default_factory=lambda: [1, 2])
    span: tuple[float, float] = (0.1, 1 / 3)
    level: Literal[0, 1, 2] = 0

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.power < 0:
            yield "power", f"must not be negative, found {self.power}"
        if len(self.gears) > 3:
            yield "gears", "at most 3"


@dataclass
class Car:
    name: str = "beetle"
    doors: int = 4
    seats: int | None = None
    open: bool = False
    engine: Engine = field(default_factory=Engine)
    garage: str = runtime("here")
    colour: str | None = runtime(None)
    notes: list[str] = runtime(factory=list)

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.doors % 2:
            yield "doors", f"{self.doors} is odd, with engine.level={self.engine.level}"


def faults_of(function: Any, *arguments: Any, **options: Any) -> list[str]:
    """The lines of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    return str(caught.value).splitlines()


def made(*words: str) -> Car:
    return build(Car, parse_overrides(words))
