"""A sweep as JSON, for a process on another machine that must make further trials of it. The JSON
holds what the launcher read and checked, as the sweep file may be edited meanwhile."""

import functools
import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.config.build import Base
from harness.config.sources import Setting
from harness.sweeps.conditions import Condition
from harness.sweeps.dimensions import Dimension
from harness.sweeps.keys import ALGORITHMS, SCHEDULERS, Allocation, Resources
from harness.sweeps.reading import Sweep, with_proposed
from harness.sweeps.space import Space

PLAIN = ("name", "file", "samples", "metric", "mode", "backend", "slurm", "objectives")
"""Fields that JSON holds as they are."""


def freeze(sweep: Sweep) -> dict[str, Any]:
    """Return the sweep, without its trials, as values that JSON can hold."""
    return {**{key: getattr(sweep, key) for key in PLAIN}, "objectives": dict(sweep.objectives),
            "schema": _dotted(sweep.base.schema), "complete": _dotted(sweep.complete),
            "recipes": {name: [*map(asdict, base.settings)] for name, base in sweep.bases.items()},
            "dimensions": [asdict(dimension) for dimension in sweep.space.dimensions],
            "search_seed": sweep.space.seed,
            "constraints": [asdict(condition) for condition in sweep.space.constraints],
            "seeds": [asdict(seed) for seed in sweep.seeds], "words": list(sweep.words),
            **{key: {chosen.kind: asdict(chosen)} if chosen else None
               for key, chosen in (("scheduler", sweep.scheduler), ("algorithm", sweep.algorithm))},
            "resources": asdict(sweep.resources), "ray": asdict(sweep.ray),
            "folder": str(sweep.folder.resolve()), "code": str(sweep.code or "")}


def thaw(frozen: dict[str, Any]) -> Sweep:
    """Return the sweep with the trials of the points that were proposed so far. Other trials are
    not computed again: a search gets their folders."""
    schema = _named(frozen["schema"])
    bases: dict[str, Base[Any]] = {name: Base(schema, [Setting(**item) for item in settings])
                                   for name, settings in frozen["recipes"].items()}
    space = Space(tuple(_dimension(item) for item in frozen["dimensions"]),
                  tuple(_condition(item) for item in frozen["constraints"]),
                  {name: base.build() for name, base in bases.items()}, frozen["search_seed"])
    sweep = Sweep(
        **{key: frozen[key] for key in PLAIN},
        bases=bases, space=space, seeds=tuple(Setting(**item) for item in frozen["seeds"]),
        scheduler=_of(SCHEDULERS, frozen["scheduler"]),
        algorithm=_of(ALGORITHMS, frozen["algorithm"]),
        resources=Resources(**frozen["resources"]), ray=Allocation(**frozen["ray"]),
        folder=Path(frozen["folder"]), complete=_named(frozen["complete"]),
        words=tuple(frozen.get("words", ())),
        code=Path(frozen["code"]) if frozen["code"] else None,
    )
    return with_proposed(sweep) if sweep.algorithm is not None else sweep


def _dotted(value: Any) -> str:
    """Return the dotted name of a class or function, by which `_named` finds it."""
    while isinstance(value, functools.partial):  # arguments of this command only
        value = value.func
    return f"{value.__module__}.{value.__qualname__}"


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _of(kinds: dict[str, type], frozen: dict[str, Any] | None) -> Any:
    return next((kinds[kind](**options) for kind, options in (frozen or {}).items()), None)


def _condition(item: dict[str, Any]) -> Condition:
    return Condition(**{**item, "names": tuple(item["names"])})


def _dimension(item: dict[str, Any]) -> Dimension:
    when = _condition(item["when"]) if item["when"] else None
    return Dimension(**{**item, "values": tuple(item["values"]), "when": when})
