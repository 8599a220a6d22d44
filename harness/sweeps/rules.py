"""Rules between the keys of a sweep file; what breaks one is added to the faults."""

from collections.abc import Iterator, Sequence

from harness.config.fields import field_types
from harness.config.sources import Setting
from harness.sweeps.conditions import Condition, read_condition
from harness.sweeps.dimensions import Dimension, hint
from harness.sweeps.keys import Algorithm, SweepFile
from harness.sweeps.space import RECIPE

OWN_RUN_KEYS = {"run.name": "name=...", "seed": "seeds=[...]"}
"""Keys of the experiment that the sweep sets itself, and what to write instead."""


def read_objectives(
    settings: list[Setting], algorithm: Algorithm | None, faults: list[str]
) -> dict[str, str]:
    """Return what an algorithm weighs against the metric: `max` or `min` by key."""
    for setting in settings:
        if setting.value not in ("max", "min"):
            faults.append(f"{setting.where}: objectives.{setting.key}: expected max or min, found "
                          f"{setting.value!r}")
    if settings and algorithm is None:
        faults.append(f"{settings[0].where}: objectives: only an algorithm weighs them; set "
                      "algorithm: tpe")
    return {setting.key: str(setting.value) for setting in settings}


def recipe_faults(
    head: SweepFile, where: str, searched: list[Dimension]
) -> Iterator[str]:
    """Recipes are searched by name, one after the other, or one is given; `where`: its place."""
    for dimension in searched:
        if not all(isinstance(value, str) for value in dimension.values) or dimension.is_random:
            yield f"{dimension.where}: recipe: expected {{grid: [names of recipes]}}"
        if head.recipe:
            yield (f"{where}: recipe: is searched already ({dimension.where}); leave "
                   "one out")


def read_constraints(head: SweepFile, where: str, faults: list[str]) -> list[Condition]:
    """Return the conditions that every point must meet."""
    found = [read_condition(text, f"{where}: constraints", faults) for text in head.constraints]
    return [condition for condition in found if condition is not None]


def check_conditions(
    dimensions: list[Dimension], constraints: list[Condition], schema: type, faults: list[str]
) -> bool:
    """Conditions look at keys that there are, and those of a dimension at what is chosen before.

    Returns whether all do.
    """
    before = len(faults)
    # the seed is the sweep's, and the recipe's name is known only where recipes are searched
    known = [key for key in field_types(schema) if key != "seed"]
    known += [RECIPE] if any(dimension.key == RECIPE for dimension in dimensions) else []
    for condition in [*constraints, *(d.when for d in dimensions if d.when)]:
        for name in condition.names:
            if name not in known:
                faults.append(f"{condition.where}: no key {name}{hint(name, known)}")
    for place, dimension in enumerate(dimensions):
        later = {d.key for d in dimensions[place:]}
        for name in dimension.when.names if dimension.when else ():
            if name in later:
                faults.append(f"{dimension.where}: {dimension.key}: when looks at {name}, which "
                              "must be searched above it")
    return len(faults) == before


def algorithm_faults(
    where: str, head: SweepFile, dimensions: Sequence[Dimension]
) -> Iterator[str]:
    """An algorithm needs Ray and random dimensions; `where`: its place."""
    if head.backend != "ray":
        yield f"{where}: algorithm: proposes points as results come in: set backend: ray"
    if not dimensions:
        yield f"{where}: algorithm: nothing is searched"
    for dimension in dimensions:
        if not dimension.is_random:
            yield (f"{dimension.where}: {dimension.key}: a grid is walked through, an algorithm "
                   "chooses: write choice")


def check_keys(
    parts: dict[str, list[Setting]], dimensions: list[Dimension], faults: list[str]
) -> None:
    """No key may be set in two places, and none that the sweep itself decides."""
    searched = {d.key: d.where for d in dimensions}
    for setting in parts["overrides"]:
        if setting.key in searched:
            faults.append(f"{setting.where}: {setting.key} is searched already "
                          f"({searched[setting.key]})")
    for setting in [*parts["overrides"], *parts["search"]]:
        if setting.key == "run.name" or (setting.key == "seed" and setting in parts["search"]):
            faults.append(f"{setting.where}: {setting.key} is the sweep's own to set; write "
                          f"{OWN_RUN_KEYS[setting.key]}")
