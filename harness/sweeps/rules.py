"""Rules between the keys of a sweep file; each function adds what breaks them to the faults."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from harness.base.errors import hint
from harness.config.casts import at_type, misfit
from harness.config.fields import field_types
from harness.config.sources import Setting
from harness.sweeps.conditions import Condition, compared
from harness.sweeps.dimensions import Dimension
from harness.sweeps.keys import Algorithm, Pbt, Scheduler, SweepFile
from harness.sweeps.space import RECIPE

log = logging.getLogger(__name__)


def check_scheduler(scheduler: Scheduler, where: str, faults: list[str]) -> None:
    """Report a scheduler without `backend: ray`: a fault of PBT, a warning for others."""
    if isinstance(scheduler, Pbt):
        faults.append(f"{where}: scheduler: pbt needs backend: ray")
    else:
        log.warning("%s: scheduler: %s has no effect without backend: ray; no trial is stopped "
                    "early", where, scheduler.kind)


def read_objectives(
    settings: list[Setting], algorithm: Algorithm | None, faults: list[str]
) -> dict[str, str]:
    """Return the further objectives of an algorithm: `max` or `min` by key."""
    for setting in settings:
        if setting.value not in ("max", "min"):
            faults.append(f"{setting.where}: objectives.{setting.key}: expected max or min, found "
                          f"{setting.value!r}")
    if settings and algorithm is None:
        faults.append(f"{settings[0].where}: objectives: need an algorithm; set algorithm: tpe")
    return {setting.key: str(setting.value) for setting in settings}


def recipe_faults(head: SweepFile, where: str, dimensions: Sequence[Dimension]) -> Iterator[str]:
    """Recipes are searched as a grid of names, or one is given at `where`."""
    for dimension in [d for d in dimensions if d.key == RECIPE]:
        if not all(isinstance(value, str) for value in dimension.values) or dimension.is_random:
            yield f"{dimension.where}: recipe: expected {{grid: [names of recipes]}}"
        if head.recipe:
            yield f"{where}: recipe: is searched already ({dimension.where}); leave one out"


def check_conditions(
    dimensions: list[Dimension], constraints: list[Condition], schema: type, faults: list[str]
) -> bool:
    """Return whether conditions name existing keys, and those of a dimension only earlier ones."""
    before = len(faults)
    # the sweep sets the seed, and the recipe's name is known only where recipes are searched
    known = [key for key in field_types(schema) if key != "seed"]
    known += [RECIPE] if any(dimension.key == RECIPE for dimension in dimensions) else []
    kinds = {**field_types(schema), RECIPE: str}
    for condition in [*constraints, *(d.when for d in dimensions if d.when)]:
        faults += [f"{condition.where}: no key {name}{hint(name, known)}"
                   for name in condition.names if name not in known]
        faults += [f"{condition.where}: {name} is compared with {value!r}: "
                   f"{misfit(value, kinds[name])}"
                   for name, value in compared(condition)
                   if name in known and not _may_be(value, kinds[name])]
    for place, dimension in enumerate(dimensions):
        later = {d.key for d in dimensions[place:]}
        faults += [f"{dimension.where}: {dimension.key}: when uses {name}, which must be searched "
                   "above it" for name in (dimension.when.names if dimension.when else ())
                   if name in later]
    return len(faults) == before


def _may_be(value: Any, kind: Any) -> bool:
    """Return whether a key of this type may be compared with a value: any number fits a number."""
    tried = [value] if isinstance(value, str) else [value, 1, 0.5, True]
    for one in tried:
        with suppress(ValueError):
            at_type(one, kind)
            return True
    return False


def algorithm_faults(where: str, head: SweepFile, dimensions: Sequence[Dimension]) -> Iterator[str]:
    """An algorithm, set at `where`, needs Ray and random dimensions."""
    if head.backend != "ray":
        yield f"{where}: algorithm: proposes points from results so far: set backend: ray"
    if not dimensions:
        yield f"{where}: algorithm: nothing is searched"
    for dimension in dimensions:
        if not dimension.is_random:
            yield (f"{dimension.where}: {dimension.key}: an algorithm does not try all points of "
                   "a grid: write choice")


def check_keys(
    parts: dict[str, list[Setting]], dimensions: list[Dimension], faults: list[str]
) -> None:
    """No key may be set in two places, and none that the sweep itself sets."""
    searched = {d.key: d.where for d in dimensions}
    faults += [f"{one.where}: {one.key} is searched already ({searched[one.key]})"
               for one in parts["overrides"] if one.key in searched]
    faults += [f"{one.where}: the sweep sets run.name; write name=..."
               for one in [*parts["overrides"], *parts["search"]] if one.key == "run.name"]
    faults += [f"{one.where}: the sweep sets seed; write seeds=[...]"
               for one in parts["search"] if one.key == "seed"]
